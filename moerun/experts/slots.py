"""Experts in slots of devices: what is missing there is brought into memory, and uploaded.

The mechanism stands on another one, which has the experts readable on the host: all are held, or
they come from SSD through the page cache. Evaluations that do not read slots go to that one alone.
All missing experts are uploaded, since a graph that reads slots can compute none on the host.

Knows: books of layers, the engine's slots, and the mechanism below.
Does not know: graphs, devices, or when slots are worth it.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from moerun.engine.interface import ExpertSlots, MappedFile
from moerun.errors import EngineRefused
from moerun.experts.counters import Latency, SlotCounters
from moerun.experts.interface import CachePolicy, Mechanism, Supplied
from moerun.experts.latency import Latencies
from moerun.experts.slot_book import SlotBook


class SlotDesk:
    """What the engine asks about slots, on behalf of the mechanism that fills them, if one does.

    The engine's slots and their counters outlive mechanisms, which take turns. Without `hears_all`
    only choices of evaluations that read slots are told; `on_begin` is told of all others, with
    how many tokens they are of.
    """

    def __init__(self, *, hears_all: bool = True) -> None:
        self.slots: ExpertSlots | None = None
        self.refused: tuple[str, ...] = ()
        self.uses_slots = False
        self.hears_all = hears_all
        self.tally = SlotTally()
        self.on_begin: Callable[[int], None] = lambda tokens: None
        self._mechanism: SlotMechanism | None = None

    @property
    def wants_slots(self) -> bool:
        """Whether the next evaluation is to read slots, if its experts are few enough."""
        return self._mechanism is not None

    def attach_slots(self, slots: ExpertSlots, refused: tuple[str, ...]) -> None:
        """Take the slots over, once and before anything else."""
        self.slots, self.refused = slots, refused

    def begin(self, tokens: int, *, uses_slots: bool) -> None:
        """An evaluation of so many tokens begins, which reads slots or not."""
        self.uses_slots = uses_slots
        if not uses_slots and not self.hears_all:
            self.on_begin(tokens)

    def fits(self, tokens: int) -> bool:
        """Whether a batch of so many tokens can read slots, whatever it chooses."""
        return self.slots is not None and tokens <= self.slots.most_tokens

    def note_tokens(self, tokens: int) -> None:
        """Count tokens that went through all layers, if they read slots."""
        if self.uses_slots:
            self.tally.tokens += tokens

    def slots_of(self, layer: int, experts: Sequence[int]) -> Sequence[int]:
        """Return the slot of each of these experts, which were just supplied."""
        if self._mechanism is None:
            raise EngineRefused(f"Nothing has put experts of layer {layer} into slots.")
        return self._mechanism.slots_of(layer, experts)

    def take(self, mechanism: "SlotMechanism") -> None:
        """Let a mechanism fill the slots from now on, which hold nothing that it knows."""
        self._mechanism = mechanism

    def leave(self, mechanism: "SlotMechanism") -> None:
        """Let no mechanism fill the slots, unless it is another one."""
        if self._mechanism is mechanism:
            self._mechanism = None

    def counters(self) -> SlotCounters | None:
        """Return what was done so far; None where there are no slots."""
        return None if self.slots is None else self.tally.counters(self.slots, self._held())

    def _held(self) -> int:
        return 0 if self._mechanism is None else self._mechanism.held_experts()


class SlotTally:
    """Sums over all requests that were answered from slots."""

    def __init__(self) -> None:
        self.tokens = self.hits = self.uploads = self.upload_bytes = self.evicted = 0
        self.upload_s = 0.0

    def counters(self, slots: ExpertSlots, held_experts: int) -> SlotCounters:
        """Return the sums."""
        counts = slots.counts.values()
        return SlotCounters(
            layers=len(counts),
            slots=sum(counts),
            held_experts=held_experts,
            device_bytes=tuple(slots.device_bytes.items()),
            is_queued=slots.is_queued,
            tokens=self.tokens,
            hits=self.hits,
            uploads=self.uploads,
            upload_bytes=self.upload_bytes,
            upload_s=self.upload_s,
            evicted=self.evicted,
        )


class SlotMechanism:
    """Keeps experts in slots, over a mechanism that keeps them in memory."""

    def __init__(
        self,
        desk: SlotDesk,
        below: Mechanism,
        policy: Callable[[], CachePolicy],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._desk = desk
        self._below = below
        self._policy = policy
        self._clock = clock
        self._latencies = Latencies()
        self._books: Mapping[int, SlotBook] = {}

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files, and the slots."""
        slots = self._desk.slots
        if slots is None:
            raise EngineRefused("The engine has made no slots for experts.")
        self._below.attach(mapped)
        self._books = {
            layer: SlotBook(layer, slots=count, policy=self._policy())
            for layer, count in slots.counts.items()
        }
        self._desk.take(self)

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Have the experts in slots where the evaluation reads those, else in memory."""
        book = self._books.get(layer) if self._desk.uses_slots else None
        if book is None:
            return self._below.supply(layer, experts)
        request = book.request(experts)
        tally = self._desk.tally
        tally.hits += request.hits
        if not request.moves:
            return Supplied(hits=request.hits, misses=0, read_bytes=0, evicted=0, stall_s=0.0)
        started_s = self._clock()
        missing = [expert for expert, _ in request.moves]
        try:
            below = self._below.supply(layer, missing)
            uploaded_s = self._clock()
            moved_bytes = self._upload(layer, request.moves)
        except BaseException:
            book.drop(missing)  # nobody knows what these slots hold
            raise
        ended_s = self._clock()
        tally.uploads += len(missing)
        tally.upload_bytes += moved_bytes
        tally.upload_s += ended_s - uploaded_s
        tally.evicted += request.evicted
        self._latencies.note([ended_s - started_s] * len(missing))
        return Supplied(
            hits=request.hits,
            misses=len(missing),
            read_bytes=below.read_bytes,
            evicted=request.evicted,
            stall_s=ended_s - started_s,
        )

    def slots_of(self, layer: int, experts: Sequence[int]) -> Sequence[int]:
        """Return the slots of experts that were supplied."""
        return self._books[layer].slots_of(experts)

    def latency(self) -> Latency | None:
        """Return how long missing experts took from the request until the device had them."""
        return self._latencies.summary()

    def held_experts(self) -> int:
        """How many experts are in slots."""
        return sum(len(book) for book in self._books.values())

    def is_full(self) -> bool:
        """Whether every slot holds an expert."""
        return all(book.is_full for book in self._books.values())

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Start reading experts into memory, but those that are in slots."""
        book = self._books.get(layer)
        if book is not None:
            experts = [expert for expert in experts if expert not in book]
        return self._below.prefetch(layer, experts) if experts else 0

    def resize(self, cache_bytes: int) -> None:
        """Hold no more than that in memory from now on; slots stay as they are."""
        self._below.resize(cache_bytes)

    def held_bytes(self) -> int:
        """Return the bytes of the experts that are held in memory, by the books."""
        return self._below.held_bytes()

    def resident_bytes(self) -> int:
        """Return the bytes of expert pages that are in memory, as the system tells (mincore)."""
        return self._below.resident_bytes()

    def detach(self) -> None:
        """Fill slots no more, and leave every address readable through the file's own mapping."""
        self._desk.leave(self)
        self._books = {}
        self._below.detach()

    def _upload(self, layer: int, moves: Sequence[tuple[int, int]]) -> int:
        slots = self._desk.slots
        assert slots is not None, "attached with them"
        return slots.upload(layer, moves)
