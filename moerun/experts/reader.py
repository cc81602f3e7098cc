"""Reading slices of files into memory by several threads, past the page cache.

What is waited for goes first, what is only read ahead goes when nothing else is to be read. A
thread that waits for the system lets all others go on.

Belief: with O_DIRECT the device writes into the reader's own memory where address, offset and
length are whole blocks, and a read that reaches the end of the file is shorter (open(2)); file
systems without it refuse to open so, or refuse the first read, and are read through the page cache.
Checked by tests/test_reader.py.

Knows: files, threads, and the time in which at least one read is under way.
Does not know: experts, policies, or why something is read.
"""

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from moerun.errors import ModelError
from moerun.experts.memory_map import PAGE_BYTES, drop_from_page_cache, read_into
from moerun.experts.read_queue import Fetch, Read, ReadQueue

# Measured on a virtual disk of 1.2 to 2.3 GB/s: reads of 0.25 MB need 8 threads to reach its
# rate, of 0.5 MB 4, of 1.7 MB two; more threads cost nothing where they wait. To cut a slice of
# 0.5 MB in two won nothing, in four it lost up to a fifth (`benchmarks/read_bursts.py`).
READER_THREADS: Final = 8
READ_BYTES: Final = 2 << 20  # of one read: slices that lie together, or a piece of a larger one
# So much of the threads reads ahead at most: what is waited for finds the others idle.
_SHARE_AHEAD: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSums:
    """What was read so far, and for how long at least one read was under way."""

    read_bytes: int
    busy_s: float


class NearerCopies(Protocol):
    """Copies of the files on a faster disk, which hold some of what is to be read."""

    def supply(self, read: Read, end_bytes: int) -> bool:
        """Read up to `end_bytes` of the file from a copy; False where it does not hold that."""
        ...

    def keep(self, read: Read) -> None:
        """Take what was just read from the file, if there is room."""
        ...

    def close(self) -> None:
        """End; nothing is read any more."""
        ...


class Reader:
    """Files that are held open, and the threads that read them."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        threads: int = READER_THREADS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the files, past the page cache where their file system can.

        Raises ModelError when one cannot be opened.
        """
        self._paths = tuple(paths)
        self._clock = clock
        self._files, self._are_direct = _open_all(self._paths)
        self._sizes_bytes = tuple(os.fstat(file).st_size for file in self._files)
        self._changed = threading.Condition()
        self._queue = ReadQueue(most_ahead=max(1, int(threads * _SHARE_AHEAD)))
        self._under_way = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._read_bytes = 0
        self._is_closed = False
        self._copies: NearerCopies | None = None
        self._threads = tuple(
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True)
            for number in range(threads)
        )
        for thread in self._threads:
            thread.start()

    def descriptor(self, file: int) -> int:
        """Return the open file with that index."""
        return self._files[file]

    def read_through(self, copies: NearerCopies) -> None:
        """Read from copies what they hold, from now on; they are closed with the files."""
        self._copies = copies

    def submit(self, reads: Iterable[Read], *, is_ahead: bool = False) -> None:
        """Begin reads, in their order."""
        with self._changed:
            self._changed.notify(self._queue.put(reads, is_ahead=is_ahead))

    def hasten(self, fetches: Iterable[Fetch]) -> None:
        """Have what was only read ahead go before all else that was not begun."""
        with self._changed:
            self._queue.hasten(fetches)
            self._changed.notify_all()  # some may idle, since enough others read ahead

    def cancel(self, fetch: Fetch) -> None:
        """Give up what was not begun of a fetch, and wait for the rest."""
        with self._changed:
            for _ in range(self._queue.give_up(fetch)):
                fetch.was_cancelled = True
                fetch.note(None, self._clock())
        fetch.settle()

    def sums(self) -> ReadingSums:
        """Return the sums so far."""
        with self._changed:
            busy_s = self._busy_s
            if self._under_way:
                busy_s += self._clock() - self._busy_since_s
            return ReadingSums(read_bytes=self._read_bytes, busy_s=busy_s)

    def close(self) -> None:
        """Begin no read any more, end the threads, and close the files."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            for read in self._queue.give_up_all():
                for fetch in read.fetches:
                    fetch.was_cancelled = True
                    fetch.note(None, self._clock())
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._copies is not None:
            self._copies.close()
        for file in self._files:
            os.close(file)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            read, is_ahead = found
            failure: Exception | None = None
            try:
                self._carry_out(read)
            except Exception as error:  # whoever waits raises it
                failure = error
            with self._changed:
                now_s = self._clock()
                self._under_way -= 1
                if is_ahead:
                    self._queue.note_ahead_done()
                if self._under_way == 0:
                    self._busy_s += now_s - self._busy_since_s
                if failure is None:
                    self._read_bytes += read.size_bytes
                for fetch in read.fetches:
                    fetch.note(failure, now_s)

    def _next(self) -> tuple[Read, bool] | None:
        """Return what to read next, and whether it is ahead; None when all is over."""
        with self._changed:
            while (found := self._queue.take()) is None:
                if self._is_closed:
                    return None
                self._changed.wait()
            if self._under_way == 0:
                self._busy_since_s = self._clock()
            self._under_way += 1
            return found

    def _carry_out(self, read: Read) -> None:
        """Read until all is there, or all that the file has."""
        copies = self._copies
        end_bytes = min(read.offset_bytes + read.size_bytes, self._sizes_bytes[read.file])
        if copies is not None and copies.supply(read, end_bytes):
            return
        self._read_file(read, end_bytes)
        if copies is not None:
            copies.keep(read)

    def _read_file(self, read: Read, end_bytes: int) -> None:
        address, offset_bytes, left_bytes = read.address, read.offset_bytes, read.size_bytes
        while offset_bytes < end_bytes:
            try:
                got_bytes = read_into(self._files[read.file], address, left_bytes, offset_bytes)
            except OSError as error:
                raise self._failure(read, f"{error.strerror or error}") from error
            if got_bytes == 0:
                raise self._failure(read, "the file ends there; it was cut while it was in use")
            address += got_bytes
            offset_bytes += got_bytes
            left_bytes -= got_bytes
            if (
                offset_bytes < end_bytes
                and offset_bytes % PAGE_BYTES
                and self._are_direct[read.file]
            ):
                raise self._failure(read, f"only {got_bytes:,} bytes came")
        if not self._are_direct[read.file]:  # held once is enough
            drop_from_page_cache(self._files[read.file], read.offset_bytes, read.size_bytes)

    def _failure(self, read: Read, reason: str) -> ModelError:
        return ModelError(
            f"{self._paths[read.file]} cannot be read at byte {read.offset_bytes:,} "
            f"({read.size_bytes:,} bytes): {reason}.",
            hint="Check the disk and the file, and download the model again if it is damaged.",
        )


def _open_all(paths: Sequence[str]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the open files, and of each whether it is read past the page cache."""
    files: list[int] = []
    are_direct: list[bool] = []
    try:
        for path in paths:
            file = _open_direct(path)
            are_direct.append(file is not None)
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC) if file is None else file)
    except OSError as error:
        for file in files:
            os.close(file)
        raise ModelError(
            f"{error.filename} cannot be opened: {error.strerror or error}."
        ) from error
    return tuple(files), tuple(are_direct)


def _open_direct(path: str) -> int | None:
    """Return a file opened past the page cache; None where its file system has no such reads."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    # Some open it and refuse to read, or ask for larger blocks than pages.
    with mmap.mmap(-1, 2 * PAGE_BYTES) as page:
        try:
            os.preadv(file, [memoryview(page)[PAGE_BYTES:]], PAGE_BYTES)
        except OSError as error:
            if error.errno == errno.EINVAL:
                os.close(file)
                return None
    return file  # whatever else fails is told by the first read that matters
