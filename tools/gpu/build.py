"""Build the bundle in steps that each end in time, and go on where the last one stopped.

`python -m tools.gpu.build --bundle FILE --saved FOLDER [--architecture 90 | --cpu]` unpacks the
bundle, brings back what an earlier step saved (also on another machine, which is bare), and runs
ninja for at most nine minutes. Then what is built is saved again, in pieces of at most 15 MB. The
exit status is 0 when all is built, 75 when another step is needed, and 1 when the build failed.
Nothing is downloaded.

Ninja knows what is done by times, so unpacked sources are older than anything that was built, and
saved objects keep the order of theirs. Paths are part of the objects: the folder to build in must
be the same on every machine.

Knows: time limits, and what must be saved for the next step.
Does not know: what is in the bundle, or what is measured with the build.
"""

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STEP_S: Final = 540.0
_SAVING_PARTS: Final = 9  # of a step, one is kept for saving
_PIECE_BYTES: Final = 15_000_000
_SOURCE_TIME: Final = 1_600_000_000  # older than every build
_STOPPING_S: Final = 20.0
COMPLETE: Final = "complete"  # lies beside the pieces when nothing is left to build
NOT_DONE: Final = 75  # EX_TEMPFAIL: again, please
TARGETS: Final = ("llama", "llama-fit-params", "ggml", "ggml-rpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to build, where, and until when."""

    bundle: Path
    saved: Path
    work: Path
    architecture: str | None
    jobs: int
    step_s: float

    @property
    def source(self) -> Path:
        """Return where the bundle is unpacked."""
        return self.work / "source"

    @property
    def build(self) -> Path:
        """Return where ninja works."""
        return self.work / "build"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options of CMake; the processor's kernels are those of this machine."""
        # GCC 12 drops stores of the AMX tile configuration (scripts/build_engine.py).
        no_amx = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        common = (
            *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_RPC=ON", "-DGGML_NATIVE=ON"),
            *(f"-DCMAKE_C_FLAGS={no_amx}", f"-DCMAKE_CXX_FLAGS={no_amx}"),
        )
        if self.architecture is None:
            return (*common, "-DGGML_CUDA=OFF")
        return (*common, "-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={self.architecture}")


def run_step(order: Order) -> int:
    """Do one step; return 0 when all is built, NOT_DONE when it ended in time, 1 on failure."""
    until_s = time.monotonic() + order.step_s
    unpack(order)
    if not (order.build / "build.ninja").exists() and not restore(order.saved, order.work):
        configured = _command(["cmake", "-G", "Ninja", "-S", order.source, "-B", order.build])
        done = subprocess.run([*configured, *order.options], check=False)
        if done.returncode:
            return 1
    status = _ninja(order, until_s - order.step_s / _SAVING_PARTS)
    if status != 1 and not (order.saved / COMPLETE).exists():
        count, size = save(order.build, order.saved)
        sys.stderr.write(f"saved {count} pieces, {size / 1e6:.1f} MB, in {order.saved}\n")
        if status == 0:
            (order.saved / COMPLETE).touch()
    return status


def unpack(order: Order) -> None:
    """Unpack the bundle once, with the times of sources all alike and old."""
    if (order.source / "CMakeLists.txt").exists():
        return
    order.source.mkdir(parents=True, exist_ok=True)
    with tarfile.open(order.bundle) as bundle:
        bundle.extractall(order.source, filter="data")
    shutil.copy(Path(__file__).with_name("CMakeLists.txt"), order.source)
    for path in order.source.rglob("*"):
        os.utime(path, (_SOURCE_TIME, _SOURCE_TIME))


def save(build: Path, saved: Path) -> tuple[int, int]:
    """Save the folder of the build in pieces; return how many, and their size."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=0, format=tarfile.PAX_FORMAT) as archive:
        archive.add(build, build.name, filter=_with_whole_seconds)
    data = packed.getbuffer()
    fresh = saved.with_name(saved.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    starts = range(0, len(data), _PIECE_BYTES)
    for number, start in enumerate(starts):
        (fresh / f"build.{number:03}").write_bytes(data[start : start + _PIECE_BYTES])
    (fresh / "pieces").write_text(f"{len(starts)}\n", encoding="ascii")
    shutil.rmtree(saved, ignore_errors=True)
    fresh.rename(saved)
    return len(starts), len(data)


def _with_whole_seconds(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Round a time down: unpacking loses nanoseconds, and what is newer than noted is redone.

    Belief: what a compiler read is out of date where the object is newer than its record —
    `LoadDepsFromLog`, src/graph.cc @ ninja 1.11 — seen as half of the objects built anew.
    """
    member.mtime = int(member.mtime)
    return member


def restore(saved: Path, work: Path) -> bool:
    """Bring back a saved build; False where there is none, or not all of it."""
    try:
        count = int((saved / "pieces").read_text(encoding="ascii"))
        data = b"".join((saved / f"build.{n:03}").read_bytes() for n in range(count))
    except (OSError, ValueError):
        return False
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(work, filter="tar")
    return True


def _ninja(order: Order, until_s: float) -> int:
    command = _command(["ninja", "-C", order.build, "-j", order.jobs, *TARGETS])
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return int(process.wait(timeout=max(1.0, until_s - time.monotonic())) != 0)
    except subprocess.TimeoutExpired:
        # Ninja ends its compilers and removes what they had half written.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=_STOPPING_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return NOT_DONE


def _command(parts: Sequence[object]) -> list[str]:
    return [str(part) for part in parts]


def options_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return the options that say what to build and where."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--bundle", type=Path, default=Path(".build/gpu/bundle.tar.xz"))
    parser.add_argument("--saved", type=Path, default=Path(".build/gpu/saved"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/moerun-gpu"))
    parser.add_argument("--architecture", default="90", help="the card's, such as 86, 89, 90")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal without CUDA")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--step-s", type=float, default=STEP_S)
    return parser


def order_of(options: argparse.Namespace) -> Order:
    """Return what those options ask for."""
    return Order(
        bundle=options.bundle,
        saved=options.saved.absolute(),
        work=options.work,
        architecture=None if options.cpu else options.architecture,
        jobs=options.jobs,
        step_s=options.step_s,
    )


def lacking(order: Order) -> str | None:
    """Return what the build needs and this machine lacks, None when nothing."""
    tools = ["cmake", "ninja", *(["nvcc"] if order.architecture is not None else [])]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not order.bundle.is_file():
        missing.append(f"the bundle {order.bundle}")
    return ", ".join(missing) or None


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the step that the command line asks for."""
    options = options_parser("python -m tools.gpu.build", __doc__ or "").parse_args(arguments)
    order = order_of(options)
    if (missing := lacking(order)) is not None:
        sys.stderr.write(f"Error: not here: {missing}\n")
        return 1
    status = run_step(order)
    sys.stderr.write({0: "built\n", NOT_DONE: "not done yet; run it again\n"}.get(status, ""))
    return status


if __name__ == "__main__":
    sys.exit(main())
