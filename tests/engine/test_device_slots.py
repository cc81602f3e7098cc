"""Experts in slots of a device give the same bits as the same placement without slots.

The device is an RPC worker on loopback: its memory is another process's, as a GPU's is not the
host's. All architectures run in one process of their own, since a native crash ends a process.
"""

import functools
from collections.abc import Callable

import pytest

from moerun.codec import from_plain
from tests.engine.conftest import ChildReport, child_report
from tests.engine.slots_child import SCALED, SlotRun, ways
from tests.tiny_models import MOE_ARCHITECTURES

pytestmark = pytest.mark.engine

NAMES = (*MOE_ARCHITECTURES, SCALED)
WAYS = tuple(name for name, _, _ in ways())


@pytest.fixture(scope="module")
def all_runs(
    tmp_path_factory: pytest.TempPathFactory, two_workers: tuple[str, str]
) -> Callable[[], ChildReport]:
    """Return a function that runs all models once."""
    folder = tmp_path_factory.mktemp("slots")
    return functools.cache(
        lambda: child_report("tests.engine.slots_child", str(folder), two_workers[0])
    )


@pytest.fixture
def runs_of(all_runs: Callable[[], ChildReport]) -> Callable[[str], dict[str, SlotRun]]:
    """Return a function that gives the runs of one model by their way."""

    def find(name: str) -> dict[str, SlotRun]:
        report = all_runs()
        runs = [from_plain(SlotRun, line) for line in report.lines]
        found = {run.way: run for run in runs if run.name == name}
        assert set(found) == set(WAYS), report.ending
        return found

    return find


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_bit_equal_with_and_without_slots(name: str, runs_of: Callable):
    runs = runs_of(name)

    assert [(run.way, run.rows_apart) for run in runs.values() if run.rows_apart] == []
    for run in runs.values():
        assert run.refused == ()
        assert run.slot_layers == run.layers
        assert run.misses > run.slot_layers * 5, "slots were never used anew"
        assert run.hits > 0
        assert 0 < run.in_slots < run.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_slots_take_what_their_experts_take(name: str, runs_of: Callable):
    """The device's memory is that of the experts; biases and scales are below a hundredth."""
    for run in runs_of(name).values():
        assert run.planned_bytes <= run.slot_bytes
        if name != "gpt-oss":  # its tiny matrices are hardly larger than their biases
            assert run.slot_bytes <= 1.01 * run.planned_bytes


def test_every_model_was_run(all_runs: Callable[[], ChildReport]):
    assert len(all_runs().lines) == len(NAMES) * len(WAYS), all_runs().ending
