"""The logs of runners: one file for each, few kept, none without bound.

Knows: where they lie, who may read them, when they are cut.
Does not know: what is written.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Final

from moerun.errors import MoerunError
from moerun.places import STATE_VARIABLE

_KEPT_LOGS: Final = 20
LARGEST_LOG_BYTES: Final = 4 << 20
_KEPT_TAIL_BYTES: Final = 256 << 10
_PATTERN: Final = "runner-*.log"


def open_log(folder: Path) -> tuple[Path, int]:
    """Make a new log for this user alone and remove the oldest; returns a descriptor to close.

    It is opened for appending, so that cutting it moves every writer to its new end.
    """
    _remove_old(folder)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND
    for attempt in range(1000):
        path = folder / f"runner-{stamp}-{os.getpid()}-{attempt}.log"
        try:
            return path, os.open(path, flags, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise MoerunError(
                f"the log {path} cannot be written: {error.strerror or error}",
                hint=f"set {STATE_VARIABLE} to a folder that you may write to",
            ) from error
    raise MoerunError(f"no new log can be made in {folder}: all its names are taken")


def read_tail(path: Path, *, size_bytes: int = 64 << 10) -> str:
    """Return the end of a log; empty when it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size_bytes))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""


def drop_empty(path: Path) -> None:
    """Remove a log in which nothing was written."""
    try:
        if path.stat().st_size == 0:
            path.unlink()
    except OSError:
        return  # it is gone, or will be with the oldest


def bound_log(descriptor: int, *, largest_bytes: int = LARGEST_LOG_BYTES) -> bool:
    """Cut a log that has grown past its bound to its tail; whether that was done.

    A descriptor that is no regular file, such as a terminal, is left alone.
    """
    try:
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        if size_bytes <= largest_bytes:
            return False
        os.lseek(descriptor, size_bytes - _KEPT_TAIL_BYTES, os.SEEK_SET)
        tail = os.read(descriptor, _KEPT_TAIL_BYTES)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"(the log before this was dropped)\n" + tail)
    except OSError:
        return False  # a pipe or a terminal has no size
    return True


class BoundedStderr:
    """Standard error of a runner, checked for its bound now and then."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._since_check_bytes = 0

    def write(self, text: str) -> int:
        """Write and, after each quarter of a MiB, see to the bound.

        What a full disk does not take is lost: an answer is worth more than its log.
        """
        data = text.encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            os.write(self._descriptor, data)
        self._since_check_bytes += len(data)
        if self._since_check_bytes > _KEPT_TAIL_BYTES:
            self._since_check_bytes = 0
            bound_log(self._descriptor)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        """Return the descriptor, for those who write to it directly."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether a person reads along, which a runner's parent never arranges."""
        return os.isatty(self._descriptor)


def bound_stderr() -> None:
    """Have all that Python writes to standard error pass the bound."""
    sys.stderr = BoundedStderr()  # all that print and tracebacks need


def _remove_old(folder: Path) -> None:
    """Leave the newest logs; one that another process removes meanwhile is none of ours."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob(_PATTERN):
        try:
            found.append((path.stat().st_mtime, path))
        except OSError:
            continue
    for _, path in sorted(found)[: max(0, len(found) - _KEPT_LOGS + 1)]:
        with contextlib.suppress(OSError):
            path.unlink()
