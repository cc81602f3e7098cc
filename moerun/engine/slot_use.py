"""Whether an evaluation reads slots, and the numbers by which it finds its experts there.

Knows: the supplier of slots, the slots, and what the present evaluation does.
Does not know: graphs, or how experts come into slots.
"""

from typing import Any, Final, Protocol

import numpy
import numpy.typing

from moerun.engine.interface import ExpertSlots, Routing, SlotSupplier
from moerun.errors import EngineRefused

# How many tokens the graphs are of that are looked at first: with slots off, and then on.
LOOKED_AT: Final = (1, 2)


class SwitchedSlots(ExpertSlots, Protocol):
    """Slots that graphs read, or do not."""

    @property
    def is_on(self) -> bool:
        """Whether graphs that are built now read the slots."""
        ...

    def turn(self, on: bool) -> None:
        """Have graphs that are built from now on read the slots, or the whole tensors."""
        ...

    def counts_of(self, layer: int) -> int:
        """How many slots a layer has."""
        ...

    def __contains__(self, layer: object) -> bool:
        """Whether a layer has slots."""
        ...


class SlotUse:
    """The slots of one context; they are there once `open` was called."""

    def __init__(self, supplier: SlotSupplier) -> None:
        self._supplier = supplier
        self._slots: SwitchedSlots | None = None
        self._now = (0, False)
        # The graphs that the engine may use again, as tokens and whether they read slots: the last
        # one that was surely built, and those begun since.
        self._graphs: set[tuple[int, bool]] = set()
        self._is_reserved_slotted = False

    @property
    def is_on(self) -> bool:
        """Whether graphs that are built now read slots."""
        return self._slots is not None and self._slots.is_on

    def open(self, slots: SwitchedSlots, refused: tuple[str, ...]) -> None:
        """Take the slots over, and hand them to their supplier."""
        self._slots = slots
        self._graphs = {(LOOKED_AT[-1], True)}
        self._supplier.attach_slots(slots, refused)

    @property
    def is_deaf(self) -> bool:
        """Whether nobody is to hear what the present evaluation chooses."""
        return self._slots is not None and not self._slots.is_on and not self._supplier.hears_all

    def begin(self, tokens: int, *, is_dry: bool) -> bool:
        """Turn slots on or off for a batch; True where its graph must not be that of the last one.

        Graphs are used again for as many tokens as before alone. To have one built anew makes the
        engine reserve its compute buffers again, for tensors as they are then; what it reserved
        while slots were on may be too small for prompts, so it does so once more when they are off.
        Of an evaluation that computes nothing the supplier is not told.
        """
        if self._slots is None:
            return False
        uses = self._supplier.wants_slots and tokens <= self._slots.most_tokens
        self._slots.turn(uses)
        self._now = (tokens, uses)
        if not is_dry:
            self._supplier.begin(tokens, uses_slots=uses)
        must_be_new = (tokens, not uses) in self._graphs
        must_be_new = must_be_new or (self._is_reserved_slotted and not uses)
        if must_be_new:
            self._is_reserved_slotted = uses
        return must_be_new

    def end(self, *, is_built: bool) -> None:
        """The evaluation is over; a graph that was given up may not even have been built."""
        if is_built:
            self._graphs.clear()
        self._graphs.add(self._now)

    def is_used(self, layer: int) -> bool:
        """Whether the present evaluation reads the experts of a layer from slots."""
        slots = self._slots
        return slots is not None and slots.is_on and layer in slots

    def rewritten(self, routing: Routing) -> "numpy.typing.NDArray[Any]":
        """Return the choice by numbers of slots, after its experts were supplied."""
        assert self._slots is not None, "asked only where slots are used"
        found = self._supplier.slots_of(routing.layer, routing.experts)
        count = self._slots.counts_of(routing.layer)
        if len(set(found)) != len(routing.experts) or min(found) < 0 or max(found) >= count:
            raise EngineRefused(
                f"The experts {routing.experts} of layer {routing.layer} are said to be in the "
                f"slots {tuple(found)} of {count}."
            )
        slots = dict(zip(routing.experts, found, strict=True))
        numbers = [slots[expert] for expert in routing.rows.ravel().tolist()]
        return numpy.array(numbers, dtype=numpy.int32).reshape(routing.rows.shape)
