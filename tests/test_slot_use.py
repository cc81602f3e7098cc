"""When a graph must not be used again: whatever was built, or may have been, for other places."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from moerun.engine.interface import Routing
from moerun.engine.slot_use import SlotUse
from moerun.errors import EngineRefused
from moerun.machine.description import DeviceId

MOST_TOKENS = 4


class Slots:
    """Slots without memory."""

    most_tokens = MOST_TOKENS
    is_queued = False

    def __init__(self) -> None:
        self.is_on = False
        self.counts: Mapping[int, int] = {3: 5}
        self.device_bytes: Mapping[DeviceId, int] = {}

    def upload(self, layer: int, moves: Sequence[tuple[int, int]]) -> int:
        raise AssertionError("nothing is uploaded here")

    def __contains__(self, layer: object) -> bool:
        return layer == 3

    def turn(self, on: bool) -> None:
        self.is_on = on

    def counts_of(self, layer: int) -> int:
        return self.counts[layer]


class Supplier:
    """Wants slots or not, and says that experts are where a test wants them."""

    def __init__(self) -> None:
        self.wants_slots = True
        self.hears_all = False
        self.begun: list[tuple[int, bool]] = []
        self.found: Sequence[int] = ()

    def attach_slots(self, slots, refused) -> None:
        self.begun.clear()

    def begin(self, tokens: int, *, uses_slots: bool) -> None:
        self.begun.append((tokens, uses_slots))

    def slots_of(self, layer: int, experts: Sequence[int]) -> Sequence[int]:
        return self.found


class Rig:
    def __init__(self) -> None:
        self.supplier, self.slots = Supplier(), Slots()
        self.use = SlotUse(self.supplier)
        self.use.open(self.slots, ())
        self.run(7)

    def run(self, tokens: int, *, is_built: bool = True, is_dry: bool = False) -> bool:
        must_be_new = self.use.begin(tokens, is_dry=is_dry)
        self.use.end(is_built=is_built)
        return must_be_new


def test_slots_are_used_where_all_experts_fit():
    rig = Rig()
    rig.run(1)
    rig.run(MOST_TOKENS)
    rig.run(MOST_TOKENS + 1)
    rig.run(1, is_dry=True)
    rig.supplier.wants_slots = False
    rig.run(1)

    assert rig.supplier.begun == [(7, False), (1, True), (4, True), (5, False), (1, False)]
    assert not rig.slots.is_on


def test_as_many_tokens_with_and_without_slots_never_share_a_graph():
    rig = Rig()
    assert not rig.run(1)
    assert not rig.run(1)
    rig.supplier.wants_slots = False
    assert rig.run(1)
    assert not rig.run(1)
    rig.supplier.wants_slots = True
    assert rig.run(1)
    assert not rig.run(1)


def test_buffers_that_were_reserved_with_slots_are_reserved_again_for_prompts():
    rig = Rig()
    rig.supplier.wants_slots = False
    rig.run(1)
    rig.supplier.wants_slots = True
    assert rig.run(1)
    assert rig.run(9)
    assert not rig.run(9)


def test_a_graph_that_was_perhaps_not_built_leaves_the_one_before():
    rig = Rig()
    rig.run(1)
    rig.run(9, is_built=False)
    rig.supplier.wants_slots = False
    assert rig.run(1), "the engine may still hold the graph of one token with slots"

    rig = Rig()
    rig.run(1)
    rig.run(9)
    rig.supplier.wants_slots = False
    assert not rig.run(1)


def test_the_graph_that_was_looked_at_last_reads_slots():
    supplier = Supplier()
    supplier.wants_slots = False
    use = SlotUse(supplier)
    assert not use.begin(2, is_dry=False), "there are no slots yet"
    use.open(Slots(), ())
    assert use.begin(2, is_dry=False)


def test_nothing_is_heard_only_where_nobody_listens():
    rig = Rig()
    found = [rig.use.is_deaf]
    for tokens, hears_all in ((1, False), (9, False), (9, True)):
        rig.supplier.hears_all = hears_all
        rig.use.begin(tokens, is_dry=False)
        found.append(rig.use.is_deaf)

    assert found == [True, False, True, False]


def test_a_choice_is_rewritten_row_by_row():
    rig = Rig()
    rig.use.begin(2, is_dry=False)
    assert rig.use.is_used(3)
    assert not rig.use.is_used(4)
    rows = np.array([[8, 6], [6, 9]], np.int32)
    rig.supplier.found = (4, 0, 2)
    found = rig.use.rewritten(Routing(layer=3, experts=(8, 6, 9), rows=rows))

    assert found.dtype == np.int32
    assert found.tolist() == [[4, 0], [0, 2]]


@pytest.mark.parametrize("found", [(0, 0), (0, 5), (-1, 0), (0,)])
def test_slots_that_cannot_be_end_the_token(found):
    rig = Rig()
    rig.use.begin(1, is_dry=False)
    rig.supplier.found = found
    rows = np.array([[8, 6]], np.int32)
    with pytest.raises(EngineRefused, match="are said to be in the slots"):
        rig.use.rewritten(Routing(layer=3, experts=(8, 6), rows=rows))
