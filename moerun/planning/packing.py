"""Where layers and experts go on one set of GPUs: runs of layers, and experts beside them.

The family of placements searched is fixed (every way to cut the layers into runs, one for each
device in order; in each run the experts of the last layers), so more memory on any device can
only add to what fits: bytes never move to the CPU when a GPU grows.

Knows: running sums, capacities, cuts.
Does not know: models, tensors, budgets, or reasons.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from moerun.planning.cargo import PartBytes, first_fit

FINE_CUTS_UP_TO: Final = 3
COARSE_CUTS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Freight:
    """The running sums of one model with one context; dense ones include KV cache and state.

    `expert_sums_bytes` are over `parts`, which may go to a GPU.
    """

    dense_sums_bytes: tuple[int, ...]
    expert_sums_bytes: tuple[int, ...]
    parts: tuple[PartBytes, ...]
    split_layers: bool

    @property
    def layer_count(self) -> int:
        """Return how many layers there are."""
        return len(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The layers of one device, `first` to before `end`, and the experts it holds of them.

    Experts of the layers from `experts_from` on are all here, and `parts` of the one before.
    """

    first: int
    end: int
    experts_from: int
    parts: PartBytes = ()


def cut(freight: Freight, capacities: tuple[int, ...]) -> tuple[Run, ...] | None:
    """Return the best runs for devices of these capacities, in order; None when one stays empty.

    Layers before the first run stay on the host. Experts go to GPUs only when all layers do: what
    every token needs comes first.
    """
    starts = _greedy_starts(freight, capacities)
    if starts is None:
        return None
    best = None if starts[0] else _best_starts(freight, capacities)
    ends = (*(best or starts)[1:], freight.layer_count)
    if best is not None:
        return tuple(
            _run(freight, capacity, first, end)
            for capacity, first, end in zip(capacities, best, ends, strict=True)
        )
    if len(capacities) > 1 and any(a == b for a, b in zip(starts, ends, strict=True)):
        return None
    return tuple(
        Run(first=first, end=end, experts_from=end) for first, end in zip(starts, ends, strict=True)
    )


def _greedy_starts(freight: Freight, capacities: tuple[int, ...]) -> tuple[int, ...] | None:
    """Fill devices from the last layer back; the result leaves the fewest layers on the host."""
    dense = freight.dense_sums_bytes
    end = freight.layer_count
    starts: list[int] = []
    for capacity in reversed(capacities):
        if capacity < 0:
            return None
        start = bisect_left(dense, dense[end] - capacity, 0, end)
        if start == end and len(capacities) > 1:
            if end == 0:  # all layers are placed already; the cuts are searched anew
                starts.append(0)
                continue
            return None
        starts.append(start)
        end = start
    return tuple(reversed(starts))


def _best_starts(freight: Freight, capacities: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the cuts that put the most expert bytes on the devices, then leave the most slack."""
    count, devices = freight.layer_count, len(capacities)
    if devices > max(1, count):
        return None
    dense = freight.dense_sums_bytes
    cuts = _cut_points(count, devices)
    # the best (bytes, slack, cuts) of the layers before a cut on the devices so far
    reached: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 1000, ())}
    for position, capacity in enumerate(capacities):
        following: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for end in (count,) if position == devices - 1 else cuts:
            best: tuple[int, int, tuple[int, ...]] | None = None
            for first, (bytes_before, slack_before, starts) in reached.items():
                room = capacity - dense[end] + dense[first]
                if first >= end or room < 0:
                    continue
                placed = _placed_bytes(freight, room, first, end)
                total = bytes_before + placed
                if best is not None and total < best[0]:
                    continue
                slack = min(slack_before, (room - placed) * 1000 // max(1, capacity))
                if best is None or (total, slack) > best[:2]:
                    best = total, slack, (*starts, first)
            if best is not None:
                following[end] = best
        reached = following
    found = reached.get(count)
    return None if found is None else found[2]


def _cut_points(count: int, devices: int) -> range:
    """Return where runs may end; coarser with many devices, the same whatever their memory."""
    step = 1 if devices <= FINE_CUTS_UP_TO else max(1, count // COARSE_CUTS)
    return range(step, count, step)


def _placed_bytes(freight: Freight, room: int, first: int, end: int) -> int:
    experts = freight.expert_sums_bytes
    wanted = experts[end] - experts[first]
    if wanted <= room:
        return wanted
    start = bisect_left(experts, experts[end] - room, first, end)
    placed = experts[end] - experts[start]
    if freight.split_layers:
        for _, size in freight.parts[start - 1]:
            if placed + size <= room:
                placed += size
    return placed


def _run(freight: Freight, capacity: int, first: int, end: int) -> Run:
    room = capacity - (freight.dense_sums_bytes[end] - freight.dense_sums_bytes[first])
    experts = freight.expert_sums_bytes
    start = bisect_left(experts, experts[end] - room, first, end)
    parts: PartBytes = ()
    if freight.split_layers and start > first:
        parts = first_fit(freight.parts[start - 1], room - (experts[end] - experts[start]))
    return Run(first=first, end=end, experts_from=start, parts=parts)
