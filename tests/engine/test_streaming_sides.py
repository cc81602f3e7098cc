"""Both sides of `make bench-stream` run the same script to the same logits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.streaming_job import Job, Side, Streaming
from benchmarks.streaming_ours import Ours
from benchmarks.streaming_routing import SKEWED, embeddings, router
from benchmarks.streaming_side import Stock, carry_out
from benchmarks.synthetic_model import RoutedVocabulary, SyntheticShape, write_synthetic_model
from moerun.planning.strategy import StreamingMode

pytestmark = pytest.mark.engine

SHAPE = SyntheticShape(
    layers=3, width=128, heads=2, kv_heads=1, expert_ff=64, experts=16, vocabulary=512
)
PROMPT, DECODED = tuple(range(300, 306)), tuple(range(306, 326))


@pytest.fixture(scope="module")
def routed() -> RoutedVocabulary:
    random = np.random.default_rng(3)
    return RoutedVocabulary(
        embeddings=embeddings(SKEWED, SHAPE.vocabulary, SHAPE.width, random),
        routers=tuple(router(SHAPE.experts, SHAPE.width, random) for _ in range(SHAPE.layers)),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory, routed) -> Path:
    return write_synthetic_model(tmp_path_factory.mktemp("m") / "m.gguf", SHAPE, routed=routed)


def a_job(model: Path, side: Side, state: Path, mode=StreamingMode.CACHE, trace=None) -> Job:
    return Job(
        side=side,
        model_path=str(model),
        prompt=PROMPT,
        decoded=DECODED,
        threads=1,
        context_tokens=128,
        ubatch_tokens=64,
        limit_bytes=8 << 30,
        streaming=Streaming(mode=mode),
        state_folder=str(state),
        trace_path=trace,
    )


@pytest.mark.parametrize(
    "mode", [mode for mode in StreamingMode if mode is not StreamingMode.SLOTS]
)
def test_both_sides_compute_the_same(model, tmp_path, mode):
    stock = a_job(model, Side.STOCK, tmp_path)
    ours = a_job(model, Side.OURS, tmp_path, mode)
    expected = carry_out(stock, Stock(stock))
    found = carry_out(ours, Ours(ours))
    assert found.digest == expected.digest
    assert len(found.token_s) == len(expected.token_s) == len(DECODED)
    streams = mode in (StreamingMode.CACHE, StreamingMode.PAGING)
    assert (found.sample is not None) is streams
    if found.sample is not None:
        assert found.sample.decode.tokens == len(DECODED)


def test_the_simulator_counts_what_the_engine_counted(model, tmp_path):
    job = a_job(model, Side.OURS, tmp_path, trace=str(tmp_path / "trace.csv"))
    # what is read ahead are hits of the engine that a replay does not know of
    job = replace(job, streaming=replace(job.streaming, preload_experts=0))
    outcome = carry_out(job, Ours(job))
    assert outcome.sample is not None
    assert outcome.simulated_hit_fraction == outcome.sample.decode.hit_fraction
