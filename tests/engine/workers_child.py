"""A model over three workers within limits, as the planner has it: logits and bytes.

A native crash ends this process and not the tests. Every plan is a line of JSON on standard
output, written at once.

Knows: the limits that are asked for, and the pins that cut layers in two.
Does not know: what a test accepts.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from moerun.codec import to_plain
from moerun.machine.description import Host, Machine, Storage, StorageKind
from moerun.machine.workers import parse_worker, with_workers
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.strategy import Pin
from moerun.units import GIB
from moerun.worker.survey import survey_workers
from tests.engine.lossless_child import SHORT
from tests.engine.plain import plain_logits
from tests.engine.planned_child import SETTINGS, Planned, carry_out, exact_strategy, settled

SHARES = (0.2, 0.3, 0.5)
SHARED, CUT = "shares", "cut"
_ROOMY = (0.5, 0.45, 0.4)


def machine_of(workers: tuple[str, ...], limits_bytes: tuple[int, ...]) -> Machine:
    """Return a machine without GPUs and with these workers, each within its limit."""
    addresses = tuple(
        parse_worker(f"{endpoint}={limit}b")
        for endpoint, limit in zip(workers, limits_bytes, strict=True)
    )
    survey = survey_workers(addresses, engine_version=None)
    assert survey.refusals == (), survey.refusals
    host = Host(total_bytes=8 * GIB, available_bytes=8 * GIB, swap_free_bytes=0, physical_cores=1)
    storage = Storage(path="/", kind=StorageKind.SSD, free_bytes=GIB)
    return with_workers(Machine(gpus=(), host=host, storage=storage), survey.workers)


def limits_of(model: Model, shares: tuple[float, ...]) -> tuple[int, ...]:
    """Return shares of the model's weights, to the byte."""
    return tuple(int(share * model.weight_bytes) for share in shares)


def plans(model: Model, workers: tuple[str, ...]) -> Iterator[Planned]:
    """Yield a plan that fills three workers, and one with the parts of layers on two of them."""
    shared = machine_of(workers, limits_of(model, SHARES))
    yield settled(SHARED, model, shared, exact_strategy(), None)
    pins = tuple(
        Pin(pattern=f"blk.{layer}.ffn_{part}_exps.weight", device=device, origin="the test")
        for layer in range(0, len(model.layers), 2)
        for part, device in (("gate", "gpu0"), ("up", "gpu0"), ("down", "gpu1"))
    )
    roomy = machine_of(workers, limits_of(model, _ROOMY))
    yield settled(CUT, model, roomy, replace(exact_strategy(), pins=pins), None)


def main(arguments: list[str]) -> None:
    """Carry out the plans for the model at the first argument; the others are workers."""
    path, *workers = arguments
    expected = plain_logits(Path(path), SETTINGS, SHORT)
    model = read_model(path)
    for planned in plans(model, tuple(workers)):
        run = carry_out(planned, model, expected)
        sys.stdout.write(json.dumps(to_plain(run)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
