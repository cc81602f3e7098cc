"""How long missing experts took until they could be used.

Knows: the last measurements, and their order.
Does not know: what was measured.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from moerun.experts.counters import Latency

_MOST_KEPT: Final = 20_000


class Latencies:
    """The last 20,000 measurements, and the largest of all."""

    def __init__(self) -> None:
        self._last_s: deque[float] = deque(maxlen=_MOST_KEPT)
        self._count = 0
        self._largest_s = 0.0

    def note(self, spans_s: Iterable[float]) -> None:
        """Take in measurements."""
        for span_s in spans_s:
            self._last_s.append(span_s)
            self._count += 1
            self._largest_s = max(self._largest_s, span_s)

    def summary(self) -> Latency | None:
        """Return the median, the 99th percentile, and the largest; None before the first."""
        if not self._count:
            return None
        ordered = sorted(self._last_s.copy())
        return Latency(
            count=self._count,
            p50_s=ordered[len(ordered) // 2],
            p99_s=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
            largest_s=self._largest_s,
        )
