"""What memory is left around this process, read often and cheaply.

The files are opened once and read in place: some 30 microseconds for a machine and two groups.
Unlike the probe before a plan, file cache counts as available in full, the part in active use
included: the kernel gives it up before it ends any process, and what a runner must not lose lies
in memory of its own.

Knows: /proc/meminfo, pressure stall information, and the files of control groups, both versions.
Does not know: what follows from a reading.

All files are read below a root folder, so that a test can lay out its own /proc and /sys.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from moerun.machine.control_groups import memory_group_folders, parse_limit
from moerun.machine.pressure_alarm import PressureAlarm
from moerun.units import KIB

_LARGEST_FILE_BYTES: Final = 16 * KIB
_MICROSECONDS: Final = 1e6
_MACHINE: Final = "the machine"
_GROUP: Final = "the control group"
_MEMINFO_ROW: Final = re.compile(
    r"^(MemTotal|MemFree|MemAvailable|Buffers|Cached|SwapFree):\s+(\d+)", re.MULTILINE
)
_LIMITS: Final = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USAGE: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_FILE_CACHE: Final = {
    1: ("total_inactive_file", "total_active_file"),
    2: ("inactive_file", "active_file"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReading:
    """One bound on memory as it was read: the machine, or a control group with a limit.

    `stall_s` counts up while any task waits for memory, None where that is not told.
    """

    name: str
    total_bytes: int
    available_bytes: int
    swap_bytes: int = 0
    stall_s: float | None = None


class MemoryPools:
    """All bounds on this process's memory, each with its files held open."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._open()

    def read(self) -> tuple[PoolReading, ...]:
        """Return what every pool says now; one whose files are gone is left out."""
        machine = self._machine.read()
        swap_bytes = machine.swap_bytes if machine is not None else 0
        readings = [machine, *(group.read(swap_bytes) for group in self._groups)]
        return tuple(reading for reading in readings if reading is not None)

    def alarms(self) -> int:
        """Return how often the kernel signalled pressure since the last call (version 1 only)."""
        return self._alarm.count() if self._alarm is not None else 0

    def reopen(self) -> None:
        """Find the groups anew, as after a time in which the process may have been moved."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
        self.close()

    def _open(self) -> None:
        self._files = ExitStack()
        self._machine = _Machine(self._root, self._files)
        found = memory_group_folders(self._root)
        self._groups = tuple(_Group(folder, version, self._files) for folder, version in found)
        own = next((folder for folder, version in found if version == 1), None)
        self._alarm = PressureAlarm(own, self._files) if own is not None else None


class _KernelFile:
    """A small file of the kernel, read from its start as often as wanted."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # not on this kernel, or not for us: it is read as nothing
        files.callback(os.close, self._descriptor)

    def read(self) -> str | None:
        if self._descriptor is None:
            return None
        try:
            text = os.pread(self._descriptor, _LARGEST_FILE_BYTES, 0)
        except OSError:
            return None  # the group was removed
        return text.decode("ascii", errors="replace").strip()


class _Machine:
    """Memory and swap of the whole machine."""

    def __init__(self, root: Path, files: ExitStack) -> None:
        self._memory = _KernelFile(root / "proc/meminfo", files)
        self._stall = _KernelFile(root / "proc/pressure/memory", files)

    def read(self) -> PoolReading | None:
        sizes = _sizes(self._memory.read() or "")
        if "MemTotal" not in sizes:
            return None
        available_bytes = sizes.get("MemAvailable")
        if available_bytes is None:  # kernels before 3.14, and some containers
            available_bytes = sum(sizes.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
        return PoolReading(
            name=_MACHINE,
            total_bytes=sizes["MemTotal"],
            available_bytes=available_bytes,
            swap_bytes=sizes.get("SwapFree", 0),
            stall_s=_stall_s(self._stall.read()),
        )


class _Group:
    """One control group; it is a pool while it has a limit, which may come and go."""

    def __init__(self, folder: Path, version: int, files: ExitStack) -> None:
        self._version = version
        self._limits = [_KernelFile(folder / name, files) for name in _LIMITS[version]]
        self._usage = _KernelFile(folder / _USAGE[version], files)
        self._statistics = _KernelFile(folder / "memory.stat", files)
        self._stall = _KernelFile(folder / "memory.pressure", files)
        self._may_swap = (folder / "memory.swap.max").exists() and (
            _KernelFile(folder / "memory.swap.max", files).read() != "0"
        )

    def read(self, swap_bytes: int) -> PoolReading | None:
        limits = [parse_limit(limit.read()) for limit in self._limits]
        limit_bytes = min((limit for limit in limits if limit is not None), default=None)
        if limit_bytes is None:
            return None
        usage_bytes = parse_limit(self._usage.read())
        if usage_bytes is None:
            return None
        cache_bytes = sum(_statistics(self._statistics.read() or "", _FILE_CACHE[self._version]))
        return PoolReading(
            name=_GROUP,
            total_bytes=limit_bytes,
            available_bytes=max(0, limit_bytes - max(0, usage_bytes - cache_bytes)),
            swap_bytes=swap_bytes if self._may_swap else 0,
            stall_s=_stall_s(self._stall.read()),
        )


def _sizes(text: str) -> dict[str, int]:
    """Return the rows of /proc/meminfo that count here, in bytes."""
    return {name: int(number) * KIB for name, number in _MEMINFO_ROW.findall(text)}


def _statistics(text: str, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the named rows of a statistics file."""
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if name in names and number.isdigit():
            yield int(number)


def _stall_s(text: str | None) -> float | None:
    """Return the total of `some avg10=0.00 avg60=0.00 avg300=0.00 total=97570`."""
    for line in (text or "").splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if kind == "some" and total.isdigit():
            return int(total) / _MICROSECONDS
    return None
