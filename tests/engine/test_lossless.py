"""Logits are bit-equal to plain llama-cpp-python, whatever the placement on CPU and RPC devices.

The reference has the same settings: micro-batch, flash attention, threads, KV encodings, no
repacking. Each architecture runs in a process of its own, since a native crash ends a process.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from moerun.codec import from_plain
from moerun.engine.rpc_worker import loopback_worker
from tests.engine.conftest import DEMO_FILE, MODELS, child_report
from tests.engine.lossless_child import AUTOMATIC, LONG, SETTINGS, Comparison
from tests.engine.planned_child import PlannedRun
from tests.tiny_models import DENSE_ARCHITECTURES, MOE_ARCHITECTURES

pytestmark = pytest.mark.engine

DEVICE_PLACEMENTS, TELLING, LOAD_MODES = 9, 4, 3
COMBINATIONS = 1 + DEVICE_PLACEMENTS + LOAD_MODES + (len(SETTINGS) - 1) * (1 + TELLING) + TELLING


@pytest.fixture
def matrix_of(model_named: Callable[[str], Path], run_child: Callable) -> Callable:
    """Return a function that gives the matrix of a model and how its process ended."""

    def run(name: str) -> tuple[tuple[Comparison, ...], str]:
        report = run_child("tests.engine.lossless_child", model_named(name))
        return tuple(from_plain(Comparison, line) for line in report.lines), report.ending

    return run


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_bit_equal_in_every_placement(name: str, matrix_of: Callable):
    comparisons, ending = matrix_of(name)

    assert [c for c in comparisons if c.rows_apart] == []
    assert len(comparisons) == COMBINATIONS, ending
    check_weights_were_placed(name, comparisons)


def check_weights_were_placed(name: str, comparisons: tuple[Comparison, ...]) -> None:
    """Hold the engine's own log against the names: equal logits of one placement prove nothing."""
    on_devices = {c.placement: c.device_weight_bytes for c in comparisons}
    everything = sum(on_devices["all on a device"])

    assert on_devices["all on the host"] == ()
    assert 0 < sum(on_devices["the last layer on a device"]) < everything
    for placement in ("two devices, experts on the host", "layers on the host, and on two devices"):
        assert all(on_devices[placement]), placement
    if name in DENSE_ARCHITECTURES:
        return
    experts_on_host = sum(on_devices["experts on the host"])
    assert 0 < experts_on_host < everything
    parts = sum(on_devices["down on the device, gate and up on the host"])
    assert experts_on_host < parts < everything
    assert all(on_devices["experts on the second device, all else on the first"])


def test_flash_attention_left_to_the_engine_may_depend_on_the_placement(matrix_of: Callable):
    """Jamba's attention layer on the host before a recurrent one on a device: it is turned off.

    The recurrent layer's state is fetched before the attention's output is projected, and the
    scheduler lets the attention join its neighbour's device; so a plan states on or off.
    """
    comparisons, _ = matrix_of("jamba")
    chosen = {c.placement: c.settings for c in comparisons if c.settings.startswith(AUTOMATIC)}

    assert chosen["experts on the host"] == f"{AUTOMATIC}: on"
    assert chosen["the last layer on a device"] == f"{AUTOMATIC}: off"


def test_the_threads_of_a_worker_are_part_of_the_arithmetic(
    tiny_model: Callable[[str], Path], two_workers: tuple[str, str]
):
    """Flash attention over 512 cells or more splits them over the threads of its device.

    ggml_compute_forward_flash_attn_ext_f16, ggml/src/ggml-cpu/ops.cpp @ 0.3.36.
    """
    with loopback_worker(threads=2) as worker:
        report = child_report(
            "tests.engine.lossless_child",
            "--threads",
            str(tiny_model("qwen3moe")),
            worker,
            two_workers[0],
        )
    assert len(report.lines) == 2, report.ending
    first, second = (from_plain(Comparison, line) for line in report.lines)

    assert first.rows_apart == 0
    assert second.rows_apart == len(LONG.steps)  # batches are not split over threads


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_bit_equal_when_the_planner_chooses(
    name: str, model_named: Callable[[str], Path], run_child: Callable
):
    report = run_child("tests.engine.planned_child", model_named(name))
    runs = [from_plain(PlannedRun, line) for line in report.lines]

    assert len(runs) == plan_count(name), report.ending
    assert [run for run in runs if run.rows_apart] == []
    by_name = {run.name: run for run in runs}
    assert all(len(run.devices) == 2 for run in runs if "two devices" in run.name)
    assert by_name["copied to the host"].devices == ()
    if name not in DENSE_ARCHITECTURES:
        half = by_name["half experts on one device"]
        assert 0 < half.expert_bytes_on_devices < half.expert_bytes


def plan_count(name: str) -> int:
    """Return how many plans the child is expected to carry out."""
    return 7 if name in DENSE_ARCHITECTURES else 9


def test_plans_cut_layers_in_parts(tiny_model: Callable[[str], Path], run_child: Callable):
    report = run_child("tests.engine.planned_child", tiny_model("qwen3moe"))

    assert any(from_plain(PlannedRun, line).split_layers for line in report.lines)


def test_enough_models_are_held():
    assert len(MOE_ARCHITECTURES) >= 12
    assert DEMO_FILE.is_file()
