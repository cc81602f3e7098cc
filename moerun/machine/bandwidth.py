"""How fast the storage under a file reads, by reading pieces of it past the page cache.

Belief: with O_DIRECT, Linux reads from the device into the caller's memory, where address, offset
and length are whole blocks - open(2); other systems have no such flag, and what the page cache
holds would be measured there - checked by tests/test_bandwidth.py.

Knows: direct reads of random pieces by several threads.
Does not know: why they are read, or what an expert is.
"""

import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from moerun.errors import ProbeFailed

_BLOCK_BYTES: Final = 4096
_LARGEST_PIECE_BYTES: Final = 16 << 20
_SEED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRate:
    """What was measured, and with what."""

    read_bytes_per_s: float
    piece_bytes: int
    threads: int
    span_s: float


def measure_reading(
    paths: Sequence[str],
    *,
    piece_bytes: int,
    threads: int = 8,
    span_s: float = 0.7,
    clock: Callable[[], float] = time.perf_counter,
) -> ReadingRate:
    """Return the rate of random direct reads of that size from a model's files.

    ProbeFailed where the system or the file system has no direct reads, or a file fails.
    """
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        raise ProbeFailed("this system offers no reads past its page cache")
    piece_bytes = min(_LARGEST_PIECE_BYTES, max(_BLOCK_BYTES, _up_to_block(piece_bytes)))
    reading = _Reading(piece_bytes, until_s=clock() + span_s, clock=clock)
    files: list[int] = []
    try:
        files.extend(os.open(path, os.O_RDONLY | flag) for path in paths)
        started_s = clock()
        workers = [
            threading.Thread(target=reading.read_pieces, args=(files, Random(_SEED + number)))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took_s = clock() - started_s
    except OSError as error:
        raise _failure(error) from error
    finally:
        for file in files:
            os.close(file)
    if reading.failure is not None:
        raise _failure(reading.failure) from reading.failure
    if not reading.read_bytes or took_s <= 0:
        raise ProbeFailed("the model's file could not be read for long enough to time it")
    return ReadingRate(
        read_bytes_per_s=reading.read_bytes / took_s,
        piece_bytes=piece_bytes,
        threads=threads,
        span_s=took_s,
    )


class _Reading:
    """What the threads of one measurement share."""

    def __init__(self, piece_bytes: int, *, until_s: float, clock: Callable[[], float]) -> None:
        self.read_bytes = 0
        self.failure: OSError | None = None
        self._piece_bytes = piece_bytes
        self._until_s = until_s
        self._clock = clock
        self._lock = threading.Lock()

    def read_pieces(self, files: Sequence[int], random: Random) -> None:
        """Read random pieces until the time is over, one at least."""
        try:
            with mmap.mmap(-1, self._piece_bytes) as memory:  # aligned to pages
                sizes = [os.fstat(file).st_size for file in files]
                while self.failure is None:
                    number = random.choices(range(len(files)), weights=sizes)[0]
                    pieces = max(1, sizes[number] // self._piece_bytes)
                    offset = random.randrange(pieces) * self._piece_bytes
                    got_bytes = os.preadv(files[number], [memory], offset)
                    with self._lock:
                        self.read_bytes += got_bytes
                    if self._clock() >= self._until_s:
                        return
        except OSError as error:
            self.failure = error


def _up_to_block(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _failure(error: OSError) -> ProbeFailed:
    return ProbeFailed(
        f"the model's file cannot be read past the page cache ({error.strerror or error})"
    )
