"""The supplier of experts: mechanism and policy at work, watched, counted, and tuned on the way.

All but `sample`, `resize` and the warm start is called on the engine's thread. A pass is one run
of the engine through the layers: it begins when the layer falls back, and ends when the engine
asks whether its tokens may leave. Mechanisms change only between passes, and never before the
first token of a run was decoded.

Knows: the order of all that happens around one request.
Does not know: how bytes are moved, which expert leaves, what a router is, or where records lie.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from moerun.engine.interface import MappedFile, Routing
from moerun.errors import MachineError, MoerunError
from moerun.experts.counters import StreamingSample
from moerun.experts.interface import ExpertKey
from moerun.experts.layout import ExpertLayout
from moerun.experts.order import StreamingOrder
from moerun.experts.parts import Parts, Working
from moerun.experts.prediction import RouterPredictor
from moerun.experts.tally import Foretelling, Pass, Tally, UseCounts
from moerun.experts.tuner import Tuner
from moerun.experts.warm_start import WarmStart
from moerun.planning.strategy import StreamingMode
from moerun.units import format_gib

_FULL_FRACTION: Final = 0.95
# The system's count walks over all pages of the experts: at most this part of the time goes there.
_COUNTING_PARTS: Final = 50
# A batch that needs so much of one layer is taken to need all of the next.
_NEARLY_ALL_FRACTION: Final = 0.75
_LAYERS_OF_ROOM: Final = 4
_LOST_NOTE: Final = (
    "slots for experts lost their trial: from the next start on, whole layers of experts lie in "
    "their memory"
)


class Streamer:
    """Supplies the engine with experts as an order says; `remember` is called when it closes."""

    def __init__(
        self,
        order: StreamingOrder,
        tuner: Tuner,
        parts: Parts,
        *,
        remember: Callable[["Streamer"], None] = lambda streamer: None,
    ) -> None:
        self.order = order
        self.tuner = tuner
        self._parts = parts
        self._remember = remember
        heard = (*order.layout.tensors, *order.slotted)
        self._streamed = {tensor.name: tensor.layer for tensor in heard}
        counts = {tensor.layer: tensor.expert_count for tensor in heard}
        self.uses = UseCounts(counts)
        self._slot_bytes = order.layout.slot_bytes
        self._following = dict(itertools.pairwise(sorted(self._slot_bytes)))
        self._every = {layer: range(n) for layer, n in counts.items()}
        self._cache_bytes = order.cache_bytes
        self._working = parts.start(tuner.setup.mechanism, order.cache_bytes)
        self._running = tuner.setup.mechanism
        self._mapped: tuple[MappedFile, ...] | None = None
        # The warm start asks from a thread of its own; without it nobody ever waits for this.
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # a mechanism that is looked at stays attached
        self._tally = Tally(at_s=parts.clock())
        self._pass = Pass()
        self._is_sound = True
        self._predictor: RouterPredictor | None = None
        self._cannot_foretell = False
        self._foretelling = Foretelling()
        self._notes = list(parts.notes)
        self._warm_start: WarmStart | None = None
        self._resident: tuple[float, int] | None = None  # good until then, bytes
        if parts.desk is not None:
            parts.desk.on_begin = self._begin_unheard

    @property
    def streamed(self) -> Mapping[str, int]:
        """The tensors that the engine may read only after `supply`, with their layers."""
        return self._streamed

    @property
    def wants_hidden(self) -> bool:
        """Whether routers are foretold, or may come to be."""
        if self._cannot_foretell:
            return False
        return bool(self.tuner.setup.preload_experts) or self.tuner.may_preload

    @property
    def wants_weights(self) -> bool:
        """Never: all chosen experts count alike."""
        return False

    @property
    def layout(self) -> ExpertLayout:
        """Where the experts lie."""
        return self.order.layout

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        """Take over the mappings, once after loading and before the first token."""
        try:
            self._working.mechanism.attach(mapped)
        except MachineError as error:
            self._fall_back(error, mapped)
        self._mapped = mapped
        for guard in self._parts.guards:
            guard.attach(self)
        self._pass.ended_s = self._parts.clock()
        self._warm_start = WarmStart(
            self._parts.hot,
            prefetch=self._read_warm,
            idle_s=self._idle_s,
            has_room=self._has_room,
        )
        self._warm_start.start()

    def supply(self, routing: Routing) -> None:
        """Return when the engine may read the chosen experts of the layer."""
        layer = routing.layer
        self._enter(layer, len(routing.rows))
        self._supply(layer, routing.experts)
        ahead = self.tuner.setup.preload_experts
        if not self._pass.is_decode:
            self._read_next_layer(layer, len(routing.experts))
        elif ahead and routing.hidden is not None:
            self._look_ahead(routing, ahead)

    def supply_layer(self, layer: int) -> None:
        """Return when the engine may read every expert of a layer whose choice it did not see."""
        self._enter(layer, 0)
        self._supply(layer, self._every[layer])

    def check(self) -> None:
        """End the pass, and raise when what was computed in it must not leave."""
        self._end_pass(self._parts.clock())
        for guard in self._parts.guards:
            guard.check()
        if self.tuner.setup.mechanism is not self._running:
            self._change(self.tuner.setup.mechanism)

    def close(self) -> None:
        """End all threads, remember what was learned, and give the memory back."""
        mapped, self._mapped = self._mapped, None
        if self._warm_start is not None:
            self._warm_start.stop()
        for guard in self._parts.guards:
            guard.close()
        self._predictor = None  # it may look at the engine's memory
        if mapped is not None:  # else loading failed before, or this was done before
            self._remember(self)
            with self._looking:
                self._working.mechanism.detach()
        self._parts.end()

    def resize(self, cache_bytes: int) -> int:
        """Hold no more than that from now on, and at least the minimum; return what holds."""
        held = min(max(cache_bytes, self.order.minimum_bytes), self.order.cache_bytes)
        with self._looking:  # a mechanism that gives way to another is not asked any more
            self._cache_bytes = held
            self._working.mechanism.resize(held)
        return held

    @property
    def cache_bytes(self) -> int:
        """How many bytes experts may take now."""
        return self._cache_bytes

    @property
    def anonymous_bytes(self) -> int:
        """How many bytes of experts lie in memory of our own: paging holds its in page cache."""
        if self._running is not StreamingMode.CACHE:
            return 0
        return self._working.mechanism.held_bytes()

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What of its order the mechanism cannot do, in sentences."""
        return self._working.notes()

    def sample(self) -> StreamingSample:
        """Look at all counters; may be called from any thread."""
        now_s = self._parts.clock()
        working, layout = self._working, self.order.layout
        decode, prefill, recent = self._tally.traffic(now_s)
        warm = self._warm_start
        heat = self.uses.heat(working.policy)
        held = {layer.layer: sum(layer.is_held) for layer in heat}
        reading = self._parts.reading() if self._parts.reading is not None else (None, None)
        desk = self._parts.desk
        notes = [*self._notes, *working.notes(), *(desk.refused if desk is not None else ())]
        if desk is not None and self.tuner.has_learned and self.tuner.is_done:
            notes += () if self._running is StreamingMode.SLOTS else (_LOST_NOTE,)
        for guard in self._parts.guards:
            notes += guard.notes()
        if warm is not None and warm.failure is not None:
            notes.append(f"the last run's experts are not read ahead: {warm.failure}")
        if warm is not None and warm.read_bytes:
            read = format_gib(warm.read_bytes)
            notes.append(f"{read} of what earlier runs used most were read while nobody waited")
        return StreamingSample(
            at_s=now_s,
            mechanism=self._running.value,
            policy=self.policy_name,
            because=self.tuner.because,
            limit_bytes=self.order.limit_bytes,
            cache_bytes=self._cache_bytes,
            minimum_bytes=self.order.minimum_bytes,
            expert_bytes=layout.expert_bytes,
            expert_count=sum(layout.expert_counts.values()),
            held_bytes=sum(n * self._slot_bytes.get(layer, 0) for layer, n in held.items()),
            held_experts=sum(held.values()),
            resident_bytes=self._resident_bytes(now_s),
            decode=decode,
            prefill=prefill,
            recent=recent,
            latency=working.latency(),
            preloading=self._foretelling.counters(self.tuner.setup.preload_experts),
            major_faults=self._parts.faults(),
            full_loading_bytes=layout.resident_bytes + layout.expert_bytes,
            heat=heat,
            notes=tuple(dict.fromkeys(notes)),
            storage_read_bytes=reading[0],
            storage_busy_s=reading[1],
            ssd_cache=self._parts.copying(),
            slots=desk.counters() if desk is not None else None,
        )

    @property
    def policy_name(self) -> str:
        """The name of the policy, as settings spell it."""
        from moerun.experts.policy import DEFAULT_POLICY

        return (self.order.policy or DEFAULT_POLICY).value

    def _supply(self, layer: int, experts: Sequence[int]) -> None:
        try:
            with self._lock:
                supplied = self._working.mechanism.supply(layer, experts)
        except BaseException:
            self._is_sound = False  # what is held after a failed read is known to nobody
            raise
        state = self._pass
        state.supplied_s = self._parts.clock()
        state.stall_s += supplied.stall_s
        self._foretelling.see(layer, experts)
        self._tally.note(supplied, is_decode=state.is_decode)
        self.uses.note(layer, experts)

    def _enter(self, layer: int, rows: int) -> None:
        """Note that the engine reached a layer; when it fell back, a pass has begun."""
        state = self._pass
        if not state.is_open or layer <= state.layer:
            self._begin_pass(self._parts.clock())
        if rows and not state.rows:
            state.rows, state.is_decode = rows, rows == 1 or self._is_step(rows)
        state.layer = layer

    def _begin_pass(self, now_s: float) -> None:
        self._end_pass(self._pass.supplied_s)
        if not self._is_sound:
            self._change(self._running)
            self._is_sound = True
        self._pass.begin(now_s)
        self._tally.begin_pass(now_s)

    def _end_pass(self, now_s: float) -> None:
        """Count the tokens of a pass that is over; a decoded one is a token of the tuner's."""
        state = self._pass
        if not state.is_open:
            return
        state.is_open = False
        state.ended_s = now_s
        span_s = max(0.0, now_s - state.started_s)
        tokens = max(1, state.rows)
        self._tally.end_pass(tokens=tokens, span_s=span_s, at_s=now_s, is_decode=state.is_decode)
        if self._parts.desk is not None:
            self._parts.desk.note_tokens(tokens)
        if state.is_decode and tokens == 1 and not self.tuner.is_done:
            is_settled = self._is_full() and self._working.is_settled()
            self.tuner.feed(span_s, stall_s=state.stall_s, is_settled=is_settled)

    def _begin_unheard(self, tokens: int) -> None:
        """Begin a pass of which no request will come: all its experts are in memory."""
        now_s = self._parts.clock()
        self._begin_pass(now_s)
        self._pass.rows = tokens
        self._pass.is_decode = tokens == 1 or self._is_step(tokens)

    def _is_step(self, rows: int) -> bool:
        """Whether so many tokens are taken for one each of several answers, as slots allow."""
        desk = self._parts.desk
        return desk is not None and desk.fits(rows)

    def _is_full(self) -> bool:
        room = min(self._cache_bytes, self.order.layout.expert_bytes)
        return self._working.mechanism.held_bytes() >= _FULL_FRACTION * room

    def _has_room(self) -> bool:
        return not self._is_full()

    def _change(self, mode: StreamingMode) -> None:
        """Let another mechanism take over; where it cannot, the one before goes on."""
        assert self._mapped is not None, "tokens are decoded only while the model is mapped"
        before = self._running
        with self._lock, self._looking:
            self._working.mechanism.detach()
            try:
                self._working = self._started(mode)
                self._running = mode
            except MoerunError as error:
                self._working = self._started(before)
                setup = replace(self.tuner.setup, mechanism=before)
                self.tuner.stay(setup, f"{mode.value} failed: {error.message}")

    def _fall_back(self, error: MachineError, mapped: tuple[MappedFile, ...]) -> None:
        """Begin with paging where the system gives no memory for a cache that nobody insists on."""
        if self.order.mode is not StreamingMode.AUTO or self._running is StreamingMode.PAGING:
            raise error
        refused, self._running = self._running, StreamingMode.PAGING
        self._working = self._parts.start(self._running, self._cache_bytes)
        self._working.mechanism.attach(mapped)
        setup = replace(self.tuner.setup, mechanism=self._running)
        self.tuner.stay(setup, f"{refused.value} failed: {error.message.rstrip('.')}")

    def _started(self, mode: StreamingMode) -> Working:
        working = self._parts.start(mode, self._cache_bytes)
        working.mechanism.attach(self._mapped or ())
        return working

    def _look_ahead(self, routing: Routing, count: int) -> None:
        """Start reading what the next layer's router will likely choose."""
        predictor = self._open_predictor()
        if predictor is None or routing.hidden is None:
            return
        found = predictor.predict(routing.layer, routing.hidden, count)
        if found is None:
            return
        layer, experts = found
        policy = self._working.policy
        missing = [expert for expert in experts if ExpertKey(layer, expert) not in policy]
        asked_bytes = 0
        if missing:
            with self._lock:
                asked_bytes = self._working.mechanism.prefetch(layer, missing)
            experts_read = asked_bytes // self._slot_bytes[layer]
            self._tally.note_ahead(asked_bytes, experts_read, is_decode=True)
        self._foretelling.expect(layer, experts, missing=missing, asked_bytes=asked_bytes)

    def _read_next_layer(self, layer: int, chosen: int) -> None:
        """Start reading the whole next layer, where a batch needs nearly all of this one.

        There has to be room for both, and for as much again, so that a small cache is not emptied
        of what the answer will need.
        """
        following = self._following.get(layer)
        if following is None or chosen < _NEARLY_ALL_FRACTION * len(self._every[layer]):
            return
        layer_bytes = len(self._every[following]) * self._slot_bytes[following]
        if self._cache_bytes < _LAYERS_OF_ROOM * layer_bytes:
            return
        policy = self._working.policy
        missing = [e for e in self._every[following] if ExpertKey(following, e) not in policy]
        if missing:
            with self._lock:
                asked_bytes = self._working.mechanism.prefetch(following, missing)
            experts = asked_bytes // self._slot_bytes[following]
            self._tally.note_ahead(asked_bytes, experts, is_decode=False)

    def _open_predictor(self) -> RouterPredictor | None:
        if self._predictor is None and not self._cannot_foretell:
            try:
                self._predictor, note = self._parts.foresee(self._mapped or ())
            except MoerunError as error:
                self._predictor, note = None, f"routers cannot be foretold: {error.message}"
            if note is not None:
                self._notes.append(note)
            if not self._predictor:
                self._predictor, self._cannot_foretell = None, True
        return self._predictor

    def _read_warm(self, key: ExpertKey) -> int:
        """Start reading one expert of the last run, unless the engine began to compute."""
        with self._lock:
            if self._pass.is_open or key in self._working.policy:
                return 0
            return self._working.mechanism.prefetch(key.layer, (key.expert,))

    def _idle_s(self) -> float:
        state = self._pass
        return 0.0 if state.is_open else self._parts.clock() - state.ended_s

    def _resident_bytes(self, now_s: float) -> int | None:
        """Return what the system says of the experts' pages, asked now and then."""
        with self._looking:
            if self._mapped is None:
                return None
            if self._resident is None or now_s >= self._resident[0]:
                counted_bytes = self._working.mechanism.resident_bytes()
                took_s = self._parts.clock() - now_s
                self._resident = (now_s + _COUNTING_PARTS * took_s, counted_bytes)
            return self._resident[1]
