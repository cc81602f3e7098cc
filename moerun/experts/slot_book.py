"""Which expert of a layer is in which of its slots; pure, so that a simulator can drive it.

Every layer has slots of its own, since its tensors are structs of their own in the engine; so every
layer has a policy of its own, too, which names who leaves among the layer's experts alone.

Knows: slots by number, and the policy that decides.
Does not know: devices, bytes, or how an expert comes into a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moerun.experts.interface import CachePolicy, ExpertKey

# A policy takes a layer that is touched again right after itself for the same pass. Where it knows
# one layer alone, this key, which is of none, stands for all that came in between.
_BETWEEN_PASSES: Final = ExpertKey(-1, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """What a request comes to: `moves` are the experts that are missing, each with its slot."""

    hits: int
    moves: tuple[tuple[int, int], ...] = ()
    evicted: int = 0


class SlotBook:
    """The slots of one layer; at most as many experts can be asked for at once."""

    def __init__(self, layer: int, *, slots: int, policy: CachePolicy) -> None:
        self._layer = layer
        self._slots = slots
        self._policy = policy
        self._places: dict[int, int] = {}  # of the experts that are held
        self._free = list(range(slots - 1, -1, -1))
        self._keys: dict[int, ExpertKey] = {}

    def __len__(self) -> int:
        """Return how many slots hold an expert."""
        return len(self._places)

    def __contains__(self, expert: object) -> bool:
        """Whether an expert is in a slot."""
        return expert in self._places

    @property
    def is_full(self) -> bool:
        """Whether the next missing expert takes the place of another."""
        return not self._free

    def request(self, experts: Sequence[int]) -> SlotRequest:
        """Give every one of these different experts a slot, as if the moves were done."""
        touch = self._policy.touch
        touch(_BETWEEN_PASSES)
        missing = [expert for expert in experts if not touch(self._key(expert))]
        if not missing:
            return SlotRequest(hits=len(experts))
        evicted = self._make_room(len(missing), experts)
        moves = []
        for expert in missing:
            slot = self._places[expert] = self._free.pop()
            self._policy.insert(self._key(expert))
            moves.append((expert, slot))
        return SlotRequest(hits=len(experts) - len(missing), moves=tuple(moves), evicted=evicted)

    def slots_of(self, experts: Sequence[int]) -> list[int]:
        """Return the slots of experts that are held; KeyError when one is not."""
        places = self._places
        return [places[expert] for expert in experts]

    def drop(self, experts: Sequence[int]) -> None:
        """Hold these experts no more, as when they could not be moved."""
        for expert in experts:
            self._free.append(self._places.pop(expert))
            self._policy.remove(self._key(expert))

    def _make_room(self, needed: int, experts: Sequence[int]) -> int:
        short = needed - len(self._free)
        if short <= 0:
            return 0
        keep = {self._key(expert) for expert in experts}
        leaving = [key.expert for key in self._policy.victims(short, keep=keep)]
        if len(leaving) < short:
            raise ValueError(
                f"{len(experts)} experts of layer {self._layer} are asked for at once, and it has "
                f"{self._slots} slots"
            )
        self.drop(leaving)
        return len(leaving)

    def _key(self, expert: int) -> ExpertKey:
        key = self._keys.get(expert)
        if key is None:
            key = self._keys[expert] = ExpertKey(self._layer, expert)
        return key
