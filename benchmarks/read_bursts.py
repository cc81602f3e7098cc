"""How long a few missing experts take to read, by reader threads and by how slices are cut.

`python -m benchmarks.read_bursts FILE [--slice-bytes N] [--rounds N]` reads random places of a
large file past the page cache, as one request of the router does: three slices for each missing
expert, all at once. The combinations take turns, so that what else happens on the machine meets
all of them; the medians and the processor time are printed.

Knows: the reader that runs.
Does not know: experts, or what is held.
"""

import argparse
import ctypes
import itertools
import mmap
import random
import statistics
import time
from pathlib import Path

from moerun.experts.memory_map import PAGE_BYTES, lay_anonymous, page_ceiling
from moerun.experts.read_queue import Fetch, Read
from moerun.experts.reader import Reader

SLICES_PER_EXPERT = 3
EXPERTS = (1, 2, 4)
THREADS = (2, 4, 8, 16)
PARTS = (1, 2, 4)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.read_bursts")
    parser.add_argument("file", type=Path)
    parser.add_argument("--slice-bytes", type=int, default=544 << 10)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    slice_bytes = page_ceiling(options.slice_bytes)
    slices = SLICES_PER_EXPERT * max(EXPERTS)
    room = mmap.mmap(-1, slices * slice_bytes + PAGE_BYTES)
    view = ctypes.c_char.from_buffer(room)
    first = page_ceiling(ctypes.addressof(view))
    lay_anonymous(first, first + slices * slice_bytes)
    ctypes.memset(first, 1, slices * slice_bytes)  # pages that are there, as moved pages are
    readers = {threads: Reader([str(options.file)], threads=threads) for threads in THREADS}
    spent: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    burst = _Burst(options.file, first, slice_bytes)
    for _ in range(options.rounds):
        for experts, threads, parts in itertools.product(EXPERTS, THREADS, PARTS):
            found = burst.read(readers[threads], experts, parts)
            spent.setdefault((experts, threads, parts), []).append(found)
    for reader in readers.values():
        reader.close()
    del view
    print(f"slices of {slice_bytes:,} bytes, {options.rounds} rounds:")
    for (experts, threads, parts), bursts in spent.items():
        wall_s = statistics.median(both[0] for both in bursts)
        processor_s = statistics.median(both[1] for both in bursts)
        rate = experts * SLICES_PER_EXPERT * slice_bytes / wall_s
        print(
            f"  {experts} experts, {threads:2} threads, slices in {parts}: {wall_s * 1e3:6.2f} ms, "
            f"{rate / 1e9:.2f} GB/s, processor {processor_s * 1e3:.2f} ms"
        )


class _Burst:
    """Reads of random places into the same memory."""

    def __init__(self, file: Path, address: int, slice_bytes: int) -> None:
        self._address = address
        self._slice_bytes = slice_bytes
        self._places = max(1, (file.stat().st_size - slice_bytes) // PAGE_BYTES)
        self._random = random.Random(1)

    def read(self, reader: Reader, experts: int, parts: int) -> tuple[float, float]:
        """Return the time and the processor time of one burst."""
        piece_bytes = page_ceiling(-(-self._slice_bytes // parts))
        reads: list[Read] = []
        fetches: list[Fetch] = []
        for number in range(SLICES_PER_EXPERT * experts):
            place = self._random.randrange(self._places) * PAGE_BYTES
            for start in range(0, self._slice_bytes, piece_bytes):
                fetch = Fetch(1, 0.0)
                fetches.append(fetch)
                size_bytes = min(piece_bytes, self._slice_bytes - start)
                address = self._address + number * self._slice_bytes + start
                reads.append(Read(0, address, place + start, size_bytes, (fetch,)))
        begun_s, processor_s = time.perf_counter(), time.process_time()
        reader.submit(reads)
        for fetch in reversed(fetches):
            fetch.wait()
        return time.perf_counter() - begun_s, time.process_time() - processor_s


if __name__ == "__main__":
    main()
