"""Models with slots for some of their experts, held against themselves without, in one process.

A native crash ends this process and not the tests. Every run is a line of JSON on standard output.
The reference has the very same placement, experts on the host, and no slots.

Knows: what is run, and when slots are in use.
Does not know: which differences a test accepts (none).
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.decode import Decoder, Piece
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.machine.description import DeviceId
from tests.engine.builders import device_references
from tests.engine.placements import EXPERTS_ON_HOST, device_placements
from tests.engine.plain import Settings
from tests.engine.slot_suppliers import InSlots, slots_everywhere
from tests.engine.suppliers import host_layout
from tests.tiny_models import MOE_ARCHITECTURES, write_tiny_model

SCALED = "qwen3moe with a scale for every expert"
# Five slots hold what two tokens use, so that the others cross the limit, there and back.
BATCHES = (24, 1, 1, 1, 2, 1, 2, 2, 5, 1, 1, 40, 1, 2, 3, 1, 1)
SLOTS = 5
BY_TURNS = "by turns"  # and nothing is heard while slots are not in use


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRun:
    """One run: rows of logits that differ from the reference's, and how slots were used."""

    name: str
    way: str
    rows: int
    rows_apart: int
    evaluations: int
    in_slots: int
    hits: int
    misses: int
    layers: int
    slot_layers: int
    slot_bytes: int
    planned_bytes: int
    refused: tuple[str, ...]


def logits(session: LlamaSession, rounds: int = 1) -> NDArray[np.float32]:
    """Run the batches, each time from the start, and return the logits after each batch."""
    decoder = Decoder(session.loaded)
    random = np.random.default_rng(11)
    rows = []
    for _ in range(rounds):
        decoder.clear()
        for size in BATCHES:
            tokens = [int(token) for token in random.integers(3, 258, size)]
            decoder.run((Piece(sequence=0, tokens=tokens, wants_logits=True),))
            rows.append(decoder.logits(-1).copy())
    return np.array(rows)


def ways() -> tuple[tuple[str, Callable[[int], bool], int], ...]:
    """Return names of ways to use slots, when each does, and how often all is run."""
    return (
        ("wherever they fit", lambda number: True, 2),
        (BY_TURNS, lambda number: number // 2 % 2 == 0, 1),
    )


def arguments_for(
    path: Path, devices: tuple[EngineDeviceRef, ...], workers: tuple[str, ...]
) -> EngineArgs:
    placements = device_placements(path, Settings(), (devices[0], devices[0]), workers)
    return next(p.args for p in placements if p.name == EXPERTS_ON_HOST)


def compare(name: str, path: Path, args: EngineArgs, device: DeviceId) -> Iterator[SlotRun]:
    """Yield what each way gives for one model."""
    plain = LlamaEngine(log_sink=None).load(args)
    expected = logits(plain, rounds=2)
    plain.close()
    layout = host_layout(path)
    wished = slots_everywhere(layout, device, SLOTS)
    for way, wants, rounds in ways():
        supplier = InSlots(layout, wants=wants, hears_all=way != BY_TURNS)
        session = LlamaEngine(log_sink=None).load(
            replace(args, expert_slots=wished), supplier=supplier, slots=supplier
        )
        taken = session.loaded.slots
        assert taken is not None
        found = logits(session, rounds)
        session_bytes = sum(taken.device_bytes.values())
        counts = taken.counts
        session.close()
        wanted = expected[: len(found)]
        is_apart = np.any(found.view(np.uint32) != wanted.view(np.uint32), axis=1)
        yield SlotRun(
            name=name,
            way=way,
            rows=len(wanted),
            rows_apart=int(is_apart.sum()),
            evaluations=len(supplier.used),
            in_slots=sum(supplier.used),
            hits=supplier.hits,
            misses=supplier.misses,
            layers=len(layout.by_layer),
            slot_layers=len(counts),
            slot_bytes=session_bytes,
            planned_bytes=sum(layout.slot_bytes[n] * count for n, count in counts.items()),
            refused=supplier.refused,
        )


def main(arguments: Sequence[str]) -> None:
    """Print the runs of the models that lie in a folder; the others are workers."""
    folder, *workers = arguments
    devices = device_references(tuple(workers))
    for name in (*MOE_ARCHITECTURES, SCALED):
        path = Path(folder) / f"{name}.gguf"
        if name == SCALED:
            write_tiny_model(path, "qwen3moe", scaled_experts=True)
        elif not path.exists():
            write_tiny_model(path, name)
        args = arguments_for(path, devices, tuple(workers))
        for run in compare(name, path, args, devices[0].id):
            sys.stdout.write(json.dumps(to_plain(run)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
