"""Slots as a mechanism of the streamer: over memory and SSD, wished or tried, with equal bits."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moerun.codec import from_plain
from tests.engine.conftest import ChildReport, child_report
from tests.engine.slots_streaming_child import SLOTS, WAYS, SlotStreamingRun

pytestmark = pytest.mark.engine

NAMES = tuple(way.name for way in WAYS)
TRIED = tuple(way.name for way in WAYS if way.is_trial)
LAYERS, USED = 4, 2


@pytest.fixture(scope="module")
def run_of(
    tiny_model: Callable[[str], Path], two_workers: tuple[str, str]
) -> Callable[[str], SlotStreamingRun]:
    """Return a function that gives the run of a way."""

    @functools.cache
    def report() -> ChildReport:
        model = str(tiny_model("qwen3moe"))
        return child_report("tests.engine.slots_streaming_child", model, two_workers[0])

    def find(name: str) -> SlotStreamingRun:
        runs = {run.name: run for run in (from_plain(SlotStreamingRun, x) for x in report().lines)}
        assert name in runs, report().ending
        return runs[name]

    return find


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_bit_equal(name: str, run_of: Callable):
    run = run_of(name)

    assert run.rows_apart == 0
    assert run.sample.notes == () or (name in TRIED and "lost their trial" in run.sample.notes[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRIED])
def test_what_was_asked_for_runs_and_is_counted(name: str, run_of: Callable):
    run = run_of(name)
    sample, slots = run.sample, run.sample.slots

    assert (sample.mechanism, sample.because) == ("slots", "slots was asked for")
    assert slots is not None
    assert (slots.layers, slots.slots) == (LAYERS, LAYERS * SLOTS)
    assert slots.tokens == run.rows - 1  # the prompt is too long for slots
    assert slots.hits + slots.uploads == slots.tokens * LAYERS * USED
    assert (slots.hits, slots.uploads) == (sample.decode.hits, sample.decode.misses)
    assert slots.uploads - slots.evicted == slots.held_experts <= slots.slots
    assert slots.upload_bytes > 0
    assert 0 < slots.upload_s <= sample.decode.stall_s
    assert slots.is_queued


def test_what_is_missing_comes_from_storage_only_where_it_lies_there(run_of: Callable):
    held, paged, half = (
        run_of(name).sample.decode
        for name in ("over experts in memory", "over paging", "two layers in memory")
    )

    assert held.read_bytes == 0
    assert 0 < half.read_bytes < paged.read_bytes


@pytest.mark.parametrize("name", TRIED)
def test_slots_are_tried_on_the_answers_own_tokens(name: str, run_of: Callable):
    """Single tokens run with and without slots in turn, by graphs of the same size.

    Which of the two wins, and whether the other is given up early, is the machine's to say.
    """
    run = run_of(name)
    slots = run.sample.slots

    assert re.search(r"tried on \d+ tokens, median: \w+ [\d.]+ ms, slots", run.sample.because)
    assert slots is not None
    assert 5 <= slots.tokens < run.rows - 1
