"""Three workers with 20, 30 and 50 % of a model of 300 MB: equal logits, and bytes within 1 %.

The limits are shares of the weights to the byte, so that what the caches and compute buffers take
pushes some experts to the host, and the model is so large that 1 % of a device is a real claim.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.codec import from_plain
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import DeviceId
from moerun.model.gguf_header import read_model
from tests.engine.conftest import child_report, keeps_assignments
from tests.engine.planned_child import PlannedRun
from tests.engine.serving import running_worker
from tests.engine.workers_child import CUT, SHARED, SHARES, limits_of

pytestmark = [pytest.mark.engine, keeps_assignments]

SHAPE = TinyShape(layers=48, width=512, expert_width=256, experts=8)
LEAST_BYTES = 250e6
TOLERATED_FRACTION = 0.01
FILLED_FRACTION = 0.9  # of each limit; what is left is less than an expert part and a step
LOG_STEP_BYTES = 5_300  # the engine's log prints two decimals of a MiB
AS_LOGGED = "weights as the log names them"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("workers") / "model.gguf"
    write_tiny_moe(path, shape=SHAPE, encoding="F16", expert_encoding="F16")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def runs(path: Path) -> dict[str, PlannedRun]:
    """Return both plans carried out, by their names."""
    with running_worker() as first, running_worker() as second, running_worker() as third:
        endpoints = (first.endpoint, second.endpoint, third.endpoint)
        report = child_report("tests.engine.workers_child", str(path), *endpoints)
    found = {run.name: run for run in (from_plain(PlannedRun, line) for line in report.lines)}
    assert list(found) == [SHARED, CUT], report.ending
    return found


@pytest.mark.parametrize("name", [SHARED, CUT])
def test_logits_are_those_of_a_single_process(runs: dict[str, PlannedRun], name: str):
    run = runs[name]
    assert run.rows_apart == 0, run.largest_difference
    assert len(run.devices) == len(SHARES)
    assert run.violations == ()


@pytest.mark.parametrize("name", [SHARED, CUT])
def test_planned_bytes_are_reported_within_one_percent(runs: dict[str, PlannedRun], name: str):
    run = runs[name]
    for figure in run.figures:
        if figure.device in run.devices:
            tolerated = max(LOG_STEP_BYTES, TOLERATED_FRACTION * figure.reported_bytes)
            assert abs(figure.planned_bytes - figure.reported_bytes) <= tolerated, figure
    for device in run.devices:
        planned_bytes, reported_bytes = totals(run, device)
        assert abs(planned_bytes - reported_bytes) <= TOLERATED_FRACTION * reported_bytes, device


def test_limits_that_are_shares_of_the_model_are_filled_and_kept(
    path: Path, runs: dict[str, PlannedRun]
):
    model, run = read_model(str(path)), runs[SHARED]
    assert model.weight_bytes > LEAST_BYTES
    for device, limit_bytes in zip(run.devices, limits_of(model, SHARES), strict=True):
        planned_bytes, reported_bytes = totals(run, device)
        assert FILLED_FRACTION * limit_bytes < reported_bytes <= limit_bytes + LOG_STEP_BYTES
        assert planned_bytes <= limit_bytes


def test_the_parts_of_layers_lie_on_two_devices(runs: dict[str, PlannedRun]):
    assert runs[CUT].split_layers >= SHAPE.layers // 2
    assert runs[CUT].expert_bytes_on_devices == runs[CUT].expert_bytes


def totals(run: PlannedRun, device: DeviceId) -> tuple[int, int]:
    """Return all bytes of a device, as planned and as the engine's log said."""
    figures = [f for f in run.figures if f.device == device and f.kind != AS_LOGGED]
    return sum(f.planned_bytes for f in figures), sum(f.reported_bytes for f in figures)
