"""Reading slices of files into memory by several threads, past the page cache.

What is waited for goes first, what is only read ahead goes when nothing else is to be read. A
thread that waits for the system lets all others go on.

Belief: with O_DIRECT the device writes into the reader's own memory where address, offset and
length are whole blocks, and a read that reaches the end of the file is shorter (open(2)); file
systems without it, such as tmpfs, refuse to open so. Checked by tests/test_reader.py.

Knows: files, threads, and the time in which at least one read is under way.
Does not know: experts, policies, or why something is read.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from moerun.errors import ModelError
from moerun.experts.memory_map import PAGE_BYTES, read_into

# Measured on a virtual disk of 1.4 to 1.8 GB/s: reads of 0.25 MB need 8 threads to reach its
# rate, reads of 1.7 MB two; more threads cost nothing where they wait.
READER_THREADS: Final = 8
READ_BYTES: Final = 4 << 20  # of one read, where slices lie together


class Fetch:
    """Something that is being read, in one or several pieces; `done_s` is when it was whole."""

    __slots__ = ("_left", "_whole", "done_s", "failure", "started_s", "was_cancelled")

    def __init__(self, pieces: int, started_s: float) -> None:
        self._left = pieces
        self._whole = threading.Event()
        self.started_s = started_s
        self.done_s = 0.0
        self.failure: Exception | None = None
        self.was_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether all pieces were read, or failed."""
        return self._whole.is_set()

    def wait(self) -> None:
        """Wait until all pieces are there; raises what a read raised."""
        self._whole.wait()
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        """Wait until nothing is read any more, whatever came of it."""
        self._whole.wait()

    def note(self, failure: Exception | None, at_s: float) -> None:
        """Count one piece; called under the reader's lock."""
        self.failure = self.failure or failure
        self._left -= 1
        if self._left == 0:
            self.done_s = at_s
            self._whole.set()


class Read(NamedTuple):
    """One read: into memory at `address`, and what waits for it."""

    file: int
    address: int
    offset_bytes: int
    size_bytes: int
    fetches: tuple[Fetch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSums:
    """What was read so far, and for how long at least one read was under way."""

    read_bytes: int
    busy_s: float


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
        self._files = _open_all(self._paths)
        self._sizes_bytes = tuple(os.fstat(file).st_size for file in self._files)
        self._changed = threading.Condition()
        self._wanted: deque[Read] = deque()
        self._ahead: deque[Read] = deque()
        self._under_way = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._read_bytes = 0
        self._is_closed = False
        self._threads = tuple(
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True)
            for number in range(threads)
        )
        for thread in self._threads:
            thread.start()

    def descriptor(self, file: int) -> int:
        """Return the open file with that index."""
        return self._files[file]

    def submit(self, reads: Iterable[Read], *, is_ahead: bool = False) -> None:
        """Begin reads, in their order."""
        with self._changed:
            waiting = self._ahead if is_ahead else self._wanted
            before = len(waiting)
            waiting.extend(reads)
            self._changed.notify(len(waiting) - before)

    def hasten(self, fetches: Iterable[Fetch]) -> None:
        """Have what was only read ahead go before all else that was not begun."""
        wanted = set(map(id, fetches))
        with self._changed:
            kept: deque[Read] = deque()
            for read in self._ahead:
                is_wanted = any(id(fetch) in wanted for fetch in read.fetches)
                (self._wanted if is_wanted else kept).append(read)
            self._ahead = kept

    def cancel(self, fetch: Fetch) -> None:
        """Give up what was not begun of a fetch, and wait for the rest."""
        with self._changed:
            kept: deque[Read] = deque()
            for read in self._ahead:
                if len(read.fetches) == 1 and read.fetches[0] is fetch:
                    fetch.was_cancelled = True
                    fetch.note(None, self._clock())
                else:
                    kept.append(read)
            self._ahead = kept
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
            for waiting in (self._wanted, self._ahead):
                for read in waiting:
                    for fetch in read.fetches:
                        fetch.was_cancelled = True
                        fetch.note(None, self._clock())
                waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for file in self._files:
            os.close(file)

    def _work(self) -> None:
        while (read := self._next()) is not None:
            failure: Exception | None = None
            try:
                self._carry_out(read)
            except Exception as error:  # whoever waits raises it
                failure = error
            with self._changed:
                now_s = self._clock()
                self._under_way -= 1
                if self._under_way == 0:
                    self._busy_s += now_s - self._busy_since_s
                if failure is None:
                    self._read_bytes += read.size_bytes
                for fetch in read.fetches:
                    fetch.note(failure, now_s)

    def _next(self) -> Read | None:
        with self._changed:
            while not self._wanted and not self._ahead:
                if self._is_closed:
                    return None
                self._changed.wait()
            if self._under_way == 0:
                self._busy_since_s = self._clock()
            self._under_way += 1
            return self._wanted.popleft() if self._wanted else self._ahead.popleft()

    def _carry_out(self, read: Read) -> None:
        """Read until all is there, or all that the file has."""
        address, offset_bytes, left_bytes = read.address, read.offset_bytes, read.size_bytes
        end_bytes = min(offset_bytes + left_bytes, self._sizes_bytes[read.file])
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
            if offset_bytes < end_bytes and offset_bytes % PAGE_BYTES:
                raise self._failure(read, f"only {got_bytes:,} bytes came")

    def _failure(self, read: Read, reason: str) -> ModelError:
        return ModelError(
            f"{self._paths[read.file]} cannot be read at byte {read.offset_bytes:,} "
            f"({read.size_bytes:,} bytes): {reason}.",
            hint="Check the disk and the file, and download the model again if it is damaged.",
        )


def _open_all(paths: Sequence[str]) -> tuple[int, ...]:
    files: list[int] = []
    direct = getattr(os, "O_DIRECT", 0)
    try:
        for path in paths:
            try:
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct))
            except OSError:  # no direct reads on this file system: through the page cache
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        for file in files:
            os.close(file)
        raise ModelError(
            f"{error.filename} cannot be opened: {error.strerror or error}."
        ) from error
    return tuple(files)
