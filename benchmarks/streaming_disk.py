"""How fast a disk is read past the page cache, by several threads at random places.

This is the rate that streaming is held against, so it is measured in the same run on the same
file, with reads as long as the matrices of one expert, beside no other load.

Knows: O_DIRECT reads.
Does not know: experts, or what the rate is compared with.
"""

import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import Final

ALIGNMENT_BYTES: Final = 4096
THREAD_COUNTS: Final = (4, 8)  # 1 and 2 do not fill a disk, 16 gave no more on the one tried
SPAN_S: Final = 1.5


def best_direct_rate(path: Path, *, read_bytes: int) -> float:
    """Return the rate with as many threads as the disk likes best."""
    return max(direct_rate(path, read_bytes=read_bytes, threads=n) for n in THREAD_COUNTS)


def direct_rate(
    path: Path, *, read_bytes: int, threads: int, span_s: float = SPAN_S, seed: int = 0
) -> float:
    """Return bytes per second of random reads in parallel over a span of time."""
    length = -(-read_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    places = max(1, (path.stat().st_size - length) // ALIGNMENT_BYTES)
    done = [0] * threads
    started_s = time.perf_counter()

    def read(thread: int) -> None:
        choose = random.Random(seed * threads + thread)
        # An anonymous mapping, since a direct read needs an aligned place in memory.
        with mmap.mmap(-1, length) as room:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                while time.perf_counter() - started_s < span_s:
                    at = choose.randrange(places) * ALIGNMENT_BYTES
                    done[thread] += os.preadv(descriptor, [room], at)
            finally:
                os.close(descriptor)

    workers = [threading.Thread(target=read, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - started_s)
