"""A model on a slow disk, with an SSD cache and without: Linux, root, control groups of version 1.

The slow disk is a loop device over a file system of its own, whose reads the kernel holds to a
rate; the cache lies on the disk below, which is not held. Both ways answer the same prompt in
turn, each in a process of its own with the caches dropped before it; the first run with the cache
finds it empty. What was learned of the model is forgotten between runs, so nothing else is warm.

Knows: how a slow disk is made, and which runs there are.
Does not know: how anything is read, copied or counted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.streaming import default_folder
from benchmarks.streaming_machine import Unmeasurable, alone, drop_caches
from benchmarks.streaming_models import open_model

_THROTTLE: Final = Path("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device")
_ROOM_BYTES: Final = 256 << 20  # of the file system, beside the model
_MEGABYTE: Final = 1_000_000
TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One run: its decode rate, the time to its first token, and its text."""

    tokens_per_s: float
    first_token_s: float
    text: str


@contextmanager
def slow_copy(model: Path, folder: Path, *, bytes_per_s: int) -> Iterator[Path]:
    """Give a copy of a model on a disk whose reads are held to a rate."""
    image, mounted = folder / "slow.img", folder / "slow"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(model.stat().st_size * 102 // 100 + _ROOM_BYTES)
    _call("mkfs.ext4", "-q", "-F", str(image))
    device = _call("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        _call("mount", device, str(mounted))
        try:
            copied = Path(shutil.copy(model, mounted))
            os.sync()
            number = os.stat(device).st_rdev
            name = f"{os.major(number)}:{os.minor(number)}"
            _THROTTLE.write_text(f"{name} {bytes_per_s}")
            try:
                yield copied
            finally:
                _THROTTLE.write_text(f"{name} 0")
        finally:
            _call("umount", str(mounted))
    finally:
        _call("losetup", "--detach", device)


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Unmeasurable(f"{command[0]} is not there") from error
    except subprocess.CalledProcessError as error:
        raise Unmeasurable(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
    return done.stdout.strip()


def answer(model: Path, state: Path, flags: Sequence[str]) -> Answer:
    """Run one answer with nothing warm but what `flags` name."""
    shutil.rmtree(state, ignore_errors=True)
    drop_caches([model])
    command = [sys.executable, "-m", "moerun", "run", str(model), "hello", "--json", "--quiet"]
    done = subprocess.run(
        [*command, *flags],
        env={**os.environ, "MOERUN_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise Unmeasurable(f"moerun failed: {done.stderr.strip()}")
    document: dict[str, Any] = json.loads(done.stdout)
    timings = document["timings"]
    return Answer(
        tokens_per_s=timings["answer_tokens_per_s"],
        first_token_s=timings["load_s"] + timings["prompt_s"],
        text=document["answer"],
    )


def measure(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the result; both ways take turns in each round."""
    source = open_model(options.model, options.folder).path
    flags = ["--streaming", "cache", "--ram", options.ram, "--temperature", "0", "--ctx", "512"]
    flags += ["--num-predict", str(options.tokens), "--ubatch", "64"]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rate = int(options.rate * _MEGABYTE)
        with slow_copy(source, folder, bytes_per_s=rate) as model:
            cached = [*flags, "--ssd-cache", str(folder / "cache")]
            first = answer(model, folder / "state", cached)
            yield _line("cache, empty", [first])
            rounds = []
            for _ in range(options.rounds):
                plain = answer(model, folder / "state", flags)
                warm = answer(model, folder / "state", cached)
                if not first.text == plain.text == warm.text:
                    raise Unmeasurable("the answers differ")
                rounds.append((plain, warm))
            yield _line("no cache", [plain for plain, _ in rounds])
            yield _line("cache, filled", [warm for _, warm in rounds])
            ratios = sorted(warm.tokens_per_s / plain.tokens_per_s for plain, warm in rounds)
            yield (
                f"decode with the filled cache: {statistics.median(ratios):.2f} times "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}), the slow disk held to "
                f"{options.rate:g} MB/s"
            )


def _line(label: str, answers: Sequence[Answer]) -> str:
    rates = sorted(found.tokens_per_s for found in answers)
    first_s = statistics.median(found.first_token_s for found in answers)
    return (
        f"{label:14} {statistics.median(rates):6.2f} tokens/s ({rates[0]:.2f} to {rates[-1]:.2f}), "
        f"first token after {first_s:.1f} s"
    )


def main() -> int:
    """Measure, and print the lines."""
    parser = argparse.ArgumentParser(description="A model on a slow disk, with an SSD cache.")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--model", default="expert-2.7")
    parser.add_argument("--ram", default="1500M")
    parser.add_argument("--rate", type=float, default=100.0, help="MB/s of the slow disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    try:
        with alone():
            for line in measure(parser.parse_args()):
                print(line, flush=True)
    except (Unmeasurable, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
