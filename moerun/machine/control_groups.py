"""The limits that control groups put on this process, versions 1 and 2, nested ones included.

Knows: where a process's own groups are mounted, and the files that hold limits and usage.
Does not know: what the machine has; a limit above that is none, and the caller compares.

All files are read below a root folder, so that a test can lay out its own /proc and /sys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.machine.mounts import Mount, read_mounts, read_text

# Version 1 writes "no limit" as the largest page-aligned number of 63 bits.
_UNLIMITED_BYTES: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlGroupLimits:
    """The tightest of all groups around a process; None where no group sets a limit.

    `headroom_bytes` is what may still be taken before some limit is met: usage is counted
    without file cache that the kernel gives up by itself (`inactive_file`).
    """

    memory_limit_bytes: int | None = None
    headroom_bytes: int | None = None
    swap_headroom_bytes: int | None = None
    processors: float | None = None


def read_control_groups(root: Path) -> ControlGroupLimits:
    """Return the effective limits of the groups this process is in."""
    mounts = read_mounts(root)
    memory_limits: list[int] = []
    headrooms: list[int] = []
    swap_headrooms: list[int] = []
    quotas: list[float] = []
    for folder in _group_folders(root, mounts, controller="memory", version=2):
        _collect_memory_v2(folder, memory_limits, headrooms, swap_headrooms)
    for folder in _group_folders(root, mounts, controller="memory", version=1):
        _collect_memory_v1(folder, memory_limits, headrooms, swap_headrooms)
    for folder in _group_folders(root, mounts, controller="cpu", version=2):
        quotas.extend(_quota_v2(folder))
    for folder in _group_folders(root, mounts, controller="cpu", version=1):
        quotas.extend(_quota_v1(folder))
    return ControlGroupLimits(
        memory_limit_bytes=min(memory_limits, default=None),
        headroom_bytes=min(headrooms, default=None),
        swap_headroom_bytes=min(swap_headrooms, default=None),
        processors=min(quotas, default=None),
    )


def memory_group_folders(root: Path) -> tuple[tuple[Path, int], ...]:
    """Return the folders of all groups around this process that count memory, with versions."""
    mounts = read_mounts(root)
    return tuple(
        (folder, version)
        for version in (2, 1)
        for folder in _group_folders(root, mounts, controller="memory", version=version)
    )


def parse_limit(text: str | None) -> int | None:
    """Return the number that a limit's file says; None for `max`, negative or unlimited ones."""
    if text is None or not text.isdigit():
        return None
    number = int(text)
    return None if number >= _UNLIMITED_BYTES else number


def _group_folders(
    root: Path, mounts: tuple[Mount, ...], *, controller: str, version: int
) -> Iterator[Path]:
    """Yield the folders of the process's own group and of all above it that are visible."""
    membership = _membership(root, controller=controller, version=version)
    if membership is None:
        return
    for mount in mounts:
        if version == 2 and mount.filesystem != "cgroup2":
            continue
        if version == 1 and not (mount.filesystem == "cgroup" and controller in mount.options):
            continue
        top = root / mount.point.lstrip("/")
        folder = top / _below_mount(membership, mount.root)
        if not folder.is_dir():  # a bind mount shows the group itself as the top
            folder = top
        while True:
            yield folder
            if folder == top:
                break
            folder = folder.parent
        return


def _membership(root: Path, *, controller: str, version: int) -> str | None:
    """Return the path of the process's group in one hierarchy, None when it is in none."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if version == 2 and number == "0" and not controllers:
            return path
        if version == 1 and controller in controllers.split(","):
            return path
    return None


def _below_mount(path: str, mount_root: str) -> str:
    """Return the group's path relative to what is mounted.

    Inside a container the mount often shows only a part of the hierarchy, and a process outside
    its namespace's root reads a path that starts with `..`; both mean the top of the mount.
    """
    if mount_root != "/":
        if path != mount_root and not path.startswith(mount_root + "/"):
            return ""
        path = path[len(mount_root) :]
    relative = path.strip("/")
    return "" if ".." in relative.split("/") else relative


def _collect_memory_v2(
    folder: Path, limits: list[int], headrooms: list[int], swap_headrooms: list[int]
) -> None:
    """Add what one group of version 2 says; `memory.high` throttles long before `max` kills."""
    bounds = [_number(folder / name) for name in ("memory.max", "memory.high")]
    limit_bytes = min((bound for bound in bounds if bound is not None), default=None)
    usage_bytes = _number(folder / "memory.current")
    if limit_bytes is not None:
        limits.append(limit_bytes)
        if usage_bytes is not None:
            cache_bytes = _statistic(folder / "memory.stat", "inactive_file")
            headrooms.append(_headroom_bytes(limit_bytes, usage_bytes, cache_bytes))
    swap_limit_bytes = _number(folder / "memory.swap.max")
    swap_usage_bytes = _number(folder / "memory.swap.current")
    if swap_limit_bytes is not None and swap_usage_bytes is not None:
        swap_headrooms.append(max(0, swap_limit_bytes - swap_usage_bytes))


def _collect_memory_v1(
    folder: Path, limits: list[int], headrooms: list[int], swap_headrooms: list[int]
) -> None:
    """Add what one group of version 1 says; its `memsw` counts memory and swap together."""
    limit_bytes = _number(folder / "memory.limit_in_bytes")
    usage_bytes = _number(folder / "memory.usage_in_bytes")
    if limit_bytes is None:
        return
    limits.append(limit_bytes)
    if usage_bytes is None:
        return
    cache_bytes = _statistic(folder / "memory.stat", "total_inactive_file")
    headrooms.append(_headroom_bytes(limit_bytes, usage_bytes, cache_bytes))
    both_limit_bytes = _number(folder / "memory.memsw.limit_in_bytes")
    both_usage_bytes = _number(folder / "memory.memsw.usage_in_bytes")
    if both_limit_bytes is not None and both_usage_bytes is not None:
        swap_limit_bytes = both_limit_bytes - limit_bytes
        swap_headrooms.append(max(0, swap_limit_bytes - (both_usage_bytes - usage_bytes)))


def _headroom_bytes(limit_bytes: int, usage_bytes: int, cache_bytes: int) -> int:
    return max(0, limit_bytes - max(0, usage_bytes - cache_bytes))


def _quota_v2(folder: Path) -> Iterator[float]:
    """Yield the processors of `cpu.max`, such as 2.0 for `200000 100000`."""
    words = (read_text(folder / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        yield int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> Iterator[float]:
    """Yield the processors of a quota and its period; a quota of -1 is none."""
    quota_us = _number(folder / "cpu.cfs_quota_us")
    period_us = _number(folder / "cpu.cfs_period_us")
    if quota_us is not None and period_us:
        yield quota_us / period_us


def _number(path: Path) -> int | None:
    """Return the number in a file, None when it is absent, `max`, negative or unlimited."""
    return parse_limit(read_text(path))


def _statistic(path: Path, name: str) -> int:
    """Return one row of a statistics file, 0 when it is not there."""
    for line in (read_text(path) or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0
