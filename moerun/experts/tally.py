"""Counting what streaming does while it runs: since the start, and over the last minute.

The engine's thread counts; any thread may ask for the sums.

Knows: sums of requests, bytes and times, of decode and prefill apart.
Does not know: what was asked for, or who moves it.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moerun.experts.counters import LayerHeat, Preloading, Traffic
from moerun.experts.interface import CachePolicy, ExpertKey, Supplied

_WINDOW_S: Final = 60.0
_MARK_S: Final = 1.0  # the minute is right to this


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """All sums at one moment."""

    at_s: float
    sums: tuple[float, ...]


class _Sums:
    """Sums of one kind of pass; the order of `values` is that of the fields of `Traffic`."""

    __slots__ = (
        "experts_in",
        "experts_out",
        "hits",
        "misses",
        "read_bytes",
        "span_s",
        "stall_s",
        "tokens",
    )

    def __init__(self) -> None:
        self.span_s = self.stall_s = 0.0
        self.tokens = self.hits = self.misses = self.read_bytes = 0
        self.experts_in = self.experts_out = 0

    def values(self) -> tuple[float, ...]:
        return (
            self.span_s,
            self.tokens,
            self.hits,
            self.misses,
            self.read_bytes,
            self.experts_in,
            self.experts_out,
            self.stall_s,
        )


class Tally:
    """The counters of one run; `at_s` is of one monotonic clock throughout."""

    def __init__(self, *, at_s: float) -> None:
        self._lock = threading.Lock()
        self._decode = _Sums()
        self._prefill = _Sums()
        self._counted_s = at_s
        self._marks: deque[_Mark] = deque([_Mark(at_s=at_s, sums=(0.0,) * 8)])

    def begin_pass(self, at_s: float) -> None:
        """Note that a pass begins, which may be long after the last one."""
        with self._lock:
            self._drop_old(at_s)
            self._counted_s = at_s

    def note(self, supplied: Supplied, *, is_decode: bool) -> None:
        """Take in what one request did."""
        with self._lock:
            sums = self._decode if is_decode else self._prefill
            sums.hits += supplied.hits
            sums.misses += supplied.misses
            sums.read_bytes += supplied.read_bytes
            sums.experts_in += supplied.misses
            sums.experts_out += supplied.evicted
            sums.stall_s += supplied.stall_s

    def note_ahead(self, read_bytes: int, experts: int, *, is_decode: bool) -> None:
        """Take in a read that nothing waited for."""
        with self._lock:
            sums = self._decode if is_decode else self._prefill
            sums.read_bytes += read_bytes
            sums.experts_in += experts

    def end_pass(self, *, tokens: int, span_s: float, at_s: float, is_decode: bool) -> None:
        """Take in that so many tokens went through all layers."""
        with self._lock:
            sums = self._decode if is_decode else self._prefill
            sums.tokens += tokens
            sums.span_s += span_s
            self._counted_s = at_s
            if at_s - self._marks[-1].at_s >= _MARK_S:
                self._marks.append(_Mark(at_s=at_s, sums=self._all()))
            self._drop_old(at_s)

    def traffic(self, at_s: float) -> tuple[Traffic, Traffic, Traffic]:
        """Return decode and prefill since the start, and both over the last minute.

        The span of the first two is the time spent in such passes, that of the last by the clock.
        """
        with self._lock:
            self._drop_old(at_s)
            mark, now = self._marks[0], self._all()
            recent = tuple(n - m for n, m in zip(now, mark.sums, strict=True))
            return (
                _traffic(self._decode.values()),
                _traffic(self._prefill.values()),
                _traffic((at_s - mark.at_s, *recent[1:])),
            )

    def _all(self) -> tuple[float, ...]:
        pairs = zip(self._decode.values(), self._prefill.values(), strict=True)
        return tuple(one + other for one, other in pairs)

    def _drop_old(self, at_s: float) -> None:
        """Keep of the marks from before the window the last, where the window begins.

        Where nothing was counted for longer than that, all that was counted is from before.
        """
        while len(self._marks) > 1 and at_s - self._marks[1].at_s >= _WINDOW_S:
            self._marks.popleft()
        if at_s - self._counted_s >= _WINDOW_S:
            self._marks.clear()
            self._marks.append(_Mark(at_s=at_s - _WINDOW_S, sums=self._all()))


def _traffic(values: Sequence[float]) -> Traffic:
    span_s, tokens, hits, misses, read_bytes, experts_in, experts_out, stall_s = values
    return Traffic(
        span_s=span_s,
        tokens=int(tokens),
        hits=int(hits),
        misses=int(misses),
        read_bytes=int(read_bytes),
        experts_in=int(experts_in),
        experts_out=int(experts_out),
        stall_s=stall_s,
    )


class UseCounts:
    """How often each expert of each layer was asked for."""

    def __init__(self, expert_counts: Mapping[int, int]) -> None:
        self._uses = {layer: [0] * count for layer, count in expert_counts.items()}

    def note(self, layer: int, experts: Sequence[int]) -> None:
        """Take in one request."""
        uses = self._uses[layer]
        for expert in experts:
            uses[expert] += 1

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Return the counts."""
        return {layer: tuple(uses) for layer, uses in self._uses.items()}

    def heat(self, policy: CachePolicy) -> tuple[LayerHeat, ...]:
        """Return the counts with what a policy holds."""
        return tuple(
            LayerHeat(
                layer=layer,
                uses=tuple(uses),
                is_held=tuple(ExpertKey(layer, expert) in policy for expert in range(len(uses))),
            )
            for layer, uses in sorted(self._uses.items())
        )


class Foretelling:
    """What was foretold of the next layer, held against what its router then chose."""

    def __init__(self) -> None:
        self._layer: int | None = None
        self._experts: frozenset[int] = frozenset()
        self._missing: frozenset[int] = frozenset()
        self._asked_bytes = 0
        self.predicted = self.correct = self.read_bytes = self.useful_bytes = 0

    def expect(
        self, layer: int, experts: Sequence[int], *, missing: Sequence[int], asked_bytes: int
    ) -> None:
        """Note what is foretold, and how many bytes of those missing are being read."""
        self._layer = layer
        self._experts, self._missing = frozenset(experts), frozenset(missing)
        self._asked_bytes = asked_bytes
        self.read_bytes += asked_bytes

    def see(self, layer: int, experts: Sequence[int]) -> None:
        """Note what the router of a layer chose."""
        if layer != self._layer:
            return
        self._layer = None
        self.predicted += len(self._experts)
        self.correct += len(self._experts.intersection(experts))
        if self._asked_bytes:
            useful = len(self._missing.intersection(experts))
            self.useful_bytes += self._asked_bytes * useful // len(self._missing)

    def counters(self, experts_per_layer: int) -> Preloading | None:
        """Return the counters; None where nothing was ever foretold nor is to be."""
        if not experts_per_layer and not self.predicted:
            return None
        return Preloading(
            experts_per_layer=experts_per_layer,
            predicted=self.predicted,
            correct=self.correct,
            read_bytes=self.read_bytes,
            useful_bytes=self.useful_bytes,
        )


class Pass:
    """The present run through the layers; times are of the streamer's clock."""

    __slots__ = (
        "ended_s",
        "is_decode",
        "is_open",
        "layer",
        "rows",
        "stall_s",
        "started_s",
        "supplied_s",
    )

    def __init__(self) -> None:
        self.is_open = False
        self.is_decode = False
        self.layer = -1
        self.rows = 0
        self.started_s = self.supplied_s = self.ended_s = self.stall_s = 0.0

    def begin(self, now_s: float) -> None:
        """Begin; the first layer whose rows are seen tells them, since the last may have fewer."""
        self.is_open = True
        self.is_decode = False
        self.rows = 0
        self.started_s = self.supplied_s = now_s
        self.stall_s = 0.0
