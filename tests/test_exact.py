"""Plans by dry runs: what is asked once, what makes another question, the formula beside it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineArgs, EngineDeviceRef, Override, engine_args
from moerun.machine.description import HOST, DeviceId, Machine
from moerun.model.description import Model
from moerun.planning.plan import ChargeKind, Confidence, MeasuredBuffer, Measurements
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from moerun.runner.exact import FOLDER, Origin, RememberedRuns, answer_key, exact_plan
from moerun.runner.loading import Deciding
from tests.builders import GIB, MIB, a_machine, a_model, some_arguments

ORIGIN = Origin(model_digest="d1", engine_build="0.3.36 cpu")
CARD = EngineDeviceRef(id=DeviceId("gpu:0000:01:00.0"), engine_name="CUDA0")


class FakeEngine:
    """Answers every dry run with one compute size for each device, and counts."""

    def __init__(self, compute_bytes: int = 77 * MIB):
        self.compute_bytes = compute_bytes
        self.asked = 0

    def measure(self, args: EngineArgs) -> Measurements:
        self.asked += 1
        devices = (HOST, *(reference.id for reference in args.devices))
        return Measurements(
            context_tokens=args.context_tokens,
            ubatch_tokens=args.ubatch_tokens,
            buffers=tuple(
                MeasuredBuffer(
                    device=device, kind=ChargeKind.COMPUTE, size_bytes=self.compute_bytes
                )
                for device in devices
            ),
            engine_version="0.3.36",
        )


def remembered(folder: Path, engine: FakeEngine, origin: Origin = ORIGIN) -> RememberedRuns:
    return RememberedRuns(lambda: engine, origin, folder=folder)


def deciding(model: Model, machine: Machine) -> Deciding:
    return Deciding(
        plan=lambda strategy, measured: plan_placement(model, machine, strategy, measured=measured),
        arguments=lambda plan: engine_args(plan, model, machine),
    )


def test_a_dry_run_is_asked_once_and_known_to_the_next_process(tmp_path: Path):
    engine = FakeEngine()
    first = remembered(tmp_path, engine)
    answer = first.measure(some_arguments())
    assert first.measure(some_arguments()) == answer
    assert remembered(tmp_path, engine).measure(some_arguments()) == answer
    assert engine.asked == 1
    (file,) = (tmp_path / FOLDER).iterdir()
    assert json.loads(file.read_text())["schema"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"context_tokens": 1024},
        {"ubatch_tokens": 16},
        {"batch_tokens": 128},
        {"kv_encoding_k": "Q8_0"},
        {"devices": (CARD,), "n_gpu_layers": 3},
        {"overrides": (Override(pattern="exps", device=HOST),)},
    ],
)
def test_another_question_has_another_answer(tmp_path: Path, changes: dict[str, object]):
    engine = FakeEngine()
    runs = remembered(tmp_path, engine)
    runs.measure(some_arguments())
    runs.measure(some_arguments(**changes))
    assert engine.asked == 2


@pytest.mark.parametrize(
    "origin", [replace(ORIGIN, model_digest="d2"), replace(ORIGIN, engine_build="0.3.36 cuda")]
)
def test_another_model_or_engine_has_another_answer(tmp_path: Path, origin: Origin):
    engine = FakeEngine()
    remembered(tmp_path, engine).measure(some_arguments())
    remembered(tmp_path, engine, origin).measure(some_arguments())
    assert engine.asked == 2


def test_where_the_file_lies_does_not_matter():
    moved = some_arguments(model_path="/elsewhere/model.gguf")
    assert answer_key(moved, ORIGIN) == answer_key(some_arguments(), ORIGIN)


@pytest.mark.parametrize("text", ["{", '{"schema": 99}', '{"schema": 1, "buffers": 3}'])
def test_an_answer_that_cannot_be_read_is_asked_anew_with_a_note(tmp_path: Path, text: str):
    engine = FakeEngine()
    remembered(tmp_path, engine).measure(some_arguments())
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_text(text)
    again = remembered(tmp_path, engine)
    again.measure(some_arguments())
    assert engine.asked == 2
    assert str(file) in again.notes[0]


def test_an_exact_plan_is_charged_as_measured_and_names_the_formulas_error(tmp_path: Path):
    model, machine = a_model(), a_machine(gpus=[8 * GIB])
    found = exact_plan(
        remembered(tmp_path, FakeEngine()),
        Strategy(context_tokens=512),
        deciding=deciding(model, machine),
    )
    device = found.plan.devices[0]
    charges = [
        charge
        for charge in found.plan.ledger.charges
        if charge.device == device and charge.kind is ChargeKind.COMPUTE
    ]
    assert [(charge.size_bytes, charge.confidence) for charge in charges] == [
        (77 * MIB, Confidence.MEASURED)
    ]
    (row,) = (row for row in found.rows if (row.device, row.name) == (device, "compute"))
    guessed = plan_placement(model, machine, Strategy(context_tokens=512)).ledger
    assert row.planned_bytes == guessed.kind_bytes(device, ChargeKind.COMPUTE)
    assert row.reported_bytes == 77 * MIB


def test_no_engine_is_started_for_what_is_known(tmp_path: Path):
    model, machine = a_model(), a_machine(gpus=[8 * GIB])
    strategy, how = Strategy(context_tokens=512), deciding(model, machine)
    first = exact_plan(remembered(tmp_path, FakeEngine()), strategy, deciding=how)

    def refuse() -> FakeEngine:
        raise AssertionError("an engine was started")

    again = exact_plan(RememberedRuns(refuse, ORIGIN, folder=tmp_path), strategy, deciding=how)
    assert again == first
