"""Streamed experts change no bit of the logits, whatever the mechanism and whatever happens."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moerun
from moerun.codec import from_plain
from tests.engine.conftest import child_report
from tests.engine.streaming_child import StreamedRun, ways
from tests.tiny_models import MOE_ARCHITECTURES

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="streaming is there on Linux only"),
]

DEMO = Path(moerun.__file__).parent / "data" / "demo" / "demo.gguf"


def streamed(path: Path) -> dict[str, StreamedRun]:
    report = child_report("tests.engine.streaming_child", str(path))
    runs = {run.name: run for run in (from_plain(StreamedRun, line) for line in report.lines)}
    assert list(runs) == [way.name for way in ways()], report.ending
    return runs


def check(runs: dict[str, StreamedRun]) -> None:
    """Hold every run to the reference, and to having done what its name says."""
    assert [run for run in runs.values() if run.rows_apart] == []
    for mode in ("cache", "paging"):
        least, every = runs[f"{mode} at its least"], runs[f"{mode} of all"]
        assert least.decode_misses > 0, least
        assert least.evicted > 0, least
        assert every.evicted == 0, every
        assert every.decode_hits > every.decode_misses
        assert runs[f"{mode} below a layer"].held_experts < least.held_experts
        assert runs[f"{mode} made smaller"].cache_bytes == least.cache_bytes
        assert runs[f"{mode}, failed"].mechanism == mode
    assert runs["cache, changed"].mechanism == "paging"
    assert runs["paging, changed"].mechanism == "cache"


def test_the_demo_model_is_the_same_however_it_streams():
    runs = streamed(DEMO)
    check(runs)
    for mode in ("cache", "paging"):
        assert runs[f"{mode} reading ahead"].predicted > 0
        assert not runs[f"{mode} reading ahead"].notes


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_logits_are_bit_equal_however_experts_stream(
    architecture: str, tiny_model: Callable[[str], Path]
):
    check(streamed(tiny_model(architecture)))
