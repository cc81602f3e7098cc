"""What the ledger charges is what the engine's log reports, buffer by buffer.

The plans are those of `planned_child`: measured by a dry run, loaded, and read back. The log
prints two decimals of a MiB, so no figure of it is sharper than `LOG_STEP_BYTES`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moerun.codec import from_plain
from moerun.planning.plan import ChargeKind
from tests.engine.conftest import MODELS, keeps_assignments
from tests.engine.planned_child import Figure, PlannedRun

pytestmark = pytest.mark.engine

LOG_STEP_BYTES = 5_300
TOLERATED_FRACTION = 0.01
STATE = (ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE)


@pytest.fixture
def runs_of(model_named: Callable[[str], Path], run_child: Callable) -> Callable:
    """Return a function that gives the carried out plans of a model."""

    def runs(name: str) -> tuple[PlannedRun, ...]:
        report = run_child("tests.engine.planned_child", model_named(name))
        found = tuple(from_plain(PlannedRun, line) for line in report.lines)
        assert found, report.ending
        return found

    return runs


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_within_one_percent(name: str, runs_of: Callable):
    figures = list(figures_of(runs_of(name), "weights", "weights as the log names them"))

    assert figures
    assert [(run.name, figure) for run, figure in figures if not is_close(figure)] == []


@pytest.mark.parametrize("name", MODELS)
def test_caches_and_state_are_exact(name: str, runs_of: Callable):
    figures = list(figures_of(runs_of(name), *STATE))

    assert sum(figure.planned_bytes for _, figure in figures) > 0
    assert [
        (run.name, figure)
        for run, figure in figures
        if abs(figure.planned_bytes - figure.reported_bytes) > LOG_STEP_BYTES
    ] == []


@keeps_assignments
@pytest.mark.parametrize("name", MODELS)
def test_compute_is_within_one_percent_on_every_device(name: str, runs_of: Callable):
    runs = runs_of(name)
    figures = list(figures_of(runs, ChargeKind.COMPUTE))

    assert {len(run.devices) for run in runs} == {0, 1, 2}
    assert all(figure.reported_bytes > 0 for run, figure in figures if figure.device in run.devices)
    assert [(run.name, figure) for run, figure in figures if not is_close(figure)] == []


@pytest.mark.parametrize("name", MODELS)
def test_audits_find_nothing(name: str, runs_of: Callable):
    assert [run.violations for run in runs_of(name) if run.violations] == []


def figures_of(runs: tuple[PlannedRun, ...], *kinds: str) -> Iterator[tuple[PlannedRun, Figure]]:
    return ((run, figure) for run in runs for figure in run.figures if figure.kind in kinds)


def is_close(figure: Figure) -> bool:
    apart_bytes = abs(figure.planned_bytes - figure.reported_bytes)
    return apart_bytes <= max(LOG_STEP_BYTES, TOLERATED_FRACTION * figure.planned_bytes)
