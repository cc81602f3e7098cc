"""All experts in memory: the mechanism that does nothing, under slots or beside them.

Knows: that everything is there.
Does not know: how it came there.
"""

from collections.abc import Collection, Iterable, Sequence

from moerun.engine.interface import MappedFile
from moerun.experts.interface import ExpertKey, Supplied
from moerun.experts.layout import ExpertLayout


class HeldMechanism:
    """The experts of a model that were loaded as a whole."""

    def __init__(self, layout: ExpertLayout) -> None:
        self._expert_bytes = layout.expert_bytes

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Nothing is taken over."""

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Every expert is there."""
        return Supplied(hits=len(experts), misses=0, read_bytes=0, evicted=0, stall_s=0.0)

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Nothing is missing."""
        return 0

    def resize(self, cache_bytes: int) -> None:
        """What was loaded stays."""

    def held_bytes(self) -> int:
        """Return the bytes of all experts."""
        return self._expert_bytes

    def resident_bytes(self) -> int:
        """Return the bytes of all experts: pages that the system took come back by themselves."""
        return self._expert_bytes

    def detach(self) -> None:
        """Nothing was taken over."""


class EveryExpert:
    """The policy of a memory that holds all experts, and that none leaves."""

    def __init__(self, layout: ExpertLayout) -> None:
        self._counts = layout.expert_counts

    def touch(self, key: ExpertKey) -> bool:
        """Say that the expert is held."""
        return key in self

    def insert(self, key: ExpertKey) -> None:
        """It is held already."""

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> Sequence[ExpertKey]:
        """None leaves."""
        return ()

    def remove(self, key: ExpertKey) -> None:
        """It stays."""

    def held(self) -> Iterable[ExpertKey]:
        """Return all experts."""
        return (
            ExpertKey(layer, expert)
            for layer, count in self._counts.items()
            for expert in range(count)
        )

    def __len__(self) -> int:
        """Return how many experts there are."""
        return sum(self._counts.values())

    def __contains__(self, key: object) -> bool:
        """Whether there is such an expert."""
        if not isinstance(key, ExpertKey):
            return False
        return 0 <= key.expert < self._counts.get(key.layer, 0)
