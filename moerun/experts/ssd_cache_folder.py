"""The folder of the SSD cache: a folder for each model, its lock, its copies, and the room of all.

Knows: which files lie there and may be removed, and the limit that all models share.
Does not know: what a copy holds, or who reads it.
"""

import errno
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from moerun.experts.memory_map import page_floor
from moerun.planning.strategy import Limit

BOOK: Final = "book.json"
_LOCK: Final = "lock"
_COPY_ENDING: Final = ".pages"
_PREFIX: Final = "moerun-"
_DIGEST_LETTERS: Final = 16
_BLOCK_BYTES: Final = 512  # the unit of st_blocks (stat(2))
_KEPT_FREE_BYTES: Final = 1 << 30  # of the file system, where nobody named a limit


def folder_of_model(folder: Path, model_digest: str) -> Path:
    """Return the folder for the copies of one model, which is made; raises OSError."""
    own = folder / f"{_PREFIX}{model_digest[:_DIGEST_LETTERS]}"
    own.mkdir(mode=0o700, exist_ok=True)
    return own


def hold(folder: Path, opening: ExitStack) -> bool:
    """Lock the copies of a model for this process; False when another one has them."""
    import fcntl

    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    opening.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_copy(folder: Path, number: int, held: ExitStack) -> int:
    """Return a copy opened for both ways, past the page cache where its file system can."""
    path = folder / f"{number}{_COPY_ENDING}"
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        copy = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        copy = os.open(path, flags, 0o600)
    held.callback(os.close, copy)
    return copy


def room_bytes(folder: Path, limit: Limit | None, model_bytes: int, held_bytes: int) -> int:
    """Return what the copies of one model may take.

    Without a limit that is all but a reserve of what is free. A limit is for all models: copies
    of others leave, those used longest ago first, as far as this model needs it.
    """
    disk = shutil.disk_usage(folder)
    if limit is None:
        return page_floor(max(0, held_bytes + disk.free - _KEPT_FREE_BYTES))
    limit_bytes = limit.resolve(disk.total)
    wanted_bytes = min(limit_bytes, model_bytes)
    others = {other: _disk_bytes(other) for other in _folders_beside(folder)}
    for other in sorted(others, key=_used_at_s):
        if sum(others.values()) + wanted_bytes > limit_bytes and _remove_unused(other):
            del others[other]
    return page_floor(max(0, min(limit_bytes - sum(others.values()), held_bytes + disk.free)))


def _folders_beside(folder: Path) -> tuple[Path, ...]:
    """Return the folders of other models: those that this module has locked before."""
    found = folder.parent.glob(f"{_PREFIX}*/{_LOCK}")
    return tuple(lock.parent for lock in found if lock.parent != folder)


def _copies_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob(f"*{_COPY_ENDING}")))


def _used_at_s(folder: Path) -> float:
    book = folder / BOOK
    return book.stat().st_mtime if book.exists() else 0.0


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * _BLOCK_BYTES for path in _copies_in(folder))


def _remove_unused(folder: Path) -> bool:
    """Remove the copies of a model that no run uses; nothing but files of this module goes."""
    with ExitStack() as opening:
        if not hold(folder, opening):
            return False
        remove_copies(folder)
        (folder / _LOCK).unlink()
        with suppress(OSError):  # the user put something else there
            folder.rmdir()
        return True


def remove_copies(folder: Path) -> None:
    """Remove the book first, so that it never names what is gone."""
    (folder / BOOK).unlink(missing_ok=True)
    for path in _copies_in(folder):
        path.unlink(missing_ok=True)
