"""How fast this machine's processor reads its memory, which bounds how fast it computes a token.

Belief: numpy lets other threads run while it sums an array of numbers, so that several threads
read at once - numpy/_core/src/umath/reduction.c @ 2 - checked by tests/engine/test_memory_rate.py.

Knows: reading more memory than caches hold, by so many threads, for so long.
Does not know: what is compared with it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import numpy

_READ_BYTES: Final = 256 << 20  # all threads together; more than a processor's caches
_LEAST_BYTES: Final = 4 << 20  # of one thread
_MOST_THREADS: Final = 64
_SPAN_S: Final = 0.1
_TIMES: Final = 3  # of which the best counts, since others use the memory as well


def measure_memory_rate(threads: int) -> float:
    """Return how many bytes these threads read in a second at best, each from its own memory."""
    return max(read_memory(threads, span_s=_SPAN_S) for _ in range(_TIMES))


def read_memory(
    threads: int, *, span_s: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how many bytes these threads read in a second of one span."""
    threads = max(1, min(_MOST_THREADS, threads))
    each_bytes = max(_LEAST_BYTES, _READ_BYTES // threads)
    all_there = threading.Barrier(threads)
    read_bytes = [0] * threads
    starts_s, ends_s = [0.0] * threads, [0.0] * threads

    def read(number: int) -> None:
        numbers = numpy.ones(each_bytes // 8, dtype=numpy.int64)  # touched, so it is there
        all_there.wait()
        starts_s[number] = ends_s[number] = clock()
        while ends_s[number] < starts_s[number] + span_s:
            numbers.sum()
            read_bytes[number] += numbers.nbytes
            ends_s[number] = clock()

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return sum(read_bytes) / max(max(ends_s) - min(starts_s), 1e-9)
