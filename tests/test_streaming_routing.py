"""The synthetic routing of `make bench-stream` is as cacheable as what was recorded."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.streaming_models import (
    FIRST_SKEWED,
    FIRST_UNIFORM,
    ROUTED_SHAPE,
    SEED,
    routed_vocabulary,
)
from benchmarks.streaming_routing import (
    DECODED_TOKENS,
    PROMPT_TOKENS,
    Use,
    chosen,
    hit_fraction,
    read_trace,
    uses_of,
)
from moerun.experts.order import PolicyName

TRACE = Path(__file__).parents[2] / "shared" / "traces" / "qwen3-30b-a3b.route.csv"
# LRU on the trace, one cache for all layers, by the share of the experts that it holds.
RECORDED = {0.1: 0.500, 0.3: 0.880, 0.5: 0.963}
LAYERS = 48


def slots(layers: int, fraction: float) -> int:
    return int(128 * layers * fraction)


@pytest.fixture(scope="module")
def vocabulary():
    return routed_vocabulary(ROUTED_SHAPE, seed=SEED)


def uses(vocabulary, first: int) -> tuple[Use, ...]:
    rows = vocabulary.embeddings[first : first + PROMPT_TOKENS + DECODED_TOKENS]
    choices = chosen(rows, vocabulary.routers, ROUTED_SHAPE.experts_used)
    return uses_of(choices, prompt_tokens=PROMPT_TOKENS)


@pytest.mark.skipif(not TRACE.exists(), reason="the recorded traces are not here")
@pytest.mark.parametrize("fraction", RECORDED)
def test_what_is_said_of_the_trace_is_so(fraction):
    found = hit_fraction(read_trace(TRACE), slots=slots(LAYERS, fraction))
    assert found == pytest.approx(RECORDED[fraction], abs=0.002)


@pytest.mark.parametrize("fraction", RECORDED)
def test_the_skewed_script_hits_like_the_trace(vocabulary, fraction):
    found = hit_fraction(uses(vocabulary, FIRST_SKEWED), slots=slots(ROUTED_SHAPE.layers, fraction))
    assert found == pytest.approx(RECORDED[fraction], abs=0.03)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_the_uniform_script_gives_a_cache_little_more_than_its_share(vocabulary, fraction):
    found = hit_fraction(
        uses(vocabulary, FIRST_UNIFORM), slots=slots(ROUTED_SHAPE.layers, fraction)
    )
    assert fraction - 0.05 < found < fraction + 0.05


def test_a_cache_below_one_token_hits_nothing_by_recency():
    cycle = [Use(is_counted=True, layer=layer, experts=(0, 1)) for layer in range(4)] * 3
    assert hit_fraction(cycle, slots=6) == 0
    assert hit_fraction(cycle, slots=8) == pytest.approx(2 / 3)
    assert hit_fraction(cycle, slots=6, policy=PolicyName.FREQUENCY) > 0


def test_a_prompt_is_one_batch_and_is_not_counted():
    choices = np.array([[[0, 1]], [[1, 2]], [[2, 3]]])
    assert uses_of(choices, prompt_tokens=2) == (
        Use(is_counted=False, layer=0, experts=(0, 1, 2)),
        Use(is_counted=True, layer=0, experts=(2, 3)),
    )


def test_a_trace_is_read_as_passes(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "# a comment\nturn,phase,step,layer,slot,expert\n"
        "0,0,0,5,0,7\n0,0,1,5,0,8\n0,0,1,5,1,7\n0,1,0,5,0,9\n0,1,0,6,0,1\n"
    )
    assert read_trace(path) == (
        Use(is_counted=False, layer=5, experts=(7, 8)),
        Use(is_counted=True, layer=5, experts=(9,)),
        Use(is_counted=True, layer=6, experts=(1,)),
    )
