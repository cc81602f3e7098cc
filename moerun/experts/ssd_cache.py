"""Copies of a model's pages on a faster disk, made of what was read: the SSD cache.

A model that lies on a network share or a slow disk is read from there once: what was read into
memory is copied, past the page cache, to the same place of a sparse file in the folder that the
user named, and is read from it the next time, in this run or a later one. A copy never delays a
read: where the disk of the cache cannot keep up, some are not made.

What is in a copy is known by a book beside it. The book names only what was on the disk before it
was written, and the files it was copied from by path, inode, size and time of change; anything
else begins anew. One run at a time uses the copies of a model.

Knows: the copies, their book, and the order of writing.
Does not know: experts, what a read is for, or how the room is shared.
"""

import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.experts.counters import SsdCacheUse
from moerun.experts.memory_map import PAGE_BYTES, drop_from_page_cache, page_floor, read_into
from moerun.experts.order import SsdCacheOrder
from moerun.experts.read_queue import Read
from moerun.experts.spans import Spans
from moerun.experts.ssd_cache_folder import (
    BOOK,
    folder_of_model,
    hold,
    open_copy,
    remove_copies,
    room_bytes,
)
from moerun.experts.state_file import read_value, write_value
from moerun.planning.strategy import Limit

SCHEMA: Final = 1
BUFFERS: Final = 4  # copies that wait for the disk of the cache; more are not made meanwhile
_BYTES_BETWEENBOOKS: Final = 256 << 20  # at most so much is copied again after a crash


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file that was copied from, as it was then."""

    path: str
    inode: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What copies hold: for each source the ranges of pages."""

    sources: tuple[Source, ...] = ()
    ranges: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buffer:
    """Memory for one piece, and where it lies."""

    memory: mmap.mmap
    address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copying:
    """One piece on its way to a copy."""

    file: int
    offset_bytes: int
    size_bytes: int
    buffer: _Buffer


IsSameDisk = Callable[[Path, int], bool]


def on_same_file_system(folder: Path, descriptor: int) -> bool:
    """Whether an open file lies on the file system of a folder: a copy there would win nothing."""
    return os.stat(folder).st_dev == os.fstat(descriptor).st_dev


def open_ssd_cache(
    order: SsdCacheOrder,
    files: Sequence[tuple[str, int]],
    *,
    model_digest: str,
    read_bytes: int,
    is_same_disk: IsSameDisk = on_same_file_system,
) -> tuple["SsdCache | None", str | None]:
    """Return the copies of a model, or a sentence why there are none; nothing here ends a run.

    `files` are the model's, by path and as they were opened to be read, so that what is copied is
    what the book says. `read_bytes` is how large one read is; larger ones are not copied.
    """
    folder = Path(order.path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if all(is_same_disk(folder, descriptor) for _, descriptor in files):
            return None, (
                f"the SSD cache {folder} is not used: it lies on the file system of the model, so "
                "nothing would be won; name a folder on a faster disk"
            )
        own = folder_of_model(folder, model_digest)
        with ExitStack() as opening:
            if not hold(own, opening):
                return None, f"the SSD cache {own} is not used: another run uses it"
            cache = SsdCache(own, files, order.limit, read_bytes, opening)
            opening.pop_all()
            return cache, None
    except OSError as error:
        return None, f"the SSD cache {folder} is not used: {error.strerror or error}"


class SsdCache:
    """Copies of the files of one model, and the thread that writes them."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[tuple[str, int]],
        limit: Limit | None,
        read_bytes: int,
        opening: ExitStack,
    ) -> None:
        """Open the copies in a folder that is locked; `opening` gets what is to be closed.

        Raises OSError.
        """
        self._folder = folder
        self._sources = tuple(_source(path, descriptor) for path, descriptor in files)
        book, self._note = read_value(folder / BOOK, Book, schema=SCHEMA)
        is_of_these = book is not None and book.sources == self._sources
        ranges = book.ranges if book is not None and is_of_these else ()
        self._spans = tuple(Spans(found) for found in ranges)
        model_bytes = sum(source.size_bytes for source in self._sources)
        self.limit_bytes = room_bytes(
            folder, limit, model_bytes=model_bytes, held_bytes=self._all_bytes()
        )
        if len(self._spans) != len(files) or self._all_bytes() > self.limit_bytes:
            remove_copies(folder)
            self._spans = tuple(Spans() for _ in files)
        self._promised_bytes = self._all_bytes()  # held, or on the way to it
        self._copies = tuple(open_copy(folder, number, opening) for number in range(len(files)))
        self._buffer_bytes = page_floor(read_bytes) + 2 * PAGE_BYTES
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(_buffer(self._buffer_bytes))
        self._waiting: queue.SimpleQueue[_Copying | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._read_bytes = self._written_bytes = self._unbooked_bytes = 0
        self._reads = self._writes = True
        self._thread = threading.Thread(target=self._work, name="ssd-cache", daemon=True)
        self._thread.start()
        self._held = ExitStack()
        self._held.push(opening.pop_all())

    def supply(self, read: Read, end_bytes: int) -> bool:
        """Read from the copy up to `end_bytes` of the file; False where it does not hold that."""
        with self._lock:
            last = read.offset_bytes + read.size_bytes
            if not self._reads or not self._spans[read.file].covers(read.offset_bytes, last):
                return False
        copy = self._copies[read.file]
        address, offset_bytes, left_bytes = read.address, read.offset_bytes, read.size_bytes
        while offset_bytes < end_bytes:
            try:
                got_bytes = read_into(copy, address, left_bytes, offset_bytes)
            except OSError as error:
                return self._forsake(f"cannot be read ({error.strerror or error})")
            if got_bytes == 0 or (offset_bytes + got_bytes < end_bytes and got_bytes % PAGE_BYTES):
                return self._forsake("is shorter than its book says")
            address += got_bytes
            offset_bytes += got_bytes
            left_bytes -= got_bytes
        with self._lock:
            self._read_bytes += read.size_bytes
        return True

    def keep(self, read: Read) -> None:
        """Have what was just read copied, where there is room and the disk keeps up."""
        if read.size_bytes > self._buffer_bytes:
            return
        with self._lock:
            last = read.offset_bytes + read.size_bytes
            new_bytes = self._spans[read.file].missing_bytes(read.offset_bytes, last)
            if not self._writes or self._promised_bytes + new_bytes > self.limit_bytes:
                return
            try:
                buffer = self._free.get_nowait()
            except queue.Empty:
                return
            self._promised_bytes += new_bytes
        ctypes.memmove(buffer.address, read.address, read.size_bytes)
        self._waiting.put(
            _Copying(
                file=read.file,
                offset_bytes=read.offset_bytes,
                size_bytes=read.size_bytes,
                buffer=buffer,
            )
        )

    def use(self) -> SsdCacheUse:
        """Return what the copies hold and did."""
        with self._lock:
            return SsdCacheUse(
                path=str(self._folder),
                held_bytes=self._all_bytes(),
                limit_bytes=self.limit_bytes,
                read_bytes=self._read_bytes,
                written_bytes=self._written_bytes,
            )

    def notes(self) -> tuple[str, ...]:
        """Return what people should know of the copies."""
        return (self._note,) if self._note is not None else ()

    def close(self) -> None:
        """Write what waits, then the book."""
        self._waiting.put(None)
        self._thread.join()
        self._write_book()
        self._held.close()

    def _work(self) -> None:
        while (piece := self._waiting.get()) is not None:
            if self._writes:
                self._write(piece)
            self._free.put(piece.buffer)
            if self._unbooked_bytes >= _BYTES_BETWEENBOOKS:
                self._write_book()

    def _write(self, piece: _Copying) -> None:
        copy, written_bytes = self._copies[piece.file], 0
        content = memoryview(piece.buffer.memory)[: piece.size_bytes]
        try:
            while written_bytes < piece.size_bytes:
                rest = content[written_bytes:]
                written_bytes += os.pwrite(copy, rest, piece.offset_bytes + written_bytes)
        except OSError as error:
            self._end_writing(f"takes no more ({error.strerror or error})")
            return
        finally:
            content.release()
        if not _is_direct(copy):
            drop_from_page_cache(copy, piece.offset_bytes, piece.size_bytes)
        with self._lock:
            end = piece.offset_bytes + piece.size_bytes
            self._spans[piece.file].add(piece.offset_bytes, end)
            self._written_bytes += piece.size_bytes
        self._unbooked_bytes += piece.size_bytes

    def _write_book(self) -> None:
        """Write down what is held, once all of it has reached the disk."""
        self._unbooked_bytes = 0
        with self._lock:
            ranges = tuple(spans.ranges() for spans in self._spans)
        if not self._reads:  # the next run begins anew
            (self._folder / BOOK).unlink(missing_ok=True)
            return
        try:
            for copy in self._copies:
                os.fsync(copy)
        except OSError as error:
            self._forsake(f"did not reach its disk ({error.strerror or error})")
            (self._folder / BOOK).unlink(missing_ok=True)
            return
        failure = write_value(
            self._folder / BOOK, Book(sources=self._sources, ranges=ranges), schema=SCHEMA
        )
        if failure is not None:
            self._end_writing(f"takes no more ({failure})")

    def _end_writing(self, reason: str) -> None:
        self._writes = False
        self._note = f"the SSD cache {self._folder} {reason}; what it holds is still read"

    def _forsake(self, reason: str) -> bool:
        """Use the copies no more; the model's own files are read instead."""
        with self._lock:
            self._reads = self._writes = False
        self._note = f"the SSD cache {self._folder} {reason}; the model's own files are read"
        return False

    def _all_bytes(self) -> int:
        return sum(spans.total_bytes for spans in self._spans)


def _source(path: str, descriptor: int) -> Source:
    """Return an open file as it is. Its device is left out: a share has another at each mount."""
    found = os.fstat(descriptor)
    return Source(
        path=os.path.realpath(path),
        inode=found.st_ino,
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
    )


def _buffer(size_bytes: int) -> _Buffer:
    memory = mmap.mmap(-1, size_bytes)
    return _Buffer(memory=memory, address=ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def _is_direct(copy: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(copy, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))
