"""The two seams of this room: what decides which expert leaves, and what moves the bytes.

Knows: the protocols, and the values that pass through them.
Does not know: any policy or mechanism, or the engine.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from moerun.engine.interface import MappedFile


class ExpertKey(NamedTuple):
    """One expert of one layer; a plain pair, since millions are compared."""

    layer: int
    expert: int


class CachePolicy(Protocol):
    """Which experts are held. Pure: no clock but its own count, no chance.

    The mechanism and the simulator drive the very same object.
    """

    def touch(self, key: ExpertKey) -> bool:
        """Note a use; True when the expert is held."""
        ...

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert from now on."""
        ...

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> Sequence[ExpertKey]:
        """Name up to `count` held experts that may leave, the least wanted first.

        None of `keep` is among them. They stay held until `remove`.
        """
        ...

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no more."""
        ...

    def held(self) -> Iterable[ExpertKey]:
        """Return the experts that are held, the least wanted first."""
        ...

    def __len__(self) -> int:
        """Return how many experts are held."""
        ...

    def __contains__(self, key: object) -> bool:
        """Whether an expert is held."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplied:
    """What one call of `supply` did."""

    hits: int
    misses: int
    read_bytes: int
    evicted: int
    stall_s: float


class Mechanism(Protocol):
    """Brings experts into memory at the addresses where the engine reads them.

    `attach` is called once after loading. `supply` returns when every named expert may be read.
    `prefetch` only starts reading, in room that holds nothing that is wanted more. Calls come from
    the engine's thread, `resize` from any.
    """

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files."""
        ...

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Have the experts of a layer in memory."""
        ...

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Start reading experts that may be needed soon; return the bytes asked for."""
        ...

    def resize(self, cache_bytes: int) -> None:
        """Hold no more than that from now on; what is too much leaves at once."""
        ...

    def held_bytes(self) -> int:
        """Return the bytes of the experts that are held, by the books."""
        ...

    def resident_bytes(self) -> int:
        """Return the bytes of expert pages that are in memory, as the system tells (mincore)."""
        ...

    def detach(self) -> None:
        """Stop, and leave every address readable through the file's own mapping."""
        ...
