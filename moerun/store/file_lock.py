"""A lock that one process holds and others wait for; it is free when its process is gone.

On Unix it is `flock` on a file of its own, as the `filelock` package takes it, so that a pull and
huggingface_hub do not write the same file; on Windows the first byte is locked, as there.

Knows: how each system locks.
Does not know: what is locked.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOOK_S: Final = 0.2


@contextmanager
def locked(path: Path, *, on_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file; `on_waiting` is called once when another process has it.

    The file stays: removing it would let two processes hold locks of one name. Raises OSError
    where no file can be made there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(descriptor):
            on_waiting()
            while not _take(descriptor):
                time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock at this moment."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Try once; closing the descriptor gives the lock back."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
