"""A plan with the engine's own figures: dry runs, each asked once and remembered.

A dry run answers for one model (by digest), one set of arguments (context, batches, KV encodings,
placement, devices) and one engine. The answer cannot change while these stay the same, so it lies
in the state folder, in a document with a schema number; one that is unreadable or of a newer moerun
is passed over with a note and asked anew.

Knows: what an answer depends on, where it is kept, how a formula is held against it.
Does not know: how the engine is asked, or what is printed.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moerun.codec import to_plain
from moerun.engine.arguments import EngineArgs
from moerun.experts.state_file import read_value, write_value
from moerun.machine.description import DeviceId
from moerun.planning.plan import ChargeKind, Measurements, Plan
from moerun.planning.strategy import Strategy
from moerun.runner.buffer_report import BufferRow
from moerun.runner.loading import Deciding, Measuring, measured_plan

SCHEMA: Final = 1
FOLDER: Final = "dry_runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What every answer depends on beside the arguments: the model, and version and backends."""

    model_digest: str
    engine_build: str


class RememberedRuns:
    """Dry runs of one model on one engine; those known already start no engine."""

    def __init__(self, ask: Callable[[], Measuring], origin: Origin, *, folder: Path) -> None:
        """Take `ask`, which brings the engine up and is called when it is first needed."""
        self._ask = ask
        self._origin = origin
        self._folder = folder / FOLDER
        self.notes: list[str] = []
        self.asked_count = 0

    def measure(self, args: EngineArgs) -> Measurements:
        """Return what the arguments would allocate, from memory where it is known."""
        path = self._folder / f"{answer_key(args, self._origin)}.json"
        known, note = read_value(path, Measurements, schema=SCHEMA)
        if note is not None:
            self.notes.append(note)
        if known is not None:
            return known
        found = self._ask().measure(args)
        self.asked_count += 1
        if (failure := write_value(path, found, schema=SCHEMA)) is not None:
            self.notes.append(failure)
        return found


def answer_key(args: EngineArgs, origin: Origin) -> str:
    """Return a name that is equal for equal questions; where the file lies does not matter."""
    plain = to_plain(replace(args, model_path="", threads=1))
    text = json.dumps([to_plain(origin), plain], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactPlan:
    """A plan by the engine's figures, and the formula's answer for it beside each of them."""

    plan: Plan
    rows: tuple[BufferRow, ...]


def exact_plan(runs: Measuring, strategy: Strategy, *, deciding: Deciding) -> ExactPlan:
    """Plan, measure and plan again until the shape stays; then hold the formula to the answer."""
    plan = measured_plan(runs, strategy, deciding=deciding)
    measured = runs.measure(deciding.arguments(plan))
    guessed = deciding.plan(strategy, None)
    same = _shape(guessed) == _shape(plan)
    return ExactPlan(plan=plan, rows=formula_rows(guessed, measured) if same else ())


def formula_rows(guessed: Plan, measured: Measurements) -> tuple[BufferRow, ...]:
    """Return for each device what the formulas said and what the engine did."""
    kinds = (ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE, ChargeKind.COMPUTE)
    devices = dict.fromkeys(buffer.device for buffer in measured.buffers)
    rows = []
    for device in devices:
        for kind in kinds:
            said = guessed.ledger.kind_bytes(device, kind) + _staging(guessed, device, kind)
            real = measured.size_bytes(device, kind) or 0
            if said or real:
                rows.append(
                    BufferRow(
                        device=device, name=kind.value, planned_bytes=said, reported_bytes=real
                    )
                )
    return tuple(rows)


def _staging(plan: Plan, device: DeviceId, kind: ChargeKind) -> int:
    """Return the room for host weights, which on a device is part of its compute buffer."""
    if kind is not ChargeKind.COMPUTE or device not in plan.devices:
        return 0
    return plan.ledger.kind_bytes(device, ChargeKind.STAGING)


def _shape(plan: Plan) -> object:
    return plan.context_tokens, plan.devices, tuple(layer.dense for layer in plan.layers)
