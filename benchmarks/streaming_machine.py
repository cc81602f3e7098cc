"""The machine that a measurement runs on: its memory limits, caches, read-ahead and counters.

All of it is Linux. A control group of version 1 or 2 holds one child with everything that it
touches; caches are dropped for the whole machine where that is allowed; the disk's read-ahead is
128 KB, the kernel's default, for as long as a measurement lasts, since stock mmap gets many times
slower with a larger one.

Knows: /sys and /proc, and how they are put back.
Does not know: models, engines, or what is measured.
"""

import ctypes
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

READ_AHEAD_KB: Final = 128
_GROUPS: Final = Path("/sys/fs/cgroup")
_SECTOR_BYTES: Final = 512
_REMOVE_WITHIN_S: Final = 5.0


class Unmeasurable(RuntimeError):
    """What is on this machine now would make every figure wrong."""


class NoControlGroup(Unmeasurable):
    """No limit can be set for a child."""


class MemoryGroup(Protocol):
    """A control group for one child; entered before the child's program is."""

    def enter(self) -> None:
        """Put the calling process into the group."""
        ...

    def used_bytes(self) -> int:
        """Return all that is charged to the group: its page cache and the kernel's part too."""
        ...

    def peak_bytes(self) -> int:
        """Return the most that was ever charged."""
        ...


class _Group:
    """The files of a group; the versions differ in names only."""

    limit_file: str
    swap_file: str
    used_file: str
    peak_file: str

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        (folder / self.limit_file).write_text(str(limit_bytes))
        swap = folder / self.swap_file
        if swap.exists():
            swap.write_text(str(self.swap_value(limit_bytes)))

    def swap_value(self, limit_bytes: int) -> int:
        raise NotImplementedError

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def used_bytes(self) -> int:
        return int((self.folder / self.used_file).read_text())

    def peak_bytes(self) -> int:
        return int((self.folder / self.peak_file).read_text())


class _GroupOne(_Group):
    limit_file = "memory.limit_in_bytes"
    swap_file = "memory.memsw.limit_in_bytes"
    used_file = "memory.usage_in_bytes"
    peak_file = "memory.max_usage_in_bytes"

    def swap_value(self, limit_bytes: int) -> int:
        return limit_bytes  # of memory and swap together


class _GroupTwo(_Group):
    limit_file = "memory.max"
    swap_file = "memory.swap.max"
    used_file = "memory.current"
    peak_file = "memory.peak"

    def swap_value(self, limit_bytes: int) -> int:
        return 0


@contextmanager
def memory_group(limit_bytes: int, *, root: Path = _GROUPS) -> Iterator[MemoryGroup]:
    """Make a group with that limit and no swap; removed when left. Raises NoControlGroup."""
    name = f"moerun-bench-{os.getpid()}"
    try:
        parent, kind = _parent_group(root)
        folder = parent / name
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise NoControlGroup(
            f"a memory limit needs a control group that this user may make ({error}); run as root, "
            "or in a scope of its own: systemd-run --scope --user -p Delegate=yes make bench-stream"
        ) from error
    try:
        yield kind(folder, limit_bytes)
    finally:
        _remove(folder)


def _parent_group(root: Path) -> tuple[Path, type[_Group]]:
    """Return where a group for memory may be made, and of which version it is."""
    if (root / "memory" / "memory.limit_in_bytes").exists():
        return root / "memory", _GroupOne
    for place in (root, root / "unified"):
        controllers = place / "cgroup.controllers"
        if controllers.exists() and "memory" in controllers.read_text().split():
            (place / "cgroup.subtree_control").write_text("+memory")
            return place, _GroupTwo
    raise NoControlGroup("this system has no control groups for memory; nothing can be limited")


def _remove(folder: Path) -> None:
    """Remove a group, whose last process the kernel may still be burying."""
    until_s = time.monotonic() + _REMOVE_WITHIN_S
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def alone() -> Iterator[None]:
    """Hold off every other measurement on this machine; Unmeasurable when one is under way.

    Two of them would drop each other's caches and restore each other's read-ahead.
    """
    with Path(tempfile.gettempdir(), "moerun-bench.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unmeasurable("another measurement of streaming runs; wait for its end") from error
        yield


def cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache."""
    size_bytes, page_bytes = path.stat().st_size, mmap.PAGESIZE
    library = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = (ctypes.c_ubyte * (-(-size_bytes // page_bytes)))()
        # The address of a mapping that may not be written is had by numpy alone.
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        if library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), pages) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        return int(np.count_nonzero(np.frombuffer(bytes(pages), np.uint8) & 1)) * page_bytes


def drop_caches(paths: Sequence[Path]) -> str:
    """Drop from memory what was read of the disk, and return how."""
    os.sync()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return "posix_fadvise(DONTNEED) on the model's file"
    return "echo 3 > /proc/sys/vm/drop_caches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The block device below a file; `folder` is None where there is none to be seen."""

    name: str
    folder: Path | None

    @classmethod
    def below(cls, path: Path) -> "Disk":
        """Return the device that holds a file; a partition's counters are those of its disk."""
        number = path.stat().st_dev
        place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not place.exists():
            return cls(name="no block device", folder=None)
        folder = place.resolve()
        if (folder / "partition").exists():
            folder = folder.parent
        return cls(name=folder.name, folder=folder)

    def counters(self) -> "DiskCounters":
        """Return what the device has done since the machine started, for all processes."""
        if self.folder is None:
            return DiskCounters(read_bytes=0, busy_s=0.0)
        fields = (self.folder / "stat").read_text().split()
        return DiskCounters(read_bytes=int(fields[2]) * _SECTOR_BYTES, busy_s=int(fields[9]) / 1000)

    @contextmanager
    def read_ahead(self, kilobytes: int = READ_AHEAD_KB) -> Iterator[str]:
        """Set the read-ahead while open; give what it is, in words."""
        setting = None if self.folder is None else self.folder / "queue" / "read_ahead_kb"
        if setting is None or not setting.exists():
            yield "read-ahead of the disk unknown"
            return
        before = setting.read_text().strip()
        try:
            setting.write_text(str(kilobytes))
        except OSError:
            yield f"read-ahead {before} KB, which this user may not change"
            return
        try:
            yield f"read-ahead {kilobytes} KB (otherwise {before} KB here)"
            found = setting.read_text().strip()
            if found != str(kilobytes):
                raise Unmeasurable(f"the disk's read-ahead became {found} KB while it was measured")
        finally:
            setting.write_text(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCounters:
    """Bytes read, and the time with at least one request under way."""

    read_bytes: int
    busy_s: float

    def since(self, before: "DiskCounters") -> "DiskCounters":
        """Return what was done after an earlier look."""
        return DiskCounters(
            read_bytes=self.read_bytes - before.read_bytes, busy_s=self.busy_s - before.busy_s
        )


def process_read_bytes(process: int | str = "self") -> int:
    """Return what a process has fetched from storage, read-ahead on its behalf included."""
    for line in Path(f"/proc/{process}/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "read_bytes":
            return int(value)
    raise RuntimeError("/proc/PID/io has no read_bytes")


def processors_busy_s() -> float:
    """Return the time that all processors have worked since the machine started, all together."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _, _, hard, soft, stolen = map(int, fields)
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """What a process has in memory: anonymous, and pages of files that it has mapped."""

    anonymous_bytes: int
    mapped_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.anonymous_bytes + self.mapped_bytes


def resident(process: int) -> Resident | None:
    """Return a look at a process by its counters, which costs no walk; None when it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in text.splitlines())
        if name in {"RssAnon", "RssFile", "RssShmem"}
    }
    if not kilobytes:  # a zombie has none
        return None
    return Resident(
        anonymous_bytes=1024 * kilobytes["RssAnon"],
        mapped_bytes=1024 * (kilobytes["RssFile"] + kilobytes["RssShmem"]),
    )
