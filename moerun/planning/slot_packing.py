"""Where layers go when what is left of each device is for slots: the cuts with the most hits.

Layers are cut into runs, one for each device in order, as in `packing`; every device gives its own
layers as many slots as fit beside their dense weights. What a run may hold only grows with the
device's memory, and so does the best over all cuts.

Knows: running sums, capacities, cuts, and the bounds on the number of slots.
Does not know: models, tensors, budgets, or what slots gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from moerun.planning.packing import Bay, Freight, Run, cut_points
from moerun.planning.slot_gain import expected_hit_fraction
from moerun.planning.slots import SlotWish


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRun:
    """The layers of one device, how many slots each of them has, and what all take.

    `hit_bytes` is the share of its experts that requests may find in slots, as bytes of them.
    `short_bytes` is what is missing for the fewest slots that are worth having.
    """

    run: Run
    slots: int
    size_bytes: int
    hit_bytes: int
    short_bytes: int


class _Gain(NamedTuple):
    """What a run adds, in the order in which it counts."""

    missing_bytes: int  # negative
    hit_bytes: int
    slot_bytes: int


class _Reach(NamedTuple):
    gain: _Gain
    starts: tuple[int, ...]


def slot_runs(freight: Freight, bays: Sequence[Bay], wish: SlotWish) -> tuple[SlotRun, ...] | None:
    """Return the runs that lack least, then hit most; None with more devices than layers."""
    count = freight.layer_count
    if not 0 < len(bays) <= count:
        return None
    hold = _Hold(freight, wish)
    reached: dict[int, _Reach] = {0: _Reach(_Gain(0, 0, 0), ())}
    for position, bay in enumerate(bays):
        following: dict[int, _Reach] = {}
        for end in (count,) if position == len(bays) - 1 else cut_points(count, len(bays)):
            for first, (before, starts) in reached.items():
                if first >= end:
                    continue
                found = hold.run(bay, first, end)
                gain = _Gain(
                    before.missing_bytes - found.short_bytes,
                    before.hit_bytes + found.hit_bytes,
                    before.slot_bytes + found.size_bytes,
                )
                if end not in following or gain > following[end].gain:
                    following[end] = _Reach(gain, (*starts, first))
        reached = following
    if count not in reached:
        return None
    bounds = (*reached[count].starts, count)
    return tuple(
        hold.run(bay, first, end) for bay, (first, end) in zip(bays, pairwise(bounds), strict=True)
    )


class _Hold:
    """What runs of layers take, by running sums."""

    def __init__(self, freight: Freight, wish: SlotWish) -> None:
        self._dense = freight.dense_sums_bytes
        self._wish = wish
        self._slot = (0, *accumulate(layer.slot_bytes for layer in wish.layers))
        self._hits = tuple(
            expected_hit_fraction(slots / wish.expert_count, expert_count=wish.expert_count)
            for slots in range(wish.expert_count + 1)
        )
        self._aligned = (0, *accumulate(layer.alignment_bytes for layer in wish.layers))

    def run(self, bay: Bay, first: int, end: int) -> SlotRun:
        wish = self._wish
        slot_bytes = self._slot[end] - self._slot[first]
        room_bytes = bay.capacity_bytes - (self._dense[end] - self._dense[first])
        room_bytes -= self._aligned[end] - self._aligned[first]
        slots = 0
        if slot_bytes:
            slots = min(wish.most_slots, max(0, room_bytes) // slot_bytes)
        least_bytes = wish.least_slots * slot_bytes
        is_short = slots < wish.least_slots and slot_bytes > 0
        if is_short:
            slots = 0
        return SlotRun(
            run=Run(first=first, end=end),
            slots=slots,
            size_bytes=slots * slot_bytes,
            hit_bytes=int(slot_bytes * wish.expert_count * self._hits[slots]),
            short_bytes=max(0, least_bytes - room_bytes),
        )
