"""The synthetic routing of `make bench-stream`: its parts, and what its likeness is measured by."""

import numpy as np
import pytest

from benchmarks.streaming_check import FRACTIONS, likeness_of
from benchmarks.streaming_models import FIRST_SKEWED, FIRST_UNIFORM, routed_vocabulary
from benchmarks.streaming_routing import BIAS_COLUMN, SKEWED, UNIFORM, embeddings, router
from benchmarks.synthetic_model import SyntheticShape
from moerun.experts.routes import Phase
from moerun.experts.trace import read_trace
from tests.traces import a_pass, a_trace, recorded_trace

# LRU on the trace, one cache for all layers, by the share of the experts that it holds.
RECORDED = (0.497, 0.879, 0.963)


def alike(rows: np.ndarray, apart: int) -> float:
    """Return the mean likeness of rows so far apart, but for what all have in common."""
    own = np.delete(rows, BIAS_COLUMN, axis=1)
    own = own / np.linalg.norm(own, axis=1, keepdims=True)
    return float(np.mean(np.sum(own[apart:] * own[:-apart], axis=1)))


def test_what_is_said_of_the_trace_is_so():
    found = likeness_of(read_trace(recorded_trace("qwen3-30b-a3b")))
    assert found.hit_fractions == pytest.approx(RECORDED, abs=0.002)
    assert found.reused_fraction == pytest.approx(0.380, abs=0.002)


def test_neighbours_are_alike_and_the_likeness_fades():
    rows = embeddings(SKEWED, 400, 512, np.random.default_rng(0))
    parts = np.square([SKEWED.fresh, SKEWED.fast, SKEWED.slow])
    near = (parts[1] * np.exp(-1 / 2) + parts[2] * np.exp(-1 / 64)) / parts.sum()
    assert alike(rows, 1) == pytest.approx(near, abs=0.05)
    assert alike(rows, 16) == pytest.approx(parts[2] * np.exp(-16 / 64) / parts.sum(), abs=0.07)
    assert set(rows[:, BIAS_COLUMN]) == {np.float32(SKEWED.popular)}


def test_uniform_tokens_have_nothing_in_common():
    rows = embeddings(UNIFORM, 200, 512, np.random.default_rng(0))
    assert alike(rows, 1) == pytest.approx(0, abs=0.02)
    assert not rows[:, BIAS_COLUMN].any()


def test_scores_have_one_size_whatever_the_width():
    random = np.random.default_rng(0)
    for width in (128, 1024):
        hidden = random.standard_normal((100, width), dtype=np.float32)
        hidden[:, BIAS_COLUMN] = 0
        assert np.std(hidden @ router(64, width, random).T) == pytest.approx(1, abs=0.1)


def test_one_vocabulary_holds_both_scripts():
    shape = SyntheticShape(layers=2, width=64, experts=8)
    found = routed_vocabulary(shape, seed=0)
    assert found.embeddings.shape == (shape.vocabulary, shape.width)
    assert len(found.routers) == shape.layers
    assert (found.embeddings[FIRST_SKEWED:FIRST_UNIFORM, BIAS_COLUMN] != 0).all()
    assert (found.embeddings[FIRST_UNIFORM:, BIAS_COLUMN] == 0).all()


def test_likeness_counts_decoded_tokens_alone():
    trace = a_trace(
        [
            a_pass((0, 1, 2), (0, 1), phase=Phase.PREFILL, tokens=2),
            a_pass((0, 1), (2, 3)),
            a_pass((0, 2), (2, 3)),
        ]
    )
    found = likeness_of(trace)
    assert found.reused_fraction == pytest.approx(3 / 4)
    assert len(found.hit_fractions) == len(FRACTIONS)
    assert found.hit_fractions[-1] == pytest.approx(6 / 8)
