"""Which expert leaves: LRU, LRU with frequency weight, and the bound that knows the future.

Experts of one layer are asked for once in each pass of the model, so the age of an expert is
counted in passes of its own layer since it was used, not in time: a layer still to come in this
pass has not yet passed its experts over. That, and uses that fade instead of only the last one,
is what FREQUENCY adds to LRU. Decode hit rates over two recorded traces (the prompt as one batch,
one cache for all layers), by the share of the experts' bytes that is held:

    qwen3-30b-a3b   5 %   10 %   20 %   30 %   40 %   50 %     gpt-oss-120b   5 %   10 %   30 %
    LRU            37.7   49.7   74.0   87.9   93.8   96.3                   44.1   58.8   79.8
    half-life 2    38.3   55.5   75.6   88.3   93.9   96.3                   46.2   59.7   83.3
    half-life 4    38.4   56.7   76.5   88.4   94.0   96.3                   47.0   60.5   83.3
    half-life 8    38.4   56.7   77.8   88.7   94.0   96.3                   46.0   61.4   83.3
    half-life 16   38.1   56.0   77.5   89.2   94.1   96.3                   45.4   60.9   83.3
    half-life 32   37.7   55.3   76.7   88.6   94.2   96.3                   44.2   59.8   83.3
    half-life 64   37.3   54.5   75.9   88.3   94.1   96.3                   43.6   58.7   83.3
    Belady         58.1   75.4   89.9   95.4   97.1   97.1                   67.3   80.4   89.1

Half-lives from 4 to 16 differ little, so the one in the middle stands; counts that hardly fade
lose. tests/test_simulate.py holds the rates and the default to the traces.

Knows: keys, uses, and their order.
Does not know: bytes of files, memory, clocks, or who asks.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, log2
from typing import Final, assert_never

from moerun.experts.interface import CachePolicy, ExpertKey
from moerun.experts.order import PolicyName

DEFAULT_POLICY: Final = PolicyName.FREQUENCY
HALF_LIFE_PASSES: Final = 8


def make_policy(name: PolicyName) -> CachePolicy:
    """Return a policy that holds nothing yet."""
    match name:
        case PolicyName.LRU:
            return LeastRecentlyUsed()
        case PolicyName.FREQUENCY:
            return FadingFrequency()
        case _:
            assert_never(name)


class LeastRecentlyUsed:
    """What was not used for the longest time leaves first. Every operation takes constant time."""

    def __init__(self) -> None:
        self._held: OrderedDict[ExpertKey, None] = OrderedDict()

    def touch(self, key: ExpertKey) -> bool:
        """Note a use; True when the expert is held."""
        if key not in self._held:
            return False
        self._held.move_to_end(key)
        return True

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert from now on, as used last."""
        self._held[key] = None
        self._held.move_to_end(key)

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> Sequence[ExpertKey]:
        """Name up to `count` held experts outside `keep`, the one used longest ago first."""
        found: list[ExpertKey] = []
        if count < 1:
            return found
        for key in self._held:
            if key not in keep:
                found.append(key)
                if len(found) == count:
                    break
        return found

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no more; KeyError when it is not held."""
        del self._held[key]

    def held(self) -> Iterable[ExpertKey]:
        """Return what is held, the one used longest ago first."""
        return tuple(self._held)

    def __len__(self) -> int:
        """Return how many experts are held."""
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        """Whether an expert is held."""
        return key in self._held


_Entry = tuple[float, int]
"""In the heap of a layer: what the uses of an expert weighed when it was put there, its number."""

_Head = tuple[float, int, int]
"""The least wanted of a layer: a bound from below of its faded weight; minus the layer's last
pass, so that of equals the layer leaves first whose turn comes last; the place of the layer."""


class _LayerUses:
    """The uses of the experts of one layer, as one number each that fading does not change.

    A use in pass p weighs 2 ** (p / half-life), and `uses` holds the logarithm of the sum. All of
    a layer fades by the same factor, so the order within the layer only changes by use, and a
    heap that is corrected when it is read holds it: numbers only grow while an expert is in the
    heap, so an entry is never above the true one.
    """

    __slots__ = ("entries", "heap", "layer", "lent", "passes", "stamp", "uses")

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.passes = 0
        self.stamp = 0
        self.uses: dict[int, float] = {}
        self.lent: dict[int, float] = {}  # what was there before an insert without a use
        self.heap: list[_Entry] = []
        self.entries: set[int] = set()  # experts with an entry in the heap, held or not

    def now(self) -> float:
        """Return what one use in this pass weighs."""
        return self.passes / HALF_LIFE_PASSES

    def use(self, expert: int) -> None:
        """Note a use."""
        before = self.lent.pop(expert, None)
        if before is None:
            before = self.uses.get(expert, -inf)
        now = self.now()
        self.uses[expert] = now + log2(1 + 2 ** (before - now))

    def lend(self, expert: int) -> None:
        """Let an expert that comes in unused weigh as much as one used now, until it is used."""
        before = self.uses.get(expert, -inf)
        if before < self.now():
            self.lent[expert] = before
            self.uses[expert] = self.now()

    def take_back(self, expert: int) -> None:
        """Forget what was lent to an expert that leaves unused."""
        if expert in self.lent:
            self.uses[expert] = self.lent.pop(expert)


class FadingFrequency:
    """What was used least leaves first, a use counting half after 8 passes of its layer.

    Uses are remembered of experts that are not held, too. A new pass of a layer begins when the
    layer is touched after another one, or the same expert once more. `touch` takes constant time,
    the others logarithmic time, and `victims` a look at every layer for each one named.
    """

    def __init__(self) -> None:
        self._held: set[ExpertKey] = set()
        self._layers: list[_LayerUses] = []
        self._places: dict[int, int] = {}
        self._heads: list[_Head] = []
        self._named: dict[ExpertKey, tuple[int, _Entry]] = {}  # victims not yet removed
        self._current: int | None = None
        self._touched: set[int] = set()  # in the current pass of the current layer
        self._clock = 0

    def touch(self, key: ExpertKey) -> bool:
        """Note a use; True when the expert is held."""
        layer, expert = key
        if layer != self._current or expert in self._touched:
            self._begin_pass(layer)
        self._touched.add(expert)
        self._layers[self._places[layer]].use(expert)
        return key in self._held

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert from now on; one that was not used weighs as if it had been."""
        place = self._place(key[0])
        uses = self._layers[place]
        uses.lend(key[1])
        self._held.add(key)
        if key[1] not in uses.entries:
            uses.entries.add(key[1])
            heappush(uses.heap, (uses.uses[key[1]], key[1]))
            self._refresh_head(place)

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> Sequence[ExpertKey]:
        """Name up to `count` held experts outside `keep`, the least used first."""
        for place, entry in self._named.values():
            self._put_back(place, entry)
        self._named.clear()
        found: list[ExpertKey] = []
        kept: list[tuple[int, _Entry]] = []
        while len(found) < count:
            weight, _, place = min(self._heads, default=(inf, 0, 0))
            if weight == inf:
                break
            top = self._exact_top(place, weight)
            if top is None:  # the bound was too low: another layer may come first
                continue
            key = ExpertKey(self._layers[place].layer, top[1])
            if key in keep:
                kept.append((place, top))
            else:
                found.append(key)
                self._named[key] = (place, top)
        for place, entry in kept:
            self._put_back(place, entry)
        return found

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no more; KeyError when it is not held."""
        self._held.remove(key)
        uses = self._layers[self._places[key[0]]]
        uses.take_back(key[1])
        if self._named.pop(key, None) is not None:
            uses.entries.discard(key[1])

    def held(self) -> Iterable[ExpertKey]:
        """Return what is held, the least used first."""
        return tuple(sorted(self._held, key=self._order))

    def __len__(self) -> int:
        """Return how many experts are held."""
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        """Whether an expert is held."""
        return key in self._held

    def _begin_pass(self, layer: int) -> None:
        place = self._place(layer)
        self._clock += 1
        self._current = layer
        self._touched.clear()
        uses = self._layers[place]
        uses.passes += 1
        uses.stamp = self._clock
        self._refresh_head(place)

    def _exact_top(self, place: int, bound: float) -> _Entry | None:
        """Take the least wanted expert out of a layer's heap, None when it weighs over the bound.

        Entries that were outgrown by later uses are corrected on the way, those of experts that
        left are dropped.
        """
        uses = self._layers[place]
        heap, weights = uses.heap, uses.uses
        while heap:
            entry = heap[0]
            expert = entry[1]
            if (uses.layer, expert) not in self._held:
                heappop(heap)
                uses.entries.discard(expert)
            elif weights[expert] != entry[0]:
                heapreplace(heap, (weights[expert], expert))
            else:
                break
        top = heap[0] if heap and heap[0][0] - uses.now() <= bound else None
        if top is not None:
            heappop(heap)
        self._refresh_head(place)
        return top

    def _put_back(self, place: int, entry: _Entry) -> None:
        heappush(self._layers[place].heap, entry)
        self._refresh_head(place)

    def _place(self, layer: int) -> int:
        place = self._places.get(layer)
        if place is None:
            place = self._places[layer] = len(self._layers)
            self._layers.append(_LayerUses(layer))
            self._heads.append((inf, 0, place))
        return place

    def _refresh_head(self, place: int) -> None:
        uses = self._layers[place]
        weight = uses.heap[0][0] - uses.now() if uses.heap else inf
        self._heads[place] = (weight, -uses.stamp, place)

    def _order(self, key: ExpertKey) -> tuple[float, int, int, int]:
        place = self._places[key.layer]
        uses = self._layers[place]
        return (uses.uses[key.expert] - uses.now(), -uses.stamp, place, key.expert)


class Belady:
    """What is used again last leaves first: no policy reads less where all experts are of one size.

    `uses` are all uses to come, in the order in which `touch` will be called; only a simulation
    knows them.
    """

    def __init__(self, uses: Iterable[ExpertKey]) -> None:
        self._coming: dict[ExpertKey, deque[int]] = {}
        for position, key in enumerate(uses):
            self._coming.setdefault(key, deque()).append(position)
        self._held: set[ExpertKey] = set()
        self._heap: list[tuple[float, ExpertKey]] = []  # next uses, negative; old entries too

    def touch(self, key: ExpertKey) -> bool:
        """Note a use; True when the expert is held."""
        coming = self._coming.get(key)
        if coming:
            coming.popleft()
        is_held = key in self._held
        if is_held:
            heappush(self._heap, self._entry(key))
        return is_held

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert from now on."""
        self._held.add(key)
        heappush(self._heap, self._entry(key))

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> Sequence[ExpertKey]:
        """Name up to `count` held experts outside `keep`, the one used again last first."""
        found: dict[ExpertKey, None] = {}
        aside: list[tuple[float, ExpertKey]] = []
        while self._heap and len(found) < count:
            entry = heappop(self._heap)
            key = entry[1]
            if key not in self._held or entry != self._entry(key) or key in found:
                continue
            aside.append(entry)
            if key not in keep:
                found[key] = None
        for entry in aside:
            heappush(self._heap, entry)
        return tuple(found)

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no more; KeyError when it is not held."""
        self._held.remove(key)
        if len(self._heap) > 4 * len(self._held) + 64:
            self._heap = [self._entry(held) for held in self._held]
            heapify(self._heap)

    def held(self) -> Iterable[ExpertKey]:
        """Return what is held, the one used again last first."""
        return tuple(key for _, key in sorted(map(self._entry, self._held)))

    def __len__(self) -> int:
        """Return how many experts are held."""
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        """Whether an expert is held."""
        return key in self._held

    def _entry(self, key: ExpertKey) -> tuple[float, ExpertKey]:
        coming = self._coming.get(key)
        return (-coming[0] if coming else -inf, key)
