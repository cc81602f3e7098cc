"""The mechanisms by name: made over one memory, in which they take turns.

Knows: which class is which mechanism, and what they share.
Does not know: when one runs, or how it works.
"""

from typing import assert_never

from moerun.errors import UsageError
from moerun.experts.cache import CacheMechanism
from moerun.experts.counters import SsdCacheUse
from moerun.experts.model_memory import ModelMemory
from moerun.experts.order import StreamingOrder
from moerun.experts.paging import PagingMechanism
from moerun.experts.parts import Working
from moerun.experts.policy import DEFAULT_POLICY, make_policy
from moerun.experts.reader import READER_THREADS
from moerun.planning.strategy import StreamingMode


class Mechanisms:
    """Makes the mechanisms of one order; what every token needs is read once for all of them."""

    def __init__(self, order: StreamingOrder) -> None:
        """Open the files; raises ModelError when one cannot be opened."""
        self._order = order
        self._memory = ModelMemory(
            order.layout,
            threads=order.reader_threads or READER_THREADS,
            read_bytes=order.read_bytes,
            ssd_cache=order.ssd_cache,
            model_digest=order.model_digest,
        )

    def start(self, mode: StreamingMode, cache_bytes: int) -> Working:
        """Return a mechanism that holds nothing yet."""
        policy = make_policy(self._order.policy or DEFAULT_POLICY)
        match mode:
            case StreamingMode.CACHE:
                cache = CacheMechanism(self._memory, policy, cache_bytes=cache_bytes)
                return Working(
                    mechanism=cache, policy=policy, latency=cache.latency, notes=self.notes
                )
            case StreamingMode.PAGING:
                paging = PagingMechanism(self._memory, policy, cache_bytes=cache_bytes)
                return Working(mechanism=paging, policy=policy, notes=self.notes)
            case StreamingMode.AUTO | StreamingMode.OFF | StreamingMode.SLOTS:
                raise UsageError(f"'{mode.value}' is no mechanism; use paging or cache")
            case _:
                assert_never(mode)

    def reading(self) -> tuple[int, float]:
        """Return the bytes that were read so far, and for how long a read was under way."""
        sums = self._memory.reader.sums()
        return sums.read_bytes, sums.busy_s

    def copying(self) -> SsdCacheUse | None:
        """Return what the SSD cache holds and did; None without one."""
        cache = self._memory.ssd_cache
        return cache.use() if cache is not None else None

    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how files are read."""
        cache = self._memory.ssd_cache
        return (*self._memory.notes, *(cache.notes() if cache is not None else ()))

    @property
    def reader_threads(self) -> int:
        """How many threads read."""
        return self._order.reader_threads or READER_THREADS

    @property
    def read_bytes(self) -> int:
        """How large one read is, at most."""
        return self._memory.read_bytes

    def close(self) -> None:
        """End the reading threads, and close the files."""
        self._memory.close()


def start_mechanism(order: StreamingOrder) -> Mechanisms:
    """Return what makes the mechanisms of an order."""
    return Mechanisms(order)
