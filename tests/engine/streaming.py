"""A model whose experts stream in a runner, and places where its file can be harmed.

Knows: orders for tests, answers that wander over all experts, loop devices.
Does not know: what a test does to the file.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moerun.engine.interface import GenerationRequest, GenerationResult, Sampling
from moerun.experts.order import StreamingOrder
from moerun.planning.strategy import LoadMode, StreamingMode
from moerun.runner.parent import Runner
from tests.engine.builders import arguments
from tests.engine.suppliers import host_layout
from tests.tiny_models import Shape, write_tiny_model

# 4 layers of 16 experts of 0.3 MB: some 20 MB, of which a token needs 2.5.
SHAPE = Shape(expert_ff=512, experts=16, context_tokens=1024)
SWAP_CYCLES = 1.5


def write_model(path: Path) -> Path:
    return write_tiny_model(path, "qwen3moe", shape=SHAPE)


def an_order(path: Path, *, mode: StreamingMode, **changes: Any) -> StreamingOrder:
    """Return an order with the smallest cache, so that most tokens have to read."""
    layout = host_layout(path)
    minimum_bytes = int(SWAP_CYCLES * layout.cycle_bytes)
    values: dict[str, Any] = {
        "layout": layout,
        "mode": mode,
        "limit_bytes": 1 << 34,
        "cache_bytes": minimum_bytes,
        "minimum_bytes": minimum_bytes,
        "preload_experts": 0,
    }
    return StreamingOrder(**values | changes)


def a_request(tokens: int = 300) -> GenerationRequest:
    """Return a request whose answer is one of chance, always the same: it uses all experts."""
    return GenerationRequest(
        prompt="w300 w301 w302",
        sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7),
        maximum_tokens=tokens,
    )


@dataclass
class Answer:
    """What came of an answer, also when it ended with an error."""

    parts: list[str] = field(default_factory=list)
    result: GenerationResult | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)


def ask(
    runner: Runner,
    answer: Answer,
    *,
    meanwhile: Callable[[], object] = lambda: None,
    tokens: int = 300,
) -> None:
    """Answer; after the first text the runner stands still until `meanwhile` is done."""

    def receive(text: str) -> None:
        if not answer.parts:
            with stopped(runner.pid):
                meanwhile()
        answer.parts.append(text)

    answer.result = runner.generate(a_request(tokens), on_text=receive)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def a_runner(folder: Path, path: Path, order: StreamingOrder | None) -> Iterator[Runner]:
    """Give a runner with the model loaded, streaming where there is an order."""
    with Runner(log_folder=folder) as runner:
        load(runner, path, order)
        yield runner


def load(runner: Runner, path: Path, order: StreamingOrder | None) -> None:
    mode = LoadMode.MMAP if order is None else LoadMode.STREAM
    runner.load(arguments(path, load_mode=mode), streaming=order)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDisk:
    """A file system in a file, read only, whose backing file can be cut and made whole again."""

    folder: Path
    backing: Path
    whole_bytes: int

    def cut(self) -> bytes:
        """Let every read of the second half fail; return what was there."""
        middle = self.whole_bytes // 2
        with self.backing.open("rb") as file:
            file.seek(middle)
            tail = file.read()
        os.truncate(self.backing, middle)
        return tail

    def mend(self, tail: bytes) -> None:
        with self.backing.open("ab") as file:
            file.write(tail)


@contextlib.contextmanager
def a_loop_disk(folder: Path, model: Path) -> Iterator[LoopDisk]:
    """Give a disk of its own with the model on it, or skip the test and say why."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a loop device takes root on Linux")
    for tool in ("losetup", "mkfs.ext4", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    backing, mount = folder / "disk.img", folder / "disk"
    whole_bytes = 3 * model.stat().st_size
    with backing.open("wb") as file:
        file.truncate(whole_bytes)
    _call("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", str(backing))
    mount.mkdir()
    device = _try("losetup", "--find", "--show", str(backing))
    try:
        _try("mount", device, str(mount))
        try:
            # Written where it is cut: what comes before fills the first half.
            (mount / "filling").write_bytes(bytes(int(whole_bytes * 0.35)))
            shutil.copyfile(model, mount / model.name)
        finally:
            _call("umount", str(mount))
        _call("mount", "-o", "ro", device, str(mount))
        try:
            yield LoopDisk(folder=mount, backing=backing, whole_bytes=whole_bytes)
        finally:
            _call("umount", "--lazy", str(mount))
    finally:
        _call("losetup", "--detach", device)


@contextlib.contextmanager
def a_full_disk(folder: Path) -> Iterator[Path]:
    """Give a folder on a file system without a free byte, or skip the test and say why."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small file system takes root on Linux")
    mount = folder / "full"
    mount.mkdir()
    _try("mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=64", "tmpfs", str(mount))
    try:
        with contextlib.suppress(OSError), (mount / "filling").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(OSError, match="No space left"):
            (mount / "more").write_bytes(b"x")
        yield mount
    finally:
        _call("umount", "--lazy", str(mount))


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _try(*command: str) -> str:
    try:
        return _call(*command)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this cannot be had here: {error.stderr.strip()}")
