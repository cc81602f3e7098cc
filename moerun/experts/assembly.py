"""A streamer from an order: its mechanism, policy, guards, and what earlier runs left.

Knows: which parts an order asks for, and what is remembered when a run ends.
Does not know: what the parts do.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from moerun.engine.interface import ExpertSupplier, MappedFile, SlotSupplier
from moerun.experts.budget import CacheBounds
from moerun.experts.counters import SsdCacheUse
from moerun.experts.file_identity import FileGuard
from moerun.experts.hot_set import HotSet, merged, read_hot_set, write_hot_set
from moerun.experts.interface import ExpertKey
from moerun.experts.mechanisms import Mechanisms, mechanism_below
from moerun.experts.order import StreamingOrder
from moerun.experts.parts import Guard, Parts, Working
from moerun.experts.prediction import RouterPredictor, open_predictor
from moerun.experts.pressure import MemoryGuard
from moerun.experts.slots import SlotDesk
from moerun.experts.streamer import Streamer
from moerun.experts.trace import traced_supplier
from moerun.experts.trial import TrialRules
from moerun.experts.tuner import Choices, Setup, Tuner
from moerun.experts.tuning import Learned, key_of, read_tuning, write_tuning
from moerun.planning.strategy import StreamingMode

_MECHANISMS: Final = (StreamingMode.CACHE, StreamingMode.PAGING)
_NAMES: Final = {StreamingMode.OFF: "all experts on the host"}


class Workshop(Protocol):
    """Makes the mechanisms of one order; `start` makes one with an empty policy for some bytes."""

    def start(self, mode: StreamingMode, cache_bytes: int) -> Working:
        """Return a mechanism that holds nothing yet."""
        ...

    def reading(self) -> tuple[int, float]:
        """Return the bytes that were read so far, and for how long a read was under way."""
        ...

    def copying(self) -> SsdCacheUse | None:
        """Return what the SSD cache holds and did; None without one."""
        ...

    @property
    def reader_threads(self) -> int:
        """How many threads read."""
        ...

    @property
    def read_bytes(self) -> int:
        """How large one read is, at most."""
        ...

    def close(self) -> None:
        """End what the mechanisms share."""
        ...


Start = Callable[[StreamingOrder, SlotDesk | None], Workshop]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an order comes to: what the engine asks of experts and slots, the streamer in it."""

    supplier: ExpertSupplier | None
    streamer: Streamer | None
    slots: SlotSupplier | None = None


def open_order(order: StreamingOrder, *, engine_version: str, start: Start = Mechanisms) -> Opened:
    """Return what carries out an order: a streamer, a recorder of routing, or the one in the other.

    `start` opens what makes the mechanisms of an order.
    """
    streamer = desk = None
    if order.slots is not None:
        streams = order.mode is not StreamingMode.OFF
        desk = SlotDesk(hears_all=streams or order.trace_path is not None)
    if order.mode is not StreamingMode.OFF or desk is not None:
        streamer = open_streamer(order, engine_version=engine_version, start=start, desk=desk)
    return Opened(supplier=traced_supplier(order, streamer), streamer=streamer, slots=desk)


def open_streamer(
    order: StreamingOrder,
    *,
    engine_version: str,
    start: Start,
    desk: SlotDesk | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Streamer:
    """Return the streamer of an order; raises where its files are not what the order says.

    `desk` is what the engine will ask about the order's slots.
    """
    memory = _Memory(order, engine_version)
    tuner = _tuner(order, memory.learned)
    if memory.learned is not None:
        order = _with_readers(order, memory.learned)
    notes = tuple(note for note in memory.notes if note is not None)
    guards = _guards(order)
    workshop = start(order, desk)
    parts = Parts(
        start=workshop.start,
        end=workshop.close,
        reading=workshop.reading,
        copying=workshop.copying,
        foresee=lambda mapped: _foresee(order, mapped),
        guards=guards,
        hot=memory.hottest(),
        notes=notes,
        faults=major_faults,
        desk=desk,
        clock=clock,
    )

    def remember(streamer: Streamer) -> None:
        memory.remember(streamer, workshop)

    return Streamer(order, tuner, parts, remember=remember)


class _Memory:
    """What earlier runs left in the state folder, and what this one leaves there."""

    def __init__(self, order: StreamingOrder, engine_version: str) -> None:
        self._order = order
        self._state = Path(order.state_folder) if order.state_folder is not None else None
        self._key = key_of(order, engine_version=engine_version)
        self.learned: Learned | None = None
        self.notes: list[str | None] = []
        self._hot: HotSet | None = None
        if self._state is not None:
            self.learned, note = read_tuning(self._state, self._key)
            self.notes.append(note)
            counts = order.layout.expert_counts
            self._hot, note = read_hot_set(self._state, order.model_digest, counts)
            self.notes.append(note)

    def hottest(self) -> tuple[ExpertKey, ...]:
        """Return as many experts of earlier runs as the cache can hold."""
        largest = max(self._order.layout.slot_bytes.values(), default=1)
        return self._hot.hottest(self._order.cache_bytes // largest) if self._hot else ()

    def remember(self, streamer: Streamer, workshop: Workshop) -> None:
        """Write what was used, and what was found out; the runner's log tells what failed."""
        if self._state is None:
            return
        uses = streamer.uses.by_layer()
        if any(any(layer) for layer in uses.values()):
            hot = merged(self._order.model_digest, self._hot, uses)
            _tell(write_hot_set(self._state, hot))
        tuner, before = streamer.tuner, self.learned
        is_winner = before is not None and before.mechanism is tuner.setup.mechanism
        # A mechanism that was asked for by name was not held against the other one.
        if tuner.has_learned and (_is_open(self._order) or is_winner):
            earlier = [before.because] if before is not None else []
            learned = Learned(
                model_digest=self._key.model_digest,
                machine_fingerprint=self._key.machine_fingerprint,
                engine_version=self._key.engine_version,
                limit_bytes=self._key.limit_bytes,
                mechanism=tuner.setup.mechanism,
                preload_experts=tuner.setup.preload_experts if tuner.is_done else None,
                because="; ".join([*earlier, *(verdict.because for verdict in tuner.verdicts)]),
                reader_threads=workshop.reader_threads,
                read_bytes=workshop.read_bytes,
            )
            _tell(write_tuning(self._state, self._key, learned))


def _tell(failure: str | None) -> None:
    """Have a sentence on what could not be kept stand in the log: nobody reads answers any more."""
    if failure is not None:
        logging.getLogger(__name__).warning(failure)


def _tuner(order: StreamingOrder, learned: Learned | None) -> Tuner:
    """Return how an order begins, and what it leaves to be tried."""
    mechanism: StreamingMode
    others: tuple[StreamingMode, ...] = ()
    is_forced = order.slots is not None and not order.slots.is_trial
    if is_forced or not _is_open(order):
        mechanism = StreamingMode.SLOTS if is_forced else order.mode
        reason = f"{mechanism.value} was asked for"
    elif learned is not None and _is_possible(order, learned.mechanism):
        mechanism, reason = learned.mechanism, f"an earlier run here found: {learned.because}"
    else:
        mechanism = mechanism_below(order)
        named = _NAMES.get(mechanism, mechanism.value)
        reason = f"no run of this model was measured here yet; begins with {named}"
        open_modes = _MECHANISMS if order.mode is StreamingMode.AUTO else ()
        slots = (StreamingMode.SLOTS,) if order.slots is not None else ()
        others = tuple(mode for mode in (*open_modes, *slots) if mode is not mechanism)
    ahead = order.preload_experts
    if ahead is not None:
        counts: tuple[int, ...] = ()
    elif (
        learned is not None
        and learned.preload_experts is not None
        and order.mode in (StreamingMode.AUTO, learned.mechanism)
    ):
        ahead, counts = learned.preload_experts, ()
    else:
        # Reading ahead won under every limit that was measured, so it is what a trial has to beat.
        ahead, counts = order.layout.experts_used, (0,)
    return Tuner(
        Setup(mechanism=mechanism, preload_experts=ahead),
        Choices(mechanisms=others, preload_experts=counts),
        because=reason,
        rules=_rules(order),
    )


def _is_open(order: StreamingOrder) -> bool:
    """Whether it is left to the run which mechanism wins."""
    if order.slots is not None:
        return order.slots.is_trial
    return order.mode is StreamingMode.AUTO


def _is_possible(order: StreamingOrder, mechanism: StreamingMode) -> bool:
    """Whether an order can run by a mechanism that an earlier one found to be the best."""
    if mechanism is StreamingMode.SLOTS:
        return order.slots is not None
    return (mechanism is StreamingMode.OFF) == (order.mode is StreamingMode.OFF)


def _rules(order: StreamingOrder) -> TrialRules:
    """Return by how much a challenger must be faster.

    Slots must beat what whole layers of experts would have saved in the same memory, too.
    """
    usual = TrialRules()
    least_fraction = order.slots.least_gain_fraction if order.slots is not None else 0.0
    return replace(usual, gain_fraction=max(usual.gain_fraction, least_fraction))


def _with_readers(order: StreamingOrder, learned: Learned) -> StreamingOrder:
    """Return the order with the threads and the read size of an earlier run, where it left them."""
    return replace(
        order,
        reader_threads=order.reader_threads or learned.reader_threads,
        read_bytes=order.read_bytes or learned.read_bytes,
    )


def _guards(order: StreamingOrder) -> tuple[Guard, ...]:
    bounds = CacheBounds(
        floor_bytes=order.minimum_bytes,
        ceiling_bytes=order.cache_bytes,
        is_adaptive=order.is_adaptive,
    )
    return (FileGuard(order.layout.files), MemoryGuard(bounds))


def _foresee(
    order: StreamingOrder, mapped: Sequence[MappedFile]
) -> tuple[RouterPredictor, str | None]:
    return open_predictor(
        order.layout.files[0].path,
        sorted(order.layout.by_layer),
        mapped=mapped,
        resident=order.layout.resident,
    )


def major_faults() -> int | None:
    """Return how many page faults of this process waited for storage; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
