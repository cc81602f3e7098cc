"""The router's choices of one model in several placements, in a process of its own.

A native crash ends this process and not the tests. Every run is a line of JSON on standard
output. The experts that a run did not announce are poison (`Poisoned`), so logits that are equal
to the bit to those of plain llama-cpp-python say that it announced all that it read.

Knows: what is run and compared.
Does not know: which differences a test accepts (none).
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.llama import LlamaEngine
from moerun.planning.strategy import LoadMode
from tests.engine.builders import device_references
from tests.engine.lossless_child import LONG, SHORT, run_script
from tests.engine.placements import (
    EXPERTS_ON_HOST,
    GATE_AND_UP,
    device_placements,
    on_the_host,
)
from tests.engine.plain import Script, Settings, plain_logits
from tests.engine.suppliers import Heard, Poisoned, Recording, host_layout

GATE_AND_UP_ON_HOST = "down on the device, gate and up on the host"
TWO_DEVICES = "two devices, experts on the host"
ON_HOST, SMALL, LENGTHY, PLAIN_LOAD = (
    "host",
    "micro-batches of 8",
    "a long prompt",
    "loaded as ever",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRun:
    """One run: rows of logits that differ, layers that each evaluation heard, in its order.

    `choices_apart` counts choices that differ from those of the first run with the same script.
    """

    name: str
    rows: int
    rows_apart: int
    layers: tuple[int, ...]
    heard: tuple[tuple[int, ...], ...]
    whole_layers: tuple[int, ...]

    choices_apart: int
    out_of_range: int
    wrong_unions: int
    without_hidden: int
    without_weights: int


def runs(path: Path, workers: tuple[str, ...]) -> Iterator[HookRun]:
    """Yield every run of a model."""
    devices = device_references(workers)
    first: list[Heard] | None = None
    for name, args, script, is_poisoned in _cases(path, devices, workers):
        settings = Settings(ubatch_tokens=args.ubatch_tokens)
        expected = plain_logits(path, settings, script)
        away = _is_no_gate_and_up if name == GATE_AND_UP_ON_HOST else _is_nowhere
        layout = host_layout(path, on_device=away)
        kind = Poisoned if is_poisoned else Recording
        supplier = kind(layout, wants_hidden=True, wants_weights=True)
        session = LlamaEngine(log_sink=None).load(args, supplier=supplier)
        logits = run_script(session, script)
        session.close()
        if script is SHORT and args.ubatch_tokens > len(SHORT.prompt):
            first = supplier.heard if first is None else first
            reference = first
        else:
            reference = supplier.heard
        yield _describe(name, supplier, logits, expected, reference)


def _is_no_gate_and_up(tensor: str) -> bool:
    return re.search(GATE_AND_UP, tensor) is None


def _is_nowhere(tensor: str) -> bool:
    return False


def _cases(
    path: Path, devices: tuple[EngineDeviceRef, ...], workers: tuple[str, ...]
) -> Iterator[tuple[str, EngineArgs, Script, bool]]:
    host = replace(on_the_host(path, Settings()), load_mode=LoadMode.STREAM)
    yield ON_HOST, host, SHORT, True
    yield PLAIN_LOAD, replace(host, load_mode=LoadMode.MMAP), SHORT, False
    yield SMALL, replace(host, ubatch_tokens=8), SHORT, True
    yield LENGTHY, host, LONG, True
    for placement in device_placements(path, Settings(), devices, workers):
        if placement.name in (EXPERTS_ON_HOST, GATE_AND_UP_ON_HOST, TWO_DEVICES):
            args = replace(placement.args, load_mode=LoadMode.STREAM)
            yield placement.name, args, SHORT, True


def _describe(
    name: str,
    supplier: Recording,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    reference: list[Heard],
) -> HookRun:
    is_apart = np.any(logits.view(np.uint32) != expected.view(np.uint32), axis=1)
    heard, counts = supplier.heard, supplier.layout.expert_counts
    return HookRun(
        name=name,
        rows=len(expected),
        rows_apart=int(is_apart.sum()),
        layers=tuple(sorted(set(supplier.streamed.values()))),
        heard=tuple(tuple(h.layer for h in evaluation) for evaluation in supplier.evaluations),
        whole_layers=tuple(supplier.whole_layers),
        choices_apart=sum(
            a.layer != b.layer or not np.array_equal(a.rows, b.rows)
            for a, b in zip(heard, reference, strict=True)
        ),
        out_of_range=sum(bool(h.rows.min() < 0 or h.rows.max() >= counts[h.layer]) for h in heard),
        wrong_unions=sum(
            set(h.experts) != set(h.rows.ravel().tolist()) or len(set(h.experts)) != len(h.experts)
            for h in heard
        ),
        without_hidden=sum(h.hidden is None or len(h.hidden) != len(h.rows) for h in heard),
        without_weights=sum(h.weights is None or h.weights.shape != h.rows.shape for h in heard),
    )


def main(arguments: list[str]) -> None:
    """Print the runs of the model at the first argument; the others are workers."""
    path, *workers = arguments
    for run in runs(Path(path), tuple(workers)):
        sys.stdout.write(json.dumps(to_plain(run)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
