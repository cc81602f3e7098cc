"""Pages of experts that leave become pages of experts that come.

Memory that is given back and asked for again is cleared by the kernel page by page, which costs
more of the processor than the read that fills it: 234 microseconds for a slice of 544 KiB against
53 into pages that were there, and 9 to move them (`benchmarks/page_reuse.py`). So the pages of a
slice move, as they are, to the address of another slice of as many pages; the read overwrites
them.

Beliefs of Linux: MREMAP_DONTUNMAP moves the pages of a private anonymous mapping and leaves the
old addresses mapped and empty (mremap(2), since 5.7); every moved range is a mapping of its own
from then on, and a process has no more than vm.max_map_count of these. Checked by
tests/test_page_reuse.py.

Knows: which free pages there are, and how many mappings may still be made.
Does not know: whose pages they were, or what is read into them.
"""

from typing import Final

from moerun.experts import memory_map
from moerun.experts.memory_map import PAGE_BYTES

# Of the mappings that the system allows, the engine, its threads and libraries keep the rest.
_SHARE_OF_MAPPINGS: Final = 0.7
# A range that is moved to splits the mapping around it in two, and is one more itself.
_MAPPINGS_PER_RANGE: Final = 2


class PageReuse:
    """Free ranges of pages by their length, between one request's victims and its newcomers."""

    def __init__(self, *, mappings_left: int | None = None) -> None:
        """Count the mappings of this process; `mappings_left` is how many more may be made."""
        if mappings_left is None:
            mappings_left = memory_map.mappings_left(share=_SHARE_OF_MAPPINGS)
        self._ranges_left = mappings_left // _MAPPINGS_PER_RANGE
        self._moved_to: set[int] = set()
        self._free: dict[int, list[int]] = {}
        self._can_move = True
        self.moved_pages = 0

    def offer(self, first: int, last: int) -> None:
        """Take pages that nothing needs any more."""
        if first < last:
            self._free.setdefault(last - first, []).append(first)

    def fill(self, first: int, last: int) -> bool:
        """Put free pages at a range that has none yet; False where there are none that fit."""
        if not self._can_move:
            return False
        free = self._free.get(last - first)
        if not free:
            return False
        if first not in self._moved_to:
            if self._ranges_left < 1:
                return False
            self._ranges_left -= 1
            self._moved_to.add(first)
        source = free.pop()
        if not memory_map.move_pages(source, first, last - first):
            # An older kernel, or no mapping to be had: as if nothing could be moved. What was at
            # the range may be gone (mremap(2)), so new memory is laid there.
            self._can_move = False
            memory_map.drop(source, source + last - first)
            memory_map.lay_anonymous(first, last)
            return False
        self.moved_pages += (last - first) // PAGE_BYTES
        return True

    def drop_rest(self) -> None:
        """Give back what nobody took."""
        for size_bytes, starts in self._free.items():
            for first in starts:
                memory_map.drop(first, first + size_bytes)
        self._free.clear()
