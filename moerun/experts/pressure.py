"""Watches memory while a model streams, and has the cache of experts follow it.

A thread looks two to twenty times a second, the less is left the more often, and up to a hundred
times while others take memory. The machine may sleep, or the process be stopped, between two
looks: what was read before says nothing then, so the watch begins anew, and nothing that happened
meanwhile counts as pressure.

Knows: when to look, and how two readings make one look.
Does not know: where readings come from, what a budget should be, or how a cache shrinks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from moerun.errors import EngineOutOfMemory
from moerun.experts.budget import (
    Budget,
    CacheBounds,
    Look,
    Pool,
    after_a_gap,
    first_budget,
    next_budget,
    next_look_s,
)
from moerun.machine.description import HOST
from moerun.machine.pressure import MemoryPools, PoolReading
from moerun.units import format_gib

# A look that comes so much late, or time that passed while the machine slept, is a gap.
_GAP_S: Final = 2.0
_SLEEP_S: Final = 0.5
_STALL_SPAN_S: Final = 1.0  # waiting is counted over that: one wait in a tenth means little


class Cache(Protocol):
    """What is watched over: a cache whose size may change at any time, from any thread."""

    @property
    def cache_bytes(self) -> int:
        """How many bytes experts may take now."""
        ...

    @property
    def anonymous_bytes(self) -> int:
        """How many bytes of experts are held in memory that is no page cache."""
        ...

    def resize(self, cache_bytes: int) -> int:
        """Hold no more than that from now on; return what holds."""
        ...


class Pools(Protocol):
    """Where readings come from."""

    def read(self) -> tuple[PoolReading, ...]:
        """Return what every pool says now."""
        ...

    def alarms(self) -> int:
        """Return how often the kernel signalled pressure since the last call."""
        ...

    def reopen(self) -> None:
        """Find the pools anew."""
        ...

    def close(self) -> None:
        """Read no more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read at one time. `asleep_s` is how long the machine slept since it started."""

    at_s: float
    asleep_s: float
    held_bytes: int
    pools: tuple[PoolReading, ...]
    alarms: int = 0


def look_at(history: tuple[Reading, ...]) -> Look:
    """Return what the last of some readings in a row says, the earlier ones giving the rates.

    A signal of the kernel counts for the groups, as waiting all the time.
    """
    now, before, first = history[-1], history[-2:][0], history[0]
    pools = []
    for index, pool in enumerate(now.pools):
        is_same = all(_has_pool(reading, index, pool.name) for reading in (first, before))
        stall_fraction = _stall_fraction(first, now, index) if is_same else 0.0
        if index and now.alarms:
            stall_fraction = 1.0
        pools.append(
            Pool(
                name=pool.name,
                total_bytes=pool.total_bytes,
                available_bytes=pool.available_bytes,
                swap_bytes=pool.swap_bytes,
                stall_fraction=stall_fraction,
                falling_bytes_per_s=_falling_bytes_per_s(before, now, index) if is_same else 0.0,
            )
        )
    return Look(at_s=now.at_s, held_bytes=now.held_bytes, pools=tuple(pools))


def is_gap(before: Reading, now: Reading) -> bool:
    """Whether the machine slept between two readings, or the process was stopped."""
    return now.at_s - before.at_s > _GAP_S or now.asleep_s - before.asleep_s > _SLEEP_S


class MemoryGuard:
    """A guard of a streamer: its cache follows memory, and an answer ends where none is left."""

    def __init__(
        self,
        bounds: CacheBounds,
        *,
        open_pools: Callable[[], Pools] = MemoryPools,
        clock: Callable[[], float] = time.monotonic,
        asleep: Callable[[], float] | None = None,
        pace: Callable[[Budget, Look], float] = next_look_s,
    ) -> None:
        self._bounds = bounds
        self._open_pools = open_pools
        self._clock = clock
        self._asleep = asleep or asleep_s
        self._pace = pace
        self._cache: Cache | None = None
        self._pools: Pools | None = None
        self._history: deque[Reading] = deque()
        self._budget: Budget | None = None
        self._lowest_bytes = bounds.ceiling_bytes
        self._failure: BaseException | None = None
        self._next_look_s = 0.0
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self.gaps = 0

    def attach(self, cache: Cache) -> None:
        """Begin to watch, unless the cache is to stay as it is or nothing can be read."""
        if not self._bounds.is_adaptive:
            return
        self._cache, self._pools = cache, self._open_pools()
        self._history.append(self._read(cache, self._pools))
        if not self._history[-1].pools:
            self._pools.close()
            return
        found = look_at(tuple(self._history))
        self._adopt(first_budget(self._bounds, found), found, cache)
        self._thread = threading.Thread(target=self._watch, name="memory-guard", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look once, and resize the cache where that says so; the thread does nothing else."""
        cache, pools, budget = self._cache, self._pools, self._budget
        if cache is None or pools is None or budget is None:
            return
        now = self._read(cache, pools)
        if is_gap(self._history[-1], now):
            self.gaps += 1
            pools.reopen()
            now = self._read(cache, pools)
            self._history.clear()
            budget = after_a_gap(budget, now.at_s)
        self._history.append(now)
        while len(self._history) > 2 and self._history[1].at_s <= now.at_s - _STALL_SPAN_S:
            self._history.popleft()
        found = look_at(tuple(self._history))
        self._adopt(next_budget(budget, self._bounds, found), found, cache)

    def check(self) -> None:
        """Raise where no memory is left even for the smallest cache, or watching failed."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        budget = self._budget
        if budget is not None and budget.has_run_out:
            raise EngineOutOfMemory(
                "The host's memory has run out: what is left is not enough even for the smallest "
                f"cache of experts, {format_gib(self._bounds.floor_bytes)}.",
                device=HOST,
                hint="end other programs, or raise the limit of the control group; a smaller "
                "context (--ctx) takes less memory as well",
            )

    def notes(self) -> tuple[str, ...]:
        """Return how memory changed the cache."""
        budget = self._budget
        if budget is None:
            return ()
        if budget.because is not None:
            return (budget.because,)
        if self._lowest_bytes < self._bounds.ceiling_bytes:
            return (
                "memory was short for a while: the experts' cache gave way to "
                f"{self._lowest_bytes / self._bounds.ceiling_bytes:.0%} and is back at its "
                f"{format_gib(self._bounds.ceiling_bytes)}",
            )
        return ()

    def close(self) -> None:
        """End watching; the cache stays as it is."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._pools is not None:
            self._pools.close()
            self._pools = None

    def _watch(self) -> None:
        try:
            while not self._is_over.wait(self._next_look_s):
                self.look()
        except Exception as failure:
            self._failure = failure  # raised where the answer is made: nobody waits for a thread

    def _read(self, cache: Cache, pools: Pools) -> Reading:
        # What is held is read on both sides of what is left: a cache that gives memory back in
        # between must not count twice.
        held_bytes = cache.anonymous_bytes
        found = pools.read()
        return Reading(
            at_s=self._clock(),
            asleep_s=self._asleep(),
            held_bytes=min(held_bytes, cache.anonymous_bytes),
            pools=found,
            alarms=pools.alarms(),
        )

    def _adopt(self, budget: Budget, found: Look, cache: Cache) -> None:
        if budget.cache_bytes != cache.cache_bytes:
            cache.resize(budget.cache_bytes)
        self._lowest_bytes = min(self._lowest_bytes, budget.cache_bytes)
        self._budget = budget
        self._next_look_s = self._pace(budget, found)


def asleep_s() -> float:
    """Return how long the machine has slept since it started, 0 where no clock tells."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _has_pool(reading: Reading, index: int, name: str) -> bool:
    return index < len(reading.pools) and reading.pools[index].name == name


def _stall_fraction(first: Reading, now: Reading, index: int) -> float:
    """Return the share of the time between two readings in which a task waited for memory."""
    before_s, after_s = first.pools[index].stall_s, now.pools[index].stall_s
    span_s = now.at_s - first.at_s
    if before_s is None or after_s is None or span_s <= 0:
        return 0.0
    return min(1.0, max(0.0, (after_s - before_s) / span_s))


def _falling_bytes_per_s(before: Reading, now: Reading, index: int) -> float:
    """Return how fast others take memory: what the cache takes or gives itself is left out.

    A limit that was lowered takes once, and no more.
    """
    span_s = now.at_s - before.at_s
    if span_s <= 0 or before.pools[index].total_bytes != now.pools[index].total_bytes:
        return 0.0
    earlier_bytes = before.pools[index].available_bytes + before.held_bytes
    later_bytes = now.pools[index].available_bytes + now.held_bytes
    return (earlier_bytes - later_bytes) / span_s
