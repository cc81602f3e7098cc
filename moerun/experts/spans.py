"""Which ranges of a file are there: disjoint, in order, grown by one range at a time.

Knows: begins and ends.
Does not know: files, or what a range holds.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Spans:
    """A set of positions, kept as ranges; neighbours and overlaps are one range."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        self.total_bytes = 0
        for begin, end in ranges:
            self.add(begin, end)

    def covers(self, begin: int, end: int) -> bool:
        """Whether all of a range is there."""
        index = bisect_right(self._begins, begin) - 1
        return index >= 0 and end <= self._ends[index]

    def missing_bytes(self, begin: int, end: int) -> int:
        """Return how much of a range is not there."""
        first, last = self._touched(begin, end)
        held = (
            min(end, self._ends[index]) - max(begin, self._begins[index])
            for index in range(first, last)
        )
        return end - begin - sum(held)

    def add(self, begin: int, end: int) -> None:
        """Have a range from now on."""
        if begin >= end:
            return
        self.total_bytes += self.missing_bytes(begin, end)
        first, last = self._touched(begin, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges in their order."""
        return tuple(zip(self._begins, self._ends, strict=True))

    def _touched(self, begin: int, end: int) -> tuple[int, int]:
        """Return from which to before which range one is met, its neighbours included."""
        return bisect_left(self._ends, begin), bisect_right(self._begins, end)
