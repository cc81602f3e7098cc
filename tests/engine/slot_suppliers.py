"""Suppliers of slots for tests: experts come and go by turns, so that slots are used anew.

Knows: the protocols of experts and of slots.
Does not know: the engine, policies, or what a test expects.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from moerun.engine.arguments import LayerSlots
from moerun.engine.interface import ExpertSlots, Routing
from moerun.experts.layout import ExpertLayout
from moerun.machine.description import DeviceId
from tests.engine.suppliers import Recording


def slots_everywhere(layout: ExpertLayout, device: DeviceId, count: int) -> tuple[LayerSlots, ...]:
    """Return a wish for so many slots in every layer that has experts on the host."""
    return tuple(LayerSlots(layer=n, device=device, slots=count) for n in layout.by_layer)


class InSlots(Recording):
    """Puts missing experts where one was that was not used for the longest time.

    `wants` says of each evaluation, counted from 0, whether it may read slots.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        *,
        wants: Callable[[int], bool] = lambda number: True,
        hears_all: bool = True,
    ) -> None:
        super().__init__(layout)
        self.slots: ExpertSlots | None = None
        self.refused: tuple[str, ...] = ()
        self.used: list[bool] = []
        self.hits = self.misses = 0
        self.failing = False
        self.hears_all = hears_all
        self._wants = wants
        self._uses_slots = False
        self._held: dict[int, OrderedDict[int, int]] = {}

    @property
    def wants_slots(self) -> bool:
        return self._wants(len(self.used))

    @property
    def counts(self) -> Mapping[int, int]:
        return {} if self.slots is None else self.slots.counts

    def attach_slots(self, slots: ExpertSlots, refused: tuple[str, ...]) -> None:
        assert self.slots is None, "attached twice"
        self.slots, self.refused = slots, refused

    def begin(self, tokens: int, *, uses_slots: bool) -> None:
        self._uses_slots = uses_slots
        self.used.append(uses_slots)

    def supply(self, routing: Routing) -> None:
        super().supply(routing)
        if not self._uses_slots or routing.layer not in self.counts:
            return
        assert self.slots is not None
        held = self._held.setdefault(routing.layer, OrderedDict())
        moves = []
        for expert in routing.experts:
            if expert in held:
                held.move_to_end(expert)
                self.hits += 1
                continue
            self.misses += 1
            slot = len(held)
            if slot == self.counts[routing.layer]:
                slot = held.pop(next(e for e in held if e not in routing.experts))
            held[expert] = slot
            moves.append((expert, slot))
        if self.failing:
            raise OSError("a test wants it")
        self.slots.upload(routing.layer, moves)

    def slots_of(self, layer: int, experts: Sequence[int]) -> Sequence[int]:
        return [self._held[layer][expert] for expert in experts]

    def forget_slots(self) -> None:
        """Hold nothing any more, as after a failure."""
        self._held.clear()
