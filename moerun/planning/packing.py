"""Where layers and experts go on one set of devices: runs of layers, and experts.

Two families of placements are searched, both to their end. In both, layers are cut into runs, one
for each device in order. In the first, each device holds experts of its own layers, from the last
on. In the second, experts stand in one line, from the last layer's to the first's, and each device
takes what fits of the rest of that line, whatever layers it computes; a device may have no layers
at all. The second is for devices of one machine: between machines the way is too long.

What a device may hold only grows with its memory, and so does what the best of a family holds. The
best over all sets of devices is therefore never worse with more memory than with less, on whichever
device: bytes do not move to a slower tier.

Knows: running sums, capacities, standings, cuts.
Does not know: models, tensors, budgets, or reasons.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from moerun.model.description import ExpertPart
from moerun.planning.cargo import PartBytes, first_fit
from moerun.planning.value import Standing

FINE_CUTS_UP_TO: Final = 3
COARSE_CUTS: Final = 32

_Gain = tuple[int, int, int, int]
"""Dense bytes on slow devices (negative), experts on faster ones, all, remote bytes (negative)."""


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
class Bay:
    """The room that one device has for layers and experts, and what its memory is worth."""

    capacity_bytes: int
    standing: Standing = Standing.LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The layers of one device, `first` to before `end`, and the expert parts it holds by layer."""

    first: int
    end: int
    experts: tuple[tuple[int, PartBytes], ...] = ()

    @property
    def expert_bytes(self) -> int:
        """Return the bytes of all experts it holds."""
        return sum(size for _, parts in self.experts for _, size in parts)

    @property
    def strange_layers(self) -> int:
        """Return of how many layers it holds experts that it does not compute the rest of."""
        return sum(not self.first <= layer < self.end for layer, _ in self.experts)


def packings(freight: Freight, bays: tuple[Bay, ...]) -> Iterator[tuple[Run, ...]]:
    """Yield the best runs of each family for devices of these capacities, in order.

    Layers before the first run stay on the host. Experts go to devices only when all layers do:
    what every token needs comes first. Nothing is yielded when these devices cannot be used so.
    """
    own = cut(freight, bays)
    if own is not None:
        yield own
        held = sum(run.expert_bytes for run in own)
        if own[0].first or held == freight.expert_sums_bytes[-1]:
            return  # not even all layers find room, or there is nothing left to place
    is_local = all(bay.standing is Standing.LOCAL for bay in bays)
    if len(bays) < 2 or not is_local or min(bay.capacity_bytes for bay in bays) < 0:
        return  # an expert away from its layer on a worker costs two journeys for every token
    spread = _spread(freight, bays)
    if spread is not None:
        yield spread


def cut(freight: Freight, bays: tuple[Bay, ...]) -> tuple[Run, ...] | None:
    """Return the best runs with the experts of their own layers; None when one stays empty."""
    starts = _greedy_starts(freight, bays)
    if starts is None:
        return None
    best = None if starts[0] else _best_starts(freight, bays)
    ends = (*(best or starts)[1:], freight.layer_count)
    if best is not None:
        return tuple(
            _run(freight, bay.capacity_bytes, first, end)
            for bay, first, end in zip(bays, best, ends, strict=True)
        )
    if len(bays) > 1 and any(a == b for a, b in zip(starts, ends, strict=True)):
        return None
    return tuple(Run(first=first, end=end) for first, end in zip(starts, ends, strict=True))


def _greedy_starts(freight: Freight, bays: tuple[Bay, ...]) -> tuple[int, ...] | None:
    """Fill devices from the last layer back; the result leaves the fewest layers on the host."""
    dense = freight.dense_sums_bytes
    end = freight.layer_count
    starts: list[int] = []
    for bay in reversed(bays):
        if bay.capacity_bytes < 0:
            return None
        start = bisect_left(dense, dense[end] - bay.capacity_bytes, 0, end)
        if start == end and len(bays) > 1:
            if end == 0:  # all layers are placed already; the cuts are searched anew
                starts.append(0)
                continue
            return None
        starts.append(start)
        end = start
    return tuple(reversed(starts))


def _best_starts(freight: Freight, bays: tuple[Bay, ...]) -> tuple[int, ...] | None:
    """Return the cuts that gain most, then leave the most slack."""
    count, devices = freight.layer_count, len(bays)
    if devices > max(1, count):
        return None
    dense = freight.dense_sums_bytes
    cuts = cut_points(count, devices)
    # the best (gain, slack, cuts) of the layers before a cut on the devices so far
    reached: dict[int, tuple[_Gain, int, tuple[int, ...]]] = {0: ((0, 0, 0, 0), 1000, ())}
    for position, bay in enumerate(bays):
        capacity = bay.capacity_bytes
        following: dict[int, tuple[_Gain, int, tuple[int, ...]]] = {}
        for end in (count,) if position == devices - 1 else cuts:
            best: tuple[_Gain, int, tuple[int, ...]] | None = None
            for first, (before, slack_before, starts) in reached.items():
                room = capacity - dense[end] + dense[first]
                if first >= end or room < 0:
                    continue
                placed = _placed_bytes(freight, room, first, end)
                gain = _gain(before, bay.standing, dense[end] - dense[first], placed)
                if best is not None and gain < best[0]:
                    continue
                slack = min(slack_before, (room - placed) * 1000 // max(1, capacity))
                if best is None or (gain, slack) > best[:2]:
                    best = gain, slack, (*starts, first)
            if best is not None:
                following[end] = best
        reached = following
    found = reached.get(count)
    return None if found is None else found[2]


def _gain(before: _Gain, standing: Standing, dense: int, experts: int) -> _Gain:
    slow, fast, total, remote = before
    match standing:
        case Standing.LOCAL:
            return slow, fast + experts, total + experts, remote
        case Standing.REMOTE:
            return slow, fast + experts, total + experts, remote - dense - experts
        case Standing.SLOW:
            return slow - dense, fast, total + experts, remote


def cut_points(count: int, devices: int) -> range:
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
    held = [(layer, freight.parts[layer]) for layer in range(start, end)]
    if freight.split_layers and start > first:
        parts = first_fit(freight.parts[start - 1], room - (experts[end] - experts[start]))
        held.insert(0, (start - 1, parts))
    return Run(first=first, end=end, experts=tuple(each for each in held if each[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """All experts in one line, from the last layer's: parts, or whole layers if never split.

    `sums_bytes[i]` are the bytes before item `i`, `layer_ends[l]` the items of layer `l` and later.
    """

    items: tuple[tuple[int, PartBytes], ...]
    sums_bytes: tuple[int, ...]
    layer_ends: tuple[int, ...]

    def reached(self, start: int, room_bytes: int) -> int:
        """Return the item after the last that fits in order, from `start` on."""
        return bisect_right(self.sums_bytes, self.sums_bytes[start] + room_bytes, start) - 1


def _line(freight: Freight) -> _Line:
    items: list[tuple[int, PartBytes]] = []
    ends = [0] * (freight.layer_count + 1)
    for layer in range(freight.layer_count - 1, -1, -1):
        parts: PartBytes = freight.parts[layer]
        whole = [(part,) for part in parts] if freight.split_layers else [parts] if parts else []
        items += [(layer, each) for each in whole]
        ends[layer] = len(items)
    sizes = (sum(size for _, size in parts) for _, parts in items)
    return _Line(items=tuple(items), sums_bytes=(0, *accumulate(sizes)), layer_ends=tuple(ends))


# How far the line is placed and the bytes beside their layers; the way there.
_Reach = tuple[tuple[int, int], tuple[tuple[int, int, int], ...]]


def _spread(freight: Freight, bays: tuple[Bay, ...]) -> tuple[Run, ...] | None:
    """Return the runs that place most of the line; None when not all layers find room.

    How far a device gets grows with where it starts, so the furthest of each cut is enough.
    """
    line, dense, count = _line(freight), freight.dense_sums_bytes, freight.layer_count
    cuts = (0, *cut_points(count, len(bays)), count)
    reached: dict[int, _Reach] = {count: ((0, 0), ())}
    for position in range(len(bays) - 1, -1, -1):
        bay = bays[position]
        following: dict[int, _Reach] = {}
        for first in cuts if position else (0,):
            best: _Reach | None = None
            for end, (before, way) in reached.items():
                room = bay.capacity_bytes - dense[end] + dense[first]
                if first > end or room < 0:
                    continue
                score = _score(line, before, (first, end), room)
                if best is None or score > best[0]:
                    best = score, ((first, end, score[0]), *way)
            if best is not None:
                following[first] = best
        reached = following
    found = reached.get(0)
    return None if found is None else _spread_runs(line, found[1])


def _score(
    line: _Line, before: tuple[int, int], run: tuple[int, int], room_bytes: int
) -> tuple[int, int]:
    first, end = run
    start, beside = before
    stop, sums = line.reached(start, room_bytes), line.sums_bytes
    own_from, own_to = max(start, line.layer_ends[end]), min(stop, line.layer_ends[first])
    return stop, beside + sums[max(own_from, own_to)] - sums[own_from]


def _spread_runs(line: _Line, way: tuple[tuple[int, int, int], ...]) -> tuple[Run, ...]:
    starts = (*(stop for _, _, stop in way[1:]), 0)
    return tuple(
        Run(first=first, end=end, experts=_by_layer(line.items[start:stop]))
        for (first, end, stop), start in zip(way, starts, strict=True)
    )


def _by_layer(items: tuple[tuple[int, PartBytes], ...]) -> tuple[tuple[int, PartBytes], ...]:
    held: dict[int, list[tuple[ExpertPart, int]]] = {}
    for layer, parts in items:
        held.setdefault(layer, []).extend(parts)
    return tuple((layer, tuple(held[layer])) for layer in sorted(held))
