"""Locks of moerun's own store: one for what its manifests name, and one for each blob in use.

Whoever writes or removes manifests holds the first for that moment, so that no blob goes between
somebody's look at it and the manifest that names it. Whoever runs a model holds those of its blobs,
together with all others that run it; a blob is removed only by one who holds it alone. Locks are
the system's, so that those of a process that was killed are free.

Knows: where the lock files lie, shared and sole holding on each system.
Does not know: manifests, or what runs.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from moerun.store.file_lock import locked

FOLDER: Final = ".locks"
_STORE_LOCK: Final = "store.lock"
_ENDING: Final = ".use"
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})
_WINDOWS_RANGE: Final = 1 << 30  # places, one of which each holder takes


@contextmanager
def store_locked(root: Path) -> Iterator[None]:
    """Hold the lock of what the manifests name; raises OSError where nothing can be written."""
    with locked(root / FOLDER / _STORE_LOCK):
        yield


@contextmanager
def blobs_in_use(root: Path, names: Iterable[str]) -> Iterator[None]:
    """Keep blobs from being removed; others may use them as well.

    Waits for nobody but one who removes them, which takes a moment. A store that cannot be
    written to needs no lock: nobody removes anything there.
    """
    with ExitStack() as stack:
        for name in names:
            try:
                stack.enter_context(_held(root / FOLDER / f"{name}{_ENDING}", shares=True))
            except OSError as error:
                if error.errno not in _CLOSED:
                    raise
        yield


@contextmanager
def model_in_use(root: Path, find: Callable[[], Path | None]) -> Iterator[None]:
    """Keep the blobs of a model from being removed while it runs; `find` looks for its file.

    It looks again under the lock, since somebody may have removed the model, or named another one
    so, just before. A file that lies elsewhere is nobody's to remove.
    """
    path = find()
    while path is not None and path.is_relative_to(root):
        names = _blobs_of(path, root)
        with blobs_in_use(root, names):
            again = find()
            if again == path:
                yield
                return
        path = again
    yield


@contextmanager
def blob_alone(root: Path, name: str) -> Iterator[bool]:
    """Hold a blob so that nobody begins to use it; False when somebody does already."""
    try:
        with _held(root / FOLDER / f"{name}{_ENDING}", shares=False):
            yield True
    except BlockingIOError:
        yield False


def _blobs_of(path: Path, root: Path) -> tuple[str, ...]:
    """Return the blobs of a model's file, or of all files that lie beside it as its parts."""
    if path.parent == root / "blobs":
        return (path.name,)
    blobs = {(entry.stat().st_dev, entry.stat().st_ino): entry.name for entry in _files(root)}
    parts = sorted(path.parent.glob("*.gguf"))
    found = (blobs.get((part.stat().st_dev, part.stat().st_ino)) for part in parts)
    return tuple(name for name in found if name is not None)


def _files(root: Path) -> tuple[Path, ...]:
    """Return the blobs; a folder in which somebody only laid files down has none."""
    try:
        return tuple(entry for entry in (root / "blobs").iterdir() if entry.is_file())
    except FileNotFoundError:
        return ()


@contextmanager
def _held(path: Path, *, shares: bool) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, shares=shares)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, *, shares: bool) -> None:
    """Take a lock; one that is not shared is tried once, and BlockingIOError says that it failed.

    Windows has no shared lock of this kind, so there a holder takes one place of many, and who
    wants to be alone takes all.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, os.getpid() % _WINDOWS_RANGE if shares else 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1 if shares else _WINDOWS_RANGE)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, "somebody holds it") from error
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_SH if shares else fcntl.LOCK_EX | fcntl.LOCK_NB)
