"""One model streamed in many ways, held against plain llama-cpp-python, in a process of its own.

A native crash ends this process and not the tests. Every run is a line of JSON on standard output.

Knows: what is run, and what happens in the middle of it.
Does not know: which differences a test accepts (none).
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.decode import Decoder
from moerun.engine.llama import LlamaEngine
from moerun.errors import ModelError
from moerun.experts.assembly import open_order
from moerun.experts.counters import StreamingSample
from moerun.experts.interface import Mechanism, Supplied
from moerun.experts.layout import page_slot_bytes
from moerun.experts.order import PolicyName, StreamingOrder
from moerun.experts.simulate import least_cache_bytes
from moerun.experts.streamer import Streamer
from moerun.experts.tuner import Setup
from moerun.planning.strategy import LoadMode, StreamingMode
from tests.engine.lossless_child import script
from tests.engine.placements import on_the_host
from tests.engine.plain import Script, Settings, last_logits, plain_logits
from tests.engine.suppliers import host_layout

SCRIPT = script(24, 16)
LENGTHY = script(200, 4)
CACHE, PAGING = StreamingMode.CACHE, StreamingMode.PAGING
AT = 6  # the step in whose middle of an answer things happen
Event = Callable[[Streamer], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to stream, and what happens in the middle of the answer."""

    name: str
    mode: StreamingMode = CACHE
    policy: PolicyName | None = None
    preload_experts: int = 0
    cycles: float | None = 1.5  # of one token's experts; None holds all
    event: Event | None = None
    script: Script = SCRIPT
    ubatch_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedRun:
    """One run: rows of logits that differ, and what the streamer counted."""

    name: str
    rows: int
    rows_apart: int
    mechanism: str
    decode_hits: int
    decode_misses: int
    evicted: int
    predicted: int
    held_experts: int
    cache_bytes: int
    notes: tuple[str, ...]


def ways() -> Iterator[Way]:
    """Yield what is run."""
    for mode in (CACHE, PAGING):
        name = mode.value
        yield Way(name=f"{name} at its least", mode=mode)
        yield Way(name=f"{name} by LRU", mode=mode, policy=PolicyName.LRU)
        yield Way(name=f"{name} of all", mode=mode, cycles=None)
        yield Way(name=f"{name} reading ahead", mode=mode, preload_experts=2, cycles=2.5)
        yield Way(name=f"{name}, a long prompt", mode=mode, script=LENGTHY, ubatch_tokens=64)
        yield Way(
            name=f"{name} made smaller",
            mode=mode,
            cycles=4.0,
            event=made_smaller,
        )
        yield Way(name=f"{name} below a layer", mode=mode, cycles=0.6)
    for mode, other in ((CACHE, PAGING), (PAGING, CACHE)):
        for event in (changed_to(other), failed):
            yield Way(name=f"{mode.value}, {event.__name__}", mode=mode, cycles=2.0, event=event)


def made_smaller(streamer: Streamer) -> None:
    """Take from the cache all that it can give, as when memory is short."""
    streamer.resize(0)


def changed_to(mode: StreamingMode) -> Event:
    """Return what has another mechanism take over after the next token."""

    def changed(streamer: Streamer) -> None:
        streamer.tuner.stay(Setup(mechanism=mode), "a test wants it")

    return changed


def failed(streamer: Streamer) -> None:
    """Have a request fail, after which nothing that was held may be used."""
    broken = streamer._working.mechanism

    class Failing:
        def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
            raise ModelError("a test wants it")

        def __getattr__(self, name: str) -> object:
            return getattr(broken, name)

    streamer._working = replace(streamer._working, mechanism=cast(Mechanism, Failing()))
    with suppress(ModelError):
        streamer.supply_layer(min(streamer.layout.by_layer))


def order_of(path: Path, way: Way) -> StreamingOrder:
    """Return the order of one way; a cache below its least only tests may ask for."""
    layout = host_layout(path)
    slots = page_slot_bytes(layout)
    least_bytes = least_cache_bytes(slots, layout.experts_used)
    every_bytes = sum(slots[layer] * count for layer, count in layout.expert_counts.items())
    cache_bytes = every_bytes
    if way.cycles is not None:
        cache_bytes = min(every_bytes, int(least_bytes / 1.5 * way.cycles))
    return StreamingOrder(
        layout=layout,
        mode=way.mode,
        limit_bytes=1 << 40,
        cache_bytes=cache_bytes,
        minimum_bytes=min(least_bytes, cache_bytes),
        policy=way.policy,
        preload_experts=way.preload_experts,
        is_adaptive=False,
    )


def run(path: Path, way: Way, settings: Settings) -> tuple[NDArray[np.float32], StreamingSample]:
    """Load, run the script with its event, and return logits and counters."""
    opened = open_order(order_of(path, way), engine_version="test")
    streamer = opened.streamer
    assert streamer is not None, "the mode of every way streams"
    args = replace(on_the_host(path, settings), load_mode=LoadMode.STREAM)
    session = LlamaEngine(log_sink=None).load(args, supplier=opened.supplier)
    decoder = Decoder(session.loaded)
    rows = [decoder.evaluate(list(way.script.prompt))]
    for step, token in enumerate(way.script.steps):
        if step == AT and way.event is not None:
            way.event(streamer)
        decoder.advance(token)
        rows.append(last_logits(session.loaded.context))
    sample = streamer.sample()
    session.close()
    return np.concatenate(rows), sample


def compare(path: Path, way: Way) -> StreamedRun:
    """Run one way beside the reference."""
    settings = Settings(ubatch_tokens=way.ubatch_tokens)
    expected = plain_logits(path, settings, way.script)
    logits, sample = run(path, way, settings)
    is_apart = np.any(logits.view(np.uint32) != expected.view(np.uint32), axis=1)
    return StreamedRun(
        name=way.name,
        rows=len(expected),
        rows_apart=int(is_apart.sum()),
        mechanism=sample.mechanism,
        decode_hits=sample.decode.hits,
        decode_misses=sample.decode.misses,
        evicted=sample.decode.experts_out + sample.prefill.experts_out,
        predicted=sample.preloading.predicted if sample.preloading is not None else 0,
        held_experts=sample.held_experts,
        cache_bytes=sample.cache_bytes,
        notes=sample.notes,
    )


def main(path: str) -> None:
    """Print one line for each way."""
    for way in ways():
        sys.stdout.write(json.dumps(to_plain(compare(Path(path), way))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
