"""The mechanisms by name: made over one memory, in which they take turns.

Knows: which class is which mechanism, and what they share.
Does not know: when one runs, or how it works.
"""

from dataclasses import replace
from typing import Final, assert_never

from moerun.errors import UsageError
from moerun.experts.cache import CacheMechanism
from moerun.experts.counters import SsdCacheUse
from moerun.experts.held import EveryExpert, HeldMechanism, PartlyHeld
from moerun.experts.interface import Mechanism
from moerun.experts.model_memory import ModelMemory
from moerun.experts.order import StreamingOrder
from moerun.experts.paging import PagingMechanism
from moerun.experts.parts import Working
from moerun.experts.policy import DEFAULT_POLICY, make_policy
from moerun.experts.reader import READER_THREADS
from moerun.experts.slots import SlotDesk, SlotMechanism
from moerun.planning.strategy import StreamingMode

# What runs until something was measured. Where less than half of the experts is held, memory of
# its own, which no other program's reading drives out; where more is held, the page cache, whose
# pages need no clearing before they are read into: 27 tokens/s against 24 at 60 % of a model of
# 4.9 GiB, and 20 against 21 at 40 % (`python -m benchmarks.streaming --mode ...`).
_MOSTLY_HELD_FRACTION: Final = 0.5


class Mechanisms:
    """Makes the mechanisms of one order; what every token needs is read once for all of them.

    `desk` is where the mechanism of slots takes its slots from.
    """

    def __init__(self, order: StreamingOrder, desk: SlotDesk | None = None) -> None:
        """Open the files that stream; raises ModelError when one cannot be opened."""
        self._order = order
        self._desk = desk
        self._memory = None
        if order.mode is not StreamingMode.OFF:
            self._memory = ModelMemory(
                order.layout,
                threads=order.reader_threads or READER_THREADS,
                read_bytes=order.read_bytes,
                ssd_cache=order.ssd_cache,
                model_digest=order.model_digest,
            )

    def start(self, mode: StreamingMode, cache_bytes: int) -> Working:
        """Return a mechanism that holds nothing yet."""
        if mode is StreamingMode.SLOTS:
            return self._over(self.start(mechanism_below(self._order), cache_bytes))
        if mode is StreamingMode.OFF and self._order.mode is StreamingMode.OFF:
            layout = self._order.layout
            return Working(mechanism=HeldMechanism(layout), policy=EveryExpert(layout))
        if self._memory is None:
            raise UsageError(f"'{mode.value}' is no mechanism for experts that are all in memory")
        policy = make_policy(self._order.policy or DEFAULT_POLICY)
        match mode:
            case StreamingMode.CACHE:
                cache = CacheMechanism(self._memory, policy, cache_bytes=cache_bytes)
                return Working(
                    mechanism=self._partly(cache),
                    policy=policy,
                    latency=cache.latency,
                    notes=self.notes,
                )
            case StreamingMode.PAGING:
                paging = PagingMechanism(self._memory, policy, cache_bytes=cache_bytes)
                return Working(mechanism=self._partly(paging), policy=policy, notes=self.notes)
            case StreamingMode.AUTO | StreamingMode.OFF:
                raise UsageError(f"'{mode.value}' is no mechanism; use paging or cache")
            case _:
                assert_never(mode)

    def _over(self, below: Working) -> Working:
        """Return slots over a mechanism that has the experts in memory."""
        if self._desk is None:
            raise UsageError("slots for experts were not planned; use paging or cache")
        name = self._order.policy or DEFAULT_POLICY
        slots = SlotMechanism(self._desk, below.mechanism, lambda: make_policy(name))
        return replace(below, mechanism=slots, latency=slots.latency, is_settled=slots.is_full)

    def _partly(self, mechanism: Mechanism) -> Mechanism:
        """Return a mechanism that also answers for layers with slots that do not stream."""
        layers = self._order.layout.by_layer
        if all(tensor.layer in layers for tensor in self._order.slotted):
            return mechanism
        return PartlyHeld(mechanism, layers)

    def reading(self) -> tuple[int, float]:
        """Return the bytes that were read so far, and for how long a read was under way."""
        if self._memory is None:
            return 0, 0.0
        sums = self._memory.reader.sums()
        return sums.read_bytes, sums.busy_s

    def copying(self) -> SsdCacheUse | None:
        """Return what the SSD cache holds and did; None without one."""
        cache = self._memory.ssd_cache if self._memory is not None else None
        return cache.use() if cache is not None else None

    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how files are read."""
        if self._memory is None:
            return ()
        cache = self._memory.ssd_cache
        return (*self._memory.notes, *(cache.notes() if cache is not None else ()))

    @property
    def reader_threads(self) -> int:
        """How many threads read."""
        return self._order.reader_threads or READER_THREADS

    @property
    def read_bytes(self) -> int:
        """How large one read is, at most."""
        return self._memory.read_bytes if self._memory is not None else 0

    def close(self) -> None:
        """End the reading threads, and close the files."""
        if self._memory is not None:
            self._memory.close()


def first_mechanism(order: StreamingOrder) -> StreamingMode:
    """Return what runs before anything was measured, by the share of the experts that is held."""
    held_fraction = order.cache_bytes / max(1, order.layout.expert_bytes)
    return StreamingMode.PAGING if held_fraction >= _MOSTLY_HELD_FRACTION else StreamingMode.CACHE


def mechanism_below(order: StreamingOrder) -> StreamingMode:
    """Return what has experts in memory below slots, or where these are not in use."""
    return first_mechanism(order) if order.mode is StreamingMode.AUTO else order.mode
