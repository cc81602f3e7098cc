"""Slots filled by the streamer, over experts in memory and over those on SSD, in one process.

A native crash ends this process and not the tests. Every run is a line of JSON on standard output.
The reference has the very same placement, all experts in memory, and no slots.

Knows: what is run, and what happens in the middle of it.
Does not know: which differences a test accepts (none).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.arguments import EngineArgs, LayerSlots
from moerun.engine.decode import Decoder
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.experts.assembly import open_order
from moerun.experts.counters import StreamingSample
from moerun.experts.layout import ExpertLayout
from moerun.experts.order import StreamingOrder
from moerun.machine.description import DeviceId
from moerun.planning.plan import SlotLayer, SlotPlan
from moerun.planning.strategy import LoadMode, StreamingMode
from tests.engine.builders import device_references
from tests.engine.lossless_child import script
from tests.engine.plain import Script, last_logits
from tests.engine.slots_child import arguments_for
from tests.engine.suppliers import host_layout

SLOTS = 6
OFF, PAGING, CACHE = StreamingMode.OFF, StreamingMode.PAGING, StreamingMode.CACHE
SHORT, LONG = script(24, 24), script(24, 120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run slots; without streaming layers all experts are in memory.

    `streams` names the layers that come from SSD where some are held.
    """

    name: str
    mode: StreamingMode
    is_trial: bool = False
    script: Script = SHORT
    streams: tuple[int, ...] = (0, 1, 2, 3)
    preload_experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStreamingRun:
    """One run: rows of logits that differ, and what the streamer counted."""

    name: str
    rows: int
    rows_apart: int
    sample: StreamingSample


WAYS = (
    Way(name="over experts in memory", mode=OFF),
    Way(name="over paging", mode=PAGING),
    Way(name="over a cache, reading ahead", mode=CACHE, preload_experts=2),
    Way(name="two layers in memory", mode=PAGING, streams=(1, 3)),
    Way(name="tried against the host", mode=OFF, is_trial=True, script=LONG),
    Way(name="tried against paging", mode=PAGING, is_trial=True, script=LONG),
)


def slot_plan(layout: ExpertLayout, device: DeviceId, way: Way) -> SlotPlan:
    return SlotPlan(
        layers=tuple(
            SlotLayer(
                layer=layer,
                device=device,
                slots=SLOTS,
                slot_bytes=slot_bytes,
                size_bytes=SLOTS * slot_bytes,
            )
            for layer, slot_bytes in layout.slot_bytes.items()
        ),
        expected_hit_fraction=0.5,
        held_fraction=SLOTS / 8,
        is_trial=way.is_trial,
    )


def order_of(path: Path, device: DeviceId, way: Way) -> StreamingOrder:
    every = host_layout(path)
    layout = host_layout(path, on_device=lambda name: not _is_of(name, way.streams))
    return StreamingOrder(
        layout=layout,
        mode=way.mode,
        limit_bytes=1 << 40,
        cache_bytes=2 * layout.cycle_bytes + (layout.expert_bytes if way.mode is OFF else 0),
        minimum_bytes=layout.cycle_bytes,
        preload_experts=way.preload_experts,
        is_adaptive=False,
        slots=slot_plan(every, device, way),
        slotted=every.tensors,
    )


def _is_of(name: str, layers: Sequence[int]) -> bool:
    return any(name.startswith(f"blk.{layer}.") for layer in layers)


def logits(session: LlamaSession, script: Script) -> NDArray[np.float32]:
    decoder = Decoder(session.loaded)
    rows = [decoder.evaluate(list(script.prompt))[-1:]]
    for token in script.steps:
        decoder.advance(token)
        rows.append(last_logits(session.loaded.context))
    return np.concatenate(rows)


def run(path: Path, args: EngineArgs, way: Way) -> tuple[NDArray[np.float32], StreamingSample]:
    order = order_of(path, args.devices[0].id, way)
    assert order.slots is not None
    opened = open_order(order, engine_version="test")
    assert opened.streamer is not None
    slots = tuple(
        LayerSlots(layer=layer.layer, device=layer.device, slots=layer.slots)
        for layer in order.slots.layers
    )
    mode = LoadMode.MMAP if way.mode is OFF else LoadMode.STREAM
    session = LlamaEngine(log_sink=None).load(
        replace(args, expert_slots=slots, load_mode=mode),
        supplier=opened.supplier,
        slots=opened.slots,
    )
    found = logits(session, way.script)
    sample = opened.streamer.sample()
    session.close()
    return found, sample


def main(arguments: Sequence[str]) -> None:
    """Print the runs of the model at the first argument; the others are workers."""
    name, *workers = arguments
    path = Path(name)
    args = arguments_for(path, device_references(tuple(workers)), tuple(workers))
    plain = LlamaEngine(log_sink=None).load(args)
    expected = {way.script: logits(plain, way.script) for way in WAYS}
    plain.close()
    for way in WAYS:
        found, sample = run(path, args, way)
        wanted = expected[way.script]
        is_apart = np.any(found.view(np.uint32) != wanted.view(np.uint32), axis=1)
        result = SlotStreamingRun(
            name=way.name, rows=len(wanted), rows_apart=int(is_apart.sum()), sample=sample
        )
        sys.stdout.write(json.dumps(to_plain(result)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
