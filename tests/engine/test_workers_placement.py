"""A model over three workers with 20, 30 and 50 % of it: planned bytes are reported, answers equal.

The limits travel as a client writes them, and everything goes the way of a user's run: workers are
surveyed, a plan is made and measured, and a runner carries it out.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.engine.arguments import engine_args, predicted_buffers
from moerun.engine.interface import GenerationRequest, Sampling
from moerun.engine.load_log import COMPUTE, KV, MODEL
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import (
    DeviceId,
    Host,
    Machine,
    Storage,
    StorageKind,
    is_gpu,
)
from moerun.machine.workers import parse_worker, with_workers
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.audit import audit
from moerun.planning.plan import ChargeKind, Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Pin, Strategy, Toggle
from moerun.runner.loading import Deciding, Loaded, Voice, load_as_planned
from moerun.runner.parent import Runner
from moerun.units import GIB, MIB
from moerun.worker.survey import survey_workers
from tests.engine.conftest import keeps_assignments
from tests.engine.placements import on_the_host
from tests.engine.plain import Settings
from tests.engine.serving import RunningWorker, running_worker

pytestmark = [pytest.mark.engine, keeps_assignments]

SHARES = (0.2, 0.3, 0.5)
LAYERS = 12
LOG_STEP_BYTES = 5_300  # the engine's log prints two decimals of a MiB
TOLERATED_FRACTION = 0.01
REQUEST = GenerationRequest(
    prompt="w280 w281 w282 w283", sampling=Sampling(temperature=0), maximum_tokens=64
)
STRATEGY = Strategy(
    context_tokens=512,
    ubatch_tokens=64,
    flash_attention=Toggle.ON,
    extra_buffers=Toggle.OFF,
    load_mode=LoadMode.MMAP,
    threads=1,
    gpu_margin_bytes=0,
    host_margin_bytes=0,
)
WEIGHTS = (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shares") / "model.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=LAYERS, expert_width=512, experts=16))
    return path


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[RunningWorker, ...]]:
    with running_worker() as first, running_worker() as second, running_worker() as third:
        yield first, second, third


@pytest.fixture(scope="module")
def expected(path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the answer of a single process."""
    with Runner(log_folder=tmp_path_factory.mktemp("alone")) as runner:
        runner.load(on_the_host(path, Settings(ubatch_tokens=64)))
        return answer(runner)


def answer(runner: Runner) -> str:
    pieces: list[str] = []
    runner.generate(REQUEST, on_text=pieces.append)
    return "".join(pieces)


def machine_of(workers: tuple[RunningWorker, ...], limits_bytes: tuple[int, ...]) -> Machine:
    """Return a machine without GPUs and with these workers, each within its limit."""
    addresses = tuple(
        parse_worker(f"{worker.endpoint}={limit}b")
        for worker, limit in zip(workers, limits_bytes, strict=True)
    )
    survey = survey_workers(addresses, engine_version=None)
    assert survey.refusals == ()
    host = Host(total_bytes=8 * GIB, available_bytes=8 * GIB, swap_free_bytes=0, physical_cores=1)
    storage = Storage(path="/", kind=StorageKind.SSD, free_bytes=GIB)
    return with_workers(Machine(gpus=(), host=host, storage=storage), survey.workers)


def load(runner: Runner, model: Model, machine: Machine, strategy: Strategy) -> Loaded:
    deciding = Deciding(
        plan=lambda wishes, measured: plan_placement(model, machine, wishes, measured=measured),
        arguments=lambda plan: engine_args(plan, model, machine),
    )
    voice = Voice(announce=lambda plan: None, warn=pytest.fail)
    return load_as_planned(runner, strategy, deciding=deciding, voice=voice)


def check_bytes(loaded: Loaded, model: Model) -> None:
    """Hold weights, cache and compute of each device to what the engine's log reports."""
    plan = loaded.plan
    predicted = predicted_buffers(loaded.args, model)
    for device in plan.devices:
        rows = {
            "weights": (sum_of(predicted, device, MODEL), (MODEL,)),
            "ledger": (sum(plan.ledger.kind_bytes(device, kind) for kind in WEIGHTS), (MODEL,)),
            "cache": (plan.ledger.kind_bytes(device, ChargeKind.KV_CACHE), (KV,)),
            "compute": (plan.ledger.kind_bytes(device, ChargeKind.COMPUTE), (COMPUTE,)),
        }
        for name, (planned_bytes, kinds) in rows.items():
            reported_bytes = sum_of(loaded.report.buffers, device, *kinds)
            apart_bytes = abs(planned_bytes - reported_bytes)
            tolerated = max(LOG_STEP_BYTES, TOLERATED_FRACTION * reported_bytes)
            assert apart_bytes <= tolerated, (device, name, planned_bytes, reported_bytes)


def sum_of(buffers: tuple, device: DeviceId, *kinds: str) -> int:
    return sum(b.size_bytes for b in buffers if b.device == device and b.kind in kinds)


def split_layers(plan: Plan) -> int:
    return sum(len({device for _, device in layer.experts}) > 1 for layer in plan.layers)


def test_three_workers_with_shares_of_a_model(
    path: Path, workers: tuple[RunningWorker, ...], expected: str, tmp_path: Path
):
    model = read_model(str(path))
    others_bytes = 3 * MIB  # cache and compute, which a share of the weights does not hold
    limits = tuple(int(share * model.weight_bytes) + others_bytes for share in SHARES)
    with Runner(log_folder=tmp_path) as runner:
        loaded = load(runner, model, machine_of(workers, limits), STRATEGY)
        assert answer(runner) == expected
    assert len(loaded.plan.devices) == 3
    for device, limit in zip(loaded.plan.devices, limits, strict=True):
        used_bytes = loaded.plan.ledger.used_bytes(device)
        assert limit * 0.6 < used_bytes <= limit
    check_bytes(loaded, model)
    assert audit(loaded.plan, model, machine_of(workers, limits)) == ()


def test_one_layers_parts_on_two_workers(
    path: Path, workers: tuple[RunningWorker, ...], expected: str, tmp_path: Path
):
    """Gate and up on one device, down on the other, for half of the layers."""
    model = read_model(str(path))
    machine = machine_of(workers[:2], (GIB, GIB))
    pins = tuple(
        Pin(pattern=f"blk.{layer}.ffn_{part}_exps.weight", device=device, origin="the test")
        for layer in range(0, LAYERS, 2)
        for part, device in (("gate", "gpu0"), ("up", "gpu0"), ("down", "gpu1"))
    )
    with Runner(log_folder=tmp_path) as runner:
        loaded = load(runner, model, machine, replace(STRATEGY, pins=pins))
        assert answer(runner) == expected
    assert split_layers(loaded.plan) >= LAYERS // 2
    assert all(is_gpu(device) for layer in loaded.plan.layers for _, device in layer.experts)
    check_bytes(loaded, model)


def test_a_plan_without_the_first_worker_finds_the_second(
    path: Path, workers: tuple[RunningWorker, ...], expected: str, tmp_path: Path
):
    """The engine numbers the devices of workers anew in every process."""
    model = read_model(str(path))
    machine = machine_of(workers[:2], (MIB, GIB))
    with Runner(log_folder=tmp_path) as runner:
        loaded = load(runner, model, machine, STRATEGY)
        assert answer(runner) == expected
    assert loaded.plan.devices == (machine.gpus[1].id,)
