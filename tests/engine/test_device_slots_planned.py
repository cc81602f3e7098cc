"""Slots on the way of a user's run: planned, loaded by a runner, counted, and lost with a worker.

The device is a worker on loopback; what it lends is bounded, so that not all experts find a slot.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.engine.arguments import engine_args
from moerun.engine.interface import GenerationRequest, Sampling
from moerun.engine.load_log import SLOTS
from moerun.errors import WorkerLost
from moerun.experts.order import streaming_order
from moerun.machine.description import Host, Machine, Storage, StorageKind
from moerun.machine.workers import parse_worker, with_workers
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.plan import ChargeKind
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Strategy, StreamingMode, Toggle
from moerun.runner.loading import Deciding, Loaded, Voice, load_as_planned
from moerun.runner.parent import Runner
from moerun.units import GIB
from moerun.worker.survey import survey_workers
from tests.engine.conftest import keeps_assignments
from tests.engine.serving import RunningWorker, running_worker
from tests.tiny_models import Shape, write_tiny_model

pytestmark = [pytest.mark.engine, keeps_assignments]

EXPERTS, USED = 16, 2
SHAPE = Shape(experts=EXPERTS, experts_used=USED, expert_ff=256, context_tokens=2048)
ARCHITECTURES = ("qwen3moe", "gpt-oss", "deepseek2")
REQUEST = GenerationRequest(
    prompt="w300", sampling=Sampling(temperature=1.0, seed=5, top_k=0), maximum_tokens=64
)
STRATEGY = Strategy(
    context_tokens=2048,
    ubatch_tokens=64,
    flash_attention=Toggle.ON,
    extra_buffers=Toggle.OFF,
    load_mode=LoadMode.MMAP,
    threads=1,
    gpu_margin_bytes=0,
    host_margin_bytes=0,
)
IN_SLOTS = replace(STRATEGY, streaming=StreamingMode.SLOTS)
ON_HOST = replace(STRATEGY, streaming=StreamingMode.OFF, cpu_expert_layers=99)


@pytest.fixture(scope="module")
def worker() -> Iterator[RunningWorker]:
    with running_worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    folder = tmp_path_factory.mktemp("planned")

    def find(architecture: str) -> Model:
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            write_tiny_model(path, architecture, shape=SHAPE)
        return read_model(path)

    return find


def machine_of(worker: RunningWorker, limit_bytes: int) -> Machine:
    survey = survey_workers(
        (parse_worker(f"{worker.endpoint}={limit_bytes}b"),), engine_version=None
    )
    assert survey.refusals == ()
    host = Host(total_bytes=8 * GIB, available_bytes=8 * GIB, swap_free_bytes=0, physical_cores=1)
    storage = Storage(path="/", kind=StorageKind.SSD, free_bytes=GIB)
    return with_workers(Machine(gpus=(), host=host, storage=storage), survey.workers)


def bounded(worker: RunningWorker, model: Model) -> Machine:
    """Return a machine whose device has room for some 10 of 16 experts of each layer."""
    roomy = machine_of(worker, GIB)
    plan = plan_placement(model, roomy, ON_HOST)
    (device,) = plan.devices
    return machine_of(worker, plan.ledger.used_bytes(device) + model.expert_bytes * 5 // 8)


def load(runner: Runner, model: Model, machine: Machine, strategy: Strategy) -> Loaded:
    deciding = Deciding(
        plan=lambda wishes, measured: plan_placement(model, machine, wishes, measured=measured),
        arguments=lambda plan: engine_args(plan, model, machine),
        streaming=lambda plan: streaming_order(plan, model, machine, state_folder=None),
    )
    voice = Voice(announce=lambda plan: None, warn=pytest.fail)
    return load_as_planned(runner, strategy, deciding=deciding, voice=voice)


def answer(runner: Runner, request: GenerationRequest = REQUEST) -> str:
    pieces: list[str] = []
    runner.generate(request, on_text=pieces.append)
    return "".join(pieces)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slots_take_what_was_planned_and_answer_as_without(
    architecture: str, worker: RunningWorker, model_of: Callable[[str], Model], tmp_path: Path
):
    model = model_of(architecture)
    machine = bounded(worker, model)
    with Runner(log_folder=tmp_path) as runner:
        load(runner, model, machine, ON_HOST)
        expected = answer(runner)
        runner.restart()
        loaded = load(runner, model, machine, IN_SLOTS)
        found = answer(runner)
        sample = runner.sample_streaming()

    slots = loaded.plan.slots
    assert slots is not None
    assert all(3 * USED <= layer.slots < EXPERTS for layer in slots.layers)
    (device,) = loaded.plan.devices
    planned = loaded.plan.ledger.kind_bytes(device, ChargeKind.EXPERT_SLOTS)
    reported = sum(b.size_bytes for b in loaded.report.buffers if b.kind == SLOTS)
    assert planned == pytest.approx(reported, rel=0.01)
    assert found == expected
    assert loaded.report.notes == ()
    assert sample is not None
    assert sample.slots is not None
    assert REQUEST.maximum_tokens is not None
    assert sample.slots.tokens >= REQUEST.maximum_tokens - 1
    assert sample.slots.uploads >= sample.slots.held_experts > 0
    assert sample.notes == ()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals")
def test_a_worker_that_is_lost_with_its_slots_ends_the_answer(
    model_of: Callable[[str], Model], tmp_path: Path
):
    model = model_of("qwen3moe")
    pieces: list[str] = []
    ready = threading.Event()

    def receive(text: str) -> None:
        pieces.append(text)
        if len(pieces) > 20:
            ready.set()

    with running_worker() as lost, Runner(log_folder=tmp_path) as runner:
        machine = bounded(lost, model)
        load(runner, model, machine, ON_HOST)
        long = replace(REQUEST, maximum_tokens=1500)
        expected = answer(runner, long)
        runner.restart()
        load(runner, model, machine, IN_SLOTS)

        def kill() -> None:
            ready.wait(60)
            os.kill(lost.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(WorkerLost):
            runner.generate(long, on_text=receive)
        thread.join()

    assert len(pieces) > 20
    assert expected.startswith("".join(pieces))
