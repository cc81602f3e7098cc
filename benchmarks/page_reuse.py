"""What it costs to read a slice into fresh pages, into pages that were there, and to move pages.

`python -m benchmarks.page_reuse [--slice-bytes N] [--rounds N]` writes a file of its own, reads it
past the page cache, and prints the median time of the processor for each slice in microseconds,
with its spread: this is about what the kernel does, so a busy machine matters little.

Knows: the calls that are compared.
Does not know: experts.
"""

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable

from moerun.experts import memory_map

SLICES = 200


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_reuse")
    parser.add_argument("--slice-bytes", type=int, default=544 << 10)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    size_bytes = memory_map.page_ceiling(options.slice_bytes)
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(os.urandom(size_bytes))
        file.truncate(SLICES * size_bytes)
        for number in range(1, SLICES):
            file.seek(number * size_bytes)
            file.write(os.urandom(size_bytes))
        file.flush()
        os.fsync(file.fileno())
        descriptor = os.open(file.name, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        try:
            _measure(descriptor, size_bytes, options.rounds)
        finally:
            os.close(descriptor)


def _measure(descriptor: int, size_bytes: int, rounds: int) -> None:
    room = mmap.mmap(-1, 2 * SLICES * size_bytes + memory_map.PAGE_BYTES)
    view = ctypes.c_char.from_buffer(room)
    first = memory_map.page_ceiling(ctypes.addressof(view))
    memory_map.lay_anonymous(first, first + 2 * SLICES * size_bytes)
    places = [first + number * size_bytes for number in range(2 * SLICES)]

    def read() -> None:
        for number in range(SLICES):
            memory_map.read_into(descriptor, places[number], size_bytes, number * size_bytes)

    def drop() -> None:
        for place in places:
            memory_map.drop(place, place + size_bytes)

    def move() -> None:
        for number in range(SLICES):
            memory_map.move_pages(places[number], places[SLICES + number], size_bytes)

    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("read into fresh pages", read),
        ("read into pages that are there", read),
        ("move the pages", move),
        ("give the pages back", drop),
    )
    spent: dict[str, list[float]] = {name: [] for name, _ in steps}
    for _ in range(rounds):
        for name, step in steps:
            begun_s = time.process_time()
            step()
            spent[name].append((time.process_time() - begun_s) / SLICES * 1e6)
    print(f"processor time for each slice of {size_bytes:,} bytes, {rounds} rounds of {SLICES}:")
    for name, times in spent.items():
        median = statistics.median(times)
        print(f"  {name:32}{median:8.1f} us  ({min(times):.1f} to {max(times):.1f})")
    del view


if __name__ == "__main__":
    main()
