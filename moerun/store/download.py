"""One file from a host to the disk: several connections, resumed, hashed on the way, or not there.

The part and the book of its pieces lie beside the target until the whole digest is proven; then
one rename puts the file in place. Where an earlier process ended is where this one goes on: a piece
that it wrote is read once, for its own checksum and for the digest together.

Knows: threads, retries, what ends a download, and in which order a file becomes visible.
Does not know: protocols of registries, names of models, or locks (its caller holds one).
"""

import errno
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.errors import NoRoom, PullError, Unreachable, WrongContent
from moerun.store.fetching import Fetcher, Source
from moerun.store.http_client import Credentials
from moerun.store.http_connection import Patience
from moerun.store.pieces import PieceBook
from moerun.store.remote_file import RemoteFile
from moerun.store.work_list import WorkList
from moerun.units import MIB, format_gib

PART_SUFFIX: Final = ".moerun.incomplete"
PIECES_SUFFIX: Final = ".moerun.pieces.incomplete"
CONNECTIONS: Final = 4
_LEAST_BYTES_PER_CONNECTION: Final = 32 * MIB
_HASHED_AT_ONCE_BYTES: Final = MIB
_SETTLED_AT_ONCE_BYTES: Final = 64 * MIB
_LOOK_S: Final = 0.1
_ENDING_S: Final = 5.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a download took: bytes that came over the network, and those that were there."""

    fetched_bytes: int
    kept_bytes: int


def part_of(target: Path) -> Path:
    """Return where the part of a file lies until it is whole."""
    return target.with_name(target.name + PART_SUFFIX)


def pieces_of(target: Path) -> Path:
    """Return where the book of a part's pieces lies."""
    return target.with_name(target.name + PIECES_SUFFIX)


def connections_for(size_bytes: int, most: int = CONNECTIONS) -> int:
    """Return how many connections a file is worth: each loses a piece when all is killed."""
    return max(1, min(most, -(-size_bytes // _LEAST_BYTES_PER_CONNECTION)))


def kept_bytes_of(file: RemoteFile, target: Path) -> int:
    """Return how much of a file an earlier download left; nothing is written."""
    if not part_of(target).is_file() or not pieces_of(target).is_file():
        return 0
    with PieceBook(
        pieces_of(target),
        size_bytes=file.size_bytes,
        identity=str(file.digest),
        is_looked_at=True,
    ) as book:
        return sum(end - start for start, end in map(book.span, book.there()))


def download(
    file: RemoteFile,
    target: Path,
    *,
    patience: Patience | None = None,
    credentials: Credentials | None = None,
    connections: int = CONNECTIONS,
    watch: Callable[[int], None] = lambda there_bytes: None,
) -> Fetched:
    """Fetch a file whole and proven, or raise a PullError and leave its part for the next time.

    `watch` is called ten times a second with how much is there. The caller holds a lock for
    `target`. Ctrl-C goes through and leaves the part.
    """
    part, pieces = part_of(target), pieces_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not part.is_file():
            pieces.unlink(missing_ok=True)
        with part.open("ab") as made:
            if made.tell() != file.size_bytes:
                made.truncate(file.size_bytes)
        with PieceBook(pieces, size_bytes=file.size_bytes, identity=str(file.digest)) as book:
            job = _Job(file, part, book, patience or Patience(), credentials)
            try:
                fetched = job.run(connections, watch)
            finally:
                if job.is_worthless:
                    part.unlink()
        os.replace(part, target)
        _settle_folder(target.parent)
    except OSError as error:
        raise _of_disk(error, file, target) from error
    finally:
        if not part.exists():
            pieces.unlink(missing_ok=True)
    return fetched


class _Job:
    """The threads of one download, and what they share."""

    def __init__(
        self,
        file: RemoteFile,
        part: Path,
        book: PieceBook,
        patience: Patience,
        credentials: Credentials | None,
    ) -> None:
        self._file = file
        self._part = part
        self._book = book
        self._work = WorkList(book)
        self._source = Source(file, patience=patience, credentials=credentials)
        self._left = 0  # connections that have not given up
        self.is_worthless = False

    def run(self, connections: int, watch: Callable[[int], None]) -> Fetched:
        kept_bytes = self._work.there_bytes
        fetchers = [
            Fetcher(self._source, self._work, self._book, self._part) for _ in range(connections)
        ]
        threads = [self._thread(self._prove, "hash"), self._thread(self._settle, "settle")]
        threads += [
            self._thread(self._fetch_with(fetcher), f"fetch-{index}")
            for index, fetcher in enumerate(fetchers)
        ]
        self._left = len(fetchers)
        try:
            for thread in threads:
                thread.start()
            while not self._work.wait(_LOOK_S):
                watch(self._work.there_bytes)
            watch(self._work.there_bytes)
        finally:
            self._work.end(PullError(f"the download of {self._file.name} was given up"))
            for fetcher in fetchers:
                fetcher.abort()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(_ENDING_S)  # one that is still connecting ends by itself
        if self._work.failure is not None:
            raise self._work.failure
        fetched_bytes = sum(fetcher.fetched_bytes for fetcher in fetchers)
        return Fetched(fetched_bytes=fetched_bytes, kept_bytes=kept_bytes)

    def _thread(self, action: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                action()
            except BaseException as error:
                self._work.end(error)

        return threading.Thread(target=guarded, name=f"pull-{name}", daemon=True)

    def _fetch_with(self, fetcher: Fetcher) -> Callable[[], None]:
        """Return what fetches until the work is over; the last one to give up ends it."""
        lock = self._source.lock

        def fetch() -> None:
            failure = Unreachable(f"{self._file.name} did not come whole")
            try:
                fetcher.run()
            except Unreachable as error:
                failure = error
            with lock:
                self._left -= 1
                if self._left == 0:
                    self._work.end(failure)

        return fetch

    def _prove(self) -> None:
        """Hash the file behind the connections; a wrong digest is fetched once more."""
        with open(self._part, "rb+", buffering=0) as part:  # to be settled it must be writable
            for is_last in (False, True):
                digest = self._hash(part.fileno())
                if digest is None:
                    return
                if digest == self._file.digest.hexadecimal:
                    os.fsync(part.fileno())
                    self._work.end()
                    return
                if is_last:
                    self.is_worthless = True
                    raise WrongContent(
                        f"{self._file.name} was fetched twice, and both times its "
                        f"{self._file.digest.kind} digest was not the promised "
                        f"{self._file.digest.hexadecimal[:12]}… but {digest[:12]}…",
                        hint="nothing was kept; the host may serve a damaged file, so try later",
                    )
                damaged = self._damaged(part.fileno())
                self._work.lose(damaged or tuple(range(self._book.count)))

    def _hash(self, descriptor: int) -> str | None:
        """Return the digest of the whole file as pieces come to be there; None when it ends."""
        hasher = self._file.digest.begin(self._file.size_bytes)
        most_pieces = max(1, _HASHED_AT_ONCE_BYTES // self._book.piece_bytes)
        buffer = memoryview(bytearray(max(_HASHED_AT_ONCE_BYTES, self._book.piece_bytes)))
        piece = 0
        while piece < self._book.count:
            front = self._work.await_front(piece, most_pieces)
            if front is None:
                return None
            start, end = self._book.span(front.first)[0], self._book.span(front.end - 1)[1]
            view = _read_at(descriptor, buffer[: end - start], start)
            if front.is_unchecked:
                if zlib.crc32(view) != self._book.checksum(piece):
                    self._work.lose((piece,))
                    continue
                self._work.confirm(piece)
            hasher.update(view)
            piece = front.end
        return hasher.hexdigest()

    def _damaged(self, descriptor: int) -> tuple[int, ...]:
        """Return the pieces that do not read as they were written."""
        buffer = memoryview(bytearray(self._book.piece_bytes))
        damaged = []
        for piece in range(self._book.count):
            start, end = self._book.span(piece)
            view = _read_at(descriptor, buffer[: end - start], start)
            if zlib.crc32(view) != self._book.checksum(piece):
                damaged.append(piece)
        return tuple(damaged)

    def _settle(self) -> None:
        """Have the disk keep up, so that the last wait for it is a short one."""
        settled_bytes = self._work.there_bytes
        with open(self._part, "rb+", buffering=0) as part:
            while not self._work.wait(_LOOK_S):
                there_bytes = self._work.there_bytes
                if there_bytes - settled_bytes >= _SETTLED_AT_ONCE_BYTES:
                    settled_bytes = there_bytes
                    os.fsync(part.fileno())


def _read_at(descriptor: int, view: memoryview, start: int) -> memoryview:
    """Fill the view from a file; what the file lacks is zeros, which no checksum takes for it."""
    done = 0
    os.lseek(descriptor, start, os.SEEK_SET)
    while done < len(view):
        count = _read_into(descriptor, view[done:])
        if count == 0:
            view[done:] = bytes(len(view) - done)
            break
        done += count
    return view


def _read_into(descriptor: int, view: memoryview) -> int:
    if hasattr(os, "readv"):
        return os.readv(descriptor, [view])
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def _settle_folder(folder: Path) -> None:
    """Have the disk keep a rename; systems that open no folders keep it by themselves."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _of_disk(error: OSError, file: RemoteFile, target: Path) -> PullError:
    """Return what a failure of the disk means for the download."""
    if error.errno in _FULL:
        return NoRoom(
            f"the disk of {target.parent} is full: {file.name} takes {format_gib(file.size_bytes)}",
            hint="what arrived is kept; free some space and pull again",
        )
    return PullError(
        f"{file.name} cannot be written to {target.parent}: {error.strerror or error}",
        hint="what arrived is kept; the next pull goes on",
    )
