"""A mechanism without memory and the other parts of a streamer, for tests of what is above."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moerun.engine.interface import MappedFile, Routing
from moerun.errors import MachineError, MoerunError
from moerun.experts.book import CacheBook
from moerun.experts.counters import SsdCacheUse
from moerun.experts.interface import ExpertKey, Supplied
from moerun.experts.layout import ExpertLayout, FileRange, StreamedTensor
from moerun.experts.order import PolicyName, StreamingOrder
from moerun.experts.parts import Parts, Working
from moerun.experts.policy import make_policy
from moerun.experts.prediction import RouterPredictor
from moerun.model.description import ModelFile
from moerun.planning.strategy import StreamingMode

SLOT_BYTES = 10


class FakeClock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeMechanism:
    """Books without bytes. `stall_s` passes for each missing expert; `fails` makes attach fail."""

    def __init__(self, clock: FakeClock, *, cache_bytes: int, stall_s=0.0, fails=False) -> None:
        self.clock = clock
        self.stall_s = stall_s
        self.fails = fails
        self.failure: MoerunError | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.policy = make_policy(PolicyName.LRU)
        self.book = CacheBook(
            self.policy, slot_bytes={0: SLOT_BYTES, 1: SLOT_BYTES}, cache_bytes=cache_bytes
        )

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        self.calls.append(("attach", len(mapped)))
        if self.fails:
            raise MachineError("no direct reads here")

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        self.calls.append(("supply", layer, tuple(experts)))
        if self.failure is not None:
            raise self.failure
        asked = self.book.request(layer, experts)
        stall_s = self.stall_s * len(asked.misses)
        self.clock.now_s += stall_s
        return Supplied(
            hits=len(asked.hits),
            misses=len(asked.misses),
            read_bytes=SLOT_BYTES * len(asked.misses),
            evicted=len(asked.victims),
            stall_s=stall_s,
        )

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        self.calls.append(("prefetch", layer, tuple(experts)))
        return SLOT_BYTES * len(self.book.foretell(layer, experts).entering)

    def resize(self, cache_bytes: int) -> None:
        self.calls.append(("resize", cache_bytes))
        self.book.resize(cache_bytes)

    def held_bytes(self) -> int:
        return self.book.held_bytes

    def resident_bytes(self) -> int:
        return self.book.held_bytes + 4

    def detach(self) -> None:
        self.calls.append(("detach",))


class Workshop:
    """Makes fake mechanisms and keeps them; `stalls` and `failing` are by mechanism."""

    reader_threads = 4
    read_bytes = 1 << 20

    def __init__(self, *, predictor: RouterPredictor | None = None) -> None:
        self.clock = FakeClock()
        self.made: list[tuple[StreamingMode, FakeMechanism]] = []
        self.stalls: dict[StreamingMode, float] = {}
        self.failing: set[StreamingMode] = set()
        self.predictor = predictor
        self.closed = 0

    @property
    def mechanism(self) -> FakeMechanism:
        return self.made[-1][1]

    def start(self, mode: StreamingMode, cache_bytes: int) -> Working:
        mechanism = FakeMechanism(
            self.clock,
            cache_bytes=cache_bytes,
            stall_s=self.stalls.get(mode, 0.0),
            fails=mode in self.failing,
        )
        self.made.append((mode, mechanism))
        return Working(mechanism=mechanism, policy=mechanism.policy)

    def reading(self) -> tuple[int, float]:
        return 300, 0.5

    def copying(self) -> SsdCacheUse | None:
        return None

    def close(self) -> None:
        self.closed += 1

    def foresee(self, mapped: Sequence[MappedFile]) -> tuple[RouterPredictor, str | None]:
        if self.predictor is None:
            raise MoerunError("the router of layer 1 cannot be read")
        return self.predictor, None

    def parts(self, *, guards=(), hot: Sequence[ExpertKey] = (), notes=()) -> Parts:
        return Parts(
            start=self.start,
            foresee=self.foresee,
            guards=guards,
            hot=tuple(hot),
            notes=notes,
            faults=lambda: 3,
            reading=self.reading,
            end=self.close,
            clock=self.clock,
        )


def a_layout(*, layers=2, experts=8, experts_used=2) -> ExpertLayout:
    """Return layers of experts of 10 bytes in a file of 1,000, where 100 more always stay."""
    return ExpertLayout(
        files=(ModelFile(path="/models/m.gguf", size_bytes=1000, data_offset_bytes=0),),
        tensors=tuple(
            StreamedTensor(
                name=f"blk.{layer}.ffn_{part}_exps.weight",
                layer=layer,
                file_index=0,
                offset_bytes=100 + (2 * layer + number) * experts * SLOT_BYTES // 2,
                expert_bytes=SLOT_BYTES // 2,
                expert_count=experts,
            )
            for layer in range(layers)
            for number, part in enumerate(("up", "down"))
        ),
        resident=(FileRange(file_index=0, offset_bytes=0, size_bytes=100),),
        experts_used=experts_used,
    )


def an_order(**changes) -> StreamingOrder:
    """Return an order whose cache holds 6 of 16 experts."""
    fields = {
        "layout": a_layout(),
        "mode": StreamingMode.CACHE,
        "limit_bytes": 500,
        "cache_bytes": 60,
        "minimum_bytes": 40,
        "model_digest": "digest",
        "machine_fingerprint": "machine",
    }
    return StreamingOrder(**{**fields, **changes})


def a_routing(layer, *rows, hidden=None) -> Routing:
    """Return the choice of one layer for one or more tokens."""
    return Routing(
        layer=layer,
        experts=tuple(dict.fromkeys(expert for row in rows for expert in row)),
        rows=np.array(rows, dtype=np.int32),
        hidden=None if hidden is None else np.array([hidden], dtype=np.float32),
    )
