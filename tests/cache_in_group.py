"""A process that holds a cache under a guard: `python -m tests.cache_in_group PROCS CACHE FLOOR`.

It enters the group, fills the cache, and says `full`. Then, for every line it reads, it says how
many bytes the cache may hold; the end of its input ends it.
"""

import mmap
import os
import sys
import threading
from pathlib import Path

from moerun.errors import MoerunError
from moerun.experts.budget import CacheBounds
from moerun.experts.pressure import MemoryGuard

PAGE_BYTES = mmap.PAGESIZE


class RealCache:
    """Anonymous memory of which the first bytes are held."""

    def __init__(self, cache_bytes: int) -> None:
        self._memory = mmap.mmap(-1, cache_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._lock = threading.Lock()
        self.cache_bytes = cache_bytes

    @property
    def anonymous_bytes(self) -> int:
        return self.cache_bytes

    def fill(self) -> None:
        for start in range(0, self.cache_bytes, PAGE_BYTES):
            self._memory[start] = 1

    def resize(self, cache_bytes: int) -> int:
        with self._lock:
            start = -(-cache_bytes // PAGE_BYTES) * PAGE_BYTES
            if start < len(self._memory):
                self._memory.madvise(mmap.MADV_DONTNEED, start, len(self._memory) - start)
            self.cache_bytes = cache_bytes
        return cache_bytes


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    processes, cache_bytes, floor_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    Path(processes).write_text(str(os.getpid()))
    cache = RealCache(cache_bytes)
    cache.fill()
    guard = MemoryGuard(CacheBounds(floor_bytes=floor_bytes, ceiling_bytes=cache_bytes))
    guard.attach(cache)
    say("full")
    for _ in sys.stdin:
        try:
            guard.check()
            say(f"{cache.cache_bytes} {'; '.join(guard.notes())}")
        except MoerunError as error:
            say(error.message)
    guard.close()


if __name__ == "__main__":
    main()
