"""The kernel's signal that a control group of version 1 is under pressure.

The group's `memory.pressure_level` is tied to a counter that the kernel raises; version 2 has
stall information instead. Asking for it takes the right to write in the group's folder, which a
container seldom has: without it nothing is ever signalled.

Knows: how the signal is asked for (Documentation/admin-guide/cgroup-v1/memory.rst, section 11).
Does not know: what is done about it.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_LEVEL: Final = "medium"  # the group's memory is exchanged with storage, or soon will be


class PressureAlarm:
    """Counts the signals of one group."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._counter: int | None = None
        if sys.platform != "linux":
            return
        with ExitStack() as opening:
            try:
                level = os.open(folder / "memory.pressure_level", os.O_RDONLY | os.O_CLOEXEC)
                opening.callback(os.close, level)
                counter = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                opening.callback(os.close, counter)
                control = os.open(folder / "cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
                opening.callback(os.close, control)
                os.write(control, f"{counter} {level} {_LEVEL}".encode("ascii"))
            except OSError:
                return  # not for us
            self._counter = counter
            files.push(opening.pop_all())

    def count(self) -> int:
        """Return how many signals came since the last call."""
        if sys.platform != "linux" or self._counter is None:
            return 0
        try:
            return os.eventfd_read(self._counter)
        except BlockingIOError:
            return 0
