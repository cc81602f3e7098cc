"""The simulator against the engine: a recorded run replayed hits what the run itself hit."""

from importlib import resources
from pathlib import Path

import pytest

from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.experts.assembly import open_order
from moerun.experts.counters import StreamingSample
from moerun.experts.layout import expert_layout, page_slot_bytes
from moerun.experts.order import PolicyName, StreamingOrder
from moerun.experts.simulate import SimulatedPolicy, least_cache_bytes, replay
from moerun.experts.trace import read_trace, start_trace, trace_header, traced_order
from moerun.machine.description import SSD
from moerun.model.gguf_header import read_model
from moerun.planning.strategy import LoadMode, StreamingMode
from tests.engine.builders import ENGINE, answer, arguments

pytestmark = pytest.mark.engine

# Where layers of a prompt are read ahead, which a replay does not know, decoding begins with
# another cache; what is promised of the simulator is this.
POINTS_APART = 0.02
LARGE_SHARE = 0.8

DEMO = Path(str(resources.files("moerun.data") / "demo" / "demo.gguf"))
PROMPTS = ("What is moerun?", "What is a router in a mixture of experts?", "Who wrote this?")


def streamed_run(
    path: Path, policy: PolicyName, mode: StreamingMode, share: float
) -> tuple[StreamingSample, int]:
    """Answer through a cache of that share of the experts; return its counters and its size."""
    model = read_model(DEMO)
    layout = expert_layout(model, {tensor.name: SSD for tensor in model.loaded_tensors})
    slots = page_slot_bytes(layout)
    all_bytes = sum(size * layout.expert_counts[layer] for layer, size in slots.items())
    cache_bytes = int(all_bytes * share)
    order = StreamingOrder(
        layout=layout,
        mode=mode,
        limit_bytes=cache_bytes,
        cache_bytes=cache_bytes,
        minimum_bytes=least_cache_bytes(slots, layout.experts_used),
        policy=policy,
        preload_experts=0,
        is_adaptive=False,
    )
    start_trace(path, trace_header(model, layout))
    opened = open_order(traced_order(model, order, path), engine_version="test")
    assert opened.streamer is not None
    session = ENGINE.load(
        arguments(DEMO, load_mode=LoadMode.STREAM, ubatch_tokens=64), supplier=opened.supplier
    )
    for prompt in PROMPTS:
        request = GenerationRequest(
            messages=(Message(role="user", content=prompt),),
            sampling=Sampling(temperature=0),
            maximum_tokens=40,
        )
        answer(session, request)
    sample = opened.streamer.sample()
    session.close()
    return sample, cache_bytes


@pytest.mark.parametrize("share", [0.25, 0.5, LARGE_SHARE])
@pytest.mark.parametrize("policy", PolicyName)
@pytest.mark.parametrize("mode", [StreamingMode.CACHE, StreamingMode.PAGING])
def test_a_replay_hits_what_the_run_hit(
    mode: StreamingMode, policy: PolicyName, share: float, tmp_path: Path
):
    path = tmp_path / "t.csv"
    sample, cache_bytes = streamed_run(path, policy, mode, share)
    model = read_model(DEMO)
    layout = expert_layout(model, {tensor.name: SSD for tensor in model.loaded_tensors})
    found = replay(
        read_trace(path),
        SimulatedPolicy(policy.value),
        slot_bytes=page_slot_bytes(layout),
        read_bytes=layout.slot_bytes,
        cache_bytes=cache_bytes,
    )
    assert found.decode.tokens == sample.decode.tokens > 30
    if sample.prefill.experts_in > sample.prefill.misses:
        assert share == LARGE_SHARE, "the cache has no room for whole layers ahead"
        real, replayed = sample.decode, found.decode
        assert replayed.hits + replayed.misses == real.hits + real.misses
        assert abs(replayed.hits - real.hits) / (real.hits + real.misses) <= POINTS_APART
    else:
        # nothing was read ahead, so the two decide the same to the last expert
        for replayed, real in ((found.decode, sample.decode), (found.prefill, sample.prefill)):
            assert (replayed.hits, replayed.misses) == (real.hits, real.misses)
            assert replayed.read_bytes == real.read_bytes
    assert sample.decode.hit_fraction is not None
    assert 0.1 < sample.decode.hit_fraction < 1.0
