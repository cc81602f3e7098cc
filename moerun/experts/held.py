"""Experts that are in memory anyhow, of all layers or of some, under slots or beside them.

Knows: that everything is there.
Does not know: how it came there.
"""

from collections.abc import Collection, Iterable, Sequence

from moerun.engine.interface import MappedFile
from moerun.experts.interface import ExpertKey, Mechanism, Supplied
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


class PartlyHeld:
    """A mechanism for some layers of a model, whose other layers are all in memory."""

    def __init__(self, inner: Mechanism, layers: Collection[int]) -> None:
        self._inner = inner
        self._layers = frozenset(layers)

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files."""
        self._inner.attach(mapped)

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Have the experts of a layer in memory, unless they all are."""
        if layer in self._layers:
            return self._inner.supply(layer, experts)
        return Supplied(hits=len(experts), misses=0, read_bytes=0, evicted=0, stall_s=0.0)

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Start reading experts that may be needed soon, unless they all are in memory."""
        return self._inner.prefetch(layer, experts) if layer in self._layers else 0

    def resize(self, cache_bytes: int) -> None:
        """Hold no more than that from now on."""
        self._inner.resize(cache_bytes)

    def held_bytes(self) -> int:
        """Return the bytes of the experts that are held, of layers that stream."""
        return self._inner.held_bytes()

    def resident_bytes(self) -> int:
        """Return the bytes of their pages that are in memory, as the system tells (mincore)."""
        return self._inner.resident_bytes()

    def detach(self) -> None:
        """Stop, and leave every address readable through the file's own mapping."""
        self._inner.detach()


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
