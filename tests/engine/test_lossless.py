"""Logits are bit-equal to plain llama-cpp-python, whatever the placement on CPU and RPC devices.

The reference has the same settings: micro-batch, flash attention, threads, KV encodings, no
repacking. Each architecture runs in a process of its own, since a native crash ends a process.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moerun.codec import from_plain
from tests.engine.lossless_child import AUTOMATIC, SETTINGS, Comparison
from tests.tiny_models import ARCHITECTURES, DENSE_ARCHITECTURES, MOE_ARCHITECTURES

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).parents[2]
DEVICE_PLACEMENTS, TELLING, LOAD_MODES = 9, 4, 3
COMBINATIONS = 1 + DEVICE_PLACEMENTS + LOAD_MODES + (len(SETTINGS) - 1) * (1 + TELLING) + TELLING


def run_matrix(path: Path, workers: tuple[str, ...]) -> tuple[tuple[Comparison, ...], str]:
    """Return what the child compared before it ended, and how it ended."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.lossless_child", str(path), *workers],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = (json.loads(line) for line in child.stdout.splitlines())
    comparisons = tuple(from_plain(Comparison, line) for line in lines)
    return comparisons, f"exit code {child.returncode}: {child.stderr[-2000:]}"


@pytest.fixture(scope="session")
def matrix_of(tiny_model: Callable[[str], Path], two_workers: tuple[str, str]) -> Callable:
    """Return a function that gives the matrix of an architecture, run once."""

    @functools.cache
    def run(architecture: str) -> tuple[tuple[Comparison, ...], str]:
        return run_matrix(tiny_model(architecture), two_workers)

    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_bit_equal_in_every_placement(architecture: str, matrix_of: Callable):
    comparisons, ending = matrix_of(architecture)

    assert [c for c in comparisons if c.rows_apart] == []
    assert len(comparisons) == COMBINATIONS, ending
    check_weights_were_placed(architecture, comparisons)


def check_weights_were_placed(architecture: str, comparisons: tuple[Comparison, ...]) -> None:
    """Hold the engine's own log against the names: equal logits of one placement prove nothing."""
    on_devices = {c.placement: c.device_weight_bytes for c in comparisons}
    everything = sum(on_devices["all on a device"])

    assert on_devices["all on the host"] == ()
    assert 0 < sum(on_devices["the last layer on a device"]) < everything
    for placement in ("two devices, experts on the host", "layers on the host, and on two devices"):
        assert all(on_devices[placement]), placement
    if architecture in DENSE_ARCHITECTURES:
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


def test_enough_architectures_are_held():
    assert len(MOE_ARCHITECTURES) >= 12
