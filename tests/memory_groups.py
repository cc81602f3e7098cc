"""A control group for tests, where this machine lets us make one.

Version 1 is made below the group this process is in. Version 2 allows no processes beside groups
with controllers, so there it is made below the root, which takes a machine of one's own.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from moerun.machine.control_groups import memory_group_folders


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """One group with a limit; a process enters it by writing its number."""

    folder: Path
    limit_name: str
    usage_name: str

    @property
    def processes_path(self) -> Path:
        return self.folder / "cgroup.procs"

    @property
    def used_bytes(self) -> int:
        return int((self.folder / self.usage_name).read_text())

    def set_limit(self, limit_bytes: int, *, tries: int = 1) -> bool:
        """Set the limit and wait for what is used to come under it; return whether it does.

        Version 1 refuses a limit that what is used cannot be brought under at once. Of version 2
        it is the limit that throttles (`memory.high`): the other one ends processes at once.
        """
        for _ in range(tries):
            with contextlib.suppress(OSError):
                (self.folder / self.limit_name).write_text(str(limit_bytes))
            if int((self.folder / self.limit_name).read_text()) != limit_bytes:
                time.sleep(0.1)
            elif self.used_bytes <= limit_bytes:
                return True
        return False


@contextmanager
def a_memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Give a group with a limit, or skip the test and say why."""
    group = _make()
    try:
        group.set_limit(limit_bytes)
        yield group
    finally:
        _remove(group.folder)


def _make() -> MemoryGroup:
    name = f"moerun-test-{os.getpid()}"
    for folder, version in memory_group_folders(Path("/")):
        if version == 1:
            made, names = folder / name, ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif "memory" in _controllers(folder):
            made, names = Path("/sys/fs/cgroup") / name, ("memory.high", "memory.current")
        else:
            continue
        try:
            made.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        if not (made / names[0]).exists():
            made.rmdir()
            continue
        return MemoryGroup(folder=made, limit_name=names[0], usage_name=names[1])
    pytest.skip("no control group with a memory controller is visible here")


def _controllers(folder: Path) -> list[str]:
    path = folder / "cgroup.controllers"
    return path.read_text().split() if path.exists() else []


def _remove(folder: Path) -> None:
    """Remove the group, which takes a moment after its last process ended."""
    for _ in range(100):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{folder} cannot be removed: a process is left in it")
