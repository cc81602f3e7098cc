"""Slots over a model's life: no leak, several answers at once, failures that end in a sentence."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import child_report

pytestmark = pytest.mark.engine

# 40 reloads after 10 to warm up; slots that were kept would be 0.7 MB for each.
MOST_GROWN_BYTES = 8 << 20


@pytest.fixture(scope="module")
def result_of(tiny_model: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives what a case of the child came to."""

    @functools.cache
    def report():
        return child_report("tests.engine.slots_life_child", str(tiny_model("qwen3moe")))

    def find(name: str) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {line["case"]: line for line in report().lines}
        assert name in found, report().ending
        return found[name]

    return find


def test_fifty_reloads_leave_nothing_behind(result_of: Callable):
    result = result_of("reloads")

    assert result["own_bytes"] < MOST_GROWN_BYTES
    assert result["worker_bytes"] < MOST_GROWN_BYTES
    assert result["different"] == 1


def test_several_answers_at_once_are_those_without_slots(result_of: Callable):
    result = result_of("shared")

    assert result["same"]
    assert result["sequences"] == 3
    assert result["in_slots"] > 20, "three tokens at once find slots"
    assert result["batched"] > 7, "and the prompts do not"


def test_an_upload_that_failed_ends_the_answer_and_no_token_is_wrong(result_of: Callable):
    result = result_of("failing")

    assert result["message"] == "a test wants it"
    assert result["held"] == 0
    assert result["same"]


def test_a_device_without_room_is_one_sentence_and_less_fits(result_of: Callable):
    result = result_of("full")

    assert result["message"].startswith("The slots for experts need 0.2 GiB on gpu:RPC0[")
    assert result["device"].startswith("gpu:RPC0[")
    assert "--streaming off" in result["hint"]


def test_layers_on_the_host_may_have_slots_on_a_device(result_of: Callable):
    result = result_of("apart")

    assert result["same"]
    assert result["misses"] > 4 * 5


def test_layers_have_slots_on_their_own_devices_beside_whole_ones(result_of: Callable):
    result = result_of("mixed")

    assert result["same"]
    assert result["counts"] == {"0": 5, "3": 6}
    for size, layer, slots in zip(result["sizes"], ("0", "3"), (5, 6), strict=True):
        assert size == pytest.approx(slots * result["slot_bytes"][layer], rel=0.01)


def test_slots_on_another_device_than_their_router_are_refused_by_name(result_of: Callable):
    refusal = result_of("mixed")["refusal"]

    assert refusal.startswith("experts of qwen3moe cannot be read from slots on gpu:RPC")
    assert refusal.endswith("layer 0: its router and its slots are on different devices")


def test_slots_that_cannot_be_are_refused(result_of: Callable):
    result = result_of("apart")

    assert "repacked for the processor" in result["repacked"]
    assert "3 slots for experts in a layer are too few" in result["few"]


def test_uploads_go_through_memory_that_is_soon_full(result_of: Callable):
    result = result_of("staged")

    assert result["pinned"] == {"same": True, "queued": True, "staged": True}
    assert result["plain"] == {"same": True, "queued": True, "staged": False}
