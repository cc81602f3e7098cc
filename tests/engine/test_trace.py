"""Routing recorded from the engine: rows are what the router chose, and nothing else changes."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from moerun.engine.interface import GenerationRequest, GenerationResult, Sampling
from moerun.experts.routes import Phase
from moerun.experts.simulate import SimulatedPolicy, replay, traced_slots
from moerun.experts.trace import (
    read_trace,
    routed_layout,
    start_trace,
    trace_header,
    traced_order,
    traced_supplier,
)
from moerun.model.gguf_header import read_model
from tests.engine.builders import ENGINE, answer, arguments
from tests.engine.suppliers import Recording, host_layout

pytestmark = pytest.mark.engine

DEMO = Path(str(resources.files("moerun.data") / "demo" / "demo.gguf"))
REQUEST = GenerationRequest(
    prompt="What is moerun? It is", sampling=Sampling(temperature=0), maximum_tokens=24
)


Recorded = tuple[Path, list[tuple[str, GenerationResult]]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The trace of two prompts through the demo model, and the answers."""
    path = tmp_path_factory.mktemp("trace") / "demo.route.csv"
    model = read_model(DEMO)
    start_trace(path, trace_header(model, routed_layout(model)))
    supplier = traced_supplier(traced_order(model, None, path), None)
    assert supplier is not None
    session = ENGINE.load(arguments(DEMO), supplier=supplier)
    answers = [answer(session, REQUEST)]
    other = GenerationRequest(
        prompt="An expert is a", sampling=Sampling(temperature=0), maximum_tokens=12
    )
    answers.append(answer(session, other))
    session.close()
    return path, answers


def test_recording_changes_no_answer(recorded: Recorded):
    session = ENGINE.load(arguments(DEMO))
    plain, _ = answer(session, REQUEST)
    session.close()
    assert recorded[1][0][0] == plain


def test_a_trace_holds_every_token_of_every_layer(recorded: Recorded):
    trace = read_trace(recorded[0])
    model = read_model(DEMO)
    sparse = {layer.index for layer in model.layers if layer.is_sparse}
    assert trace.notes == ()
    assert trace.routed_layers == sparse
    assert trace.header.experts_used == model.experts_used
    assert {each.turn for each in trace.passes} == {0, 1}
    results = [result for _, result in recorded[1]]
    prompts = sum(result.prompt_tokens - result.reused_tokens for result in results)
    assert trace.tokens(Phase.PREFILL) == prompts
    # the last token of an answer is sampled and not computed any more
    assert trace.tokens(Phase.DECODE) == sum(result.answer_tokens - 1 for result in results)
    for each in trace.passes:
        assert {choice.layer for choice in each.choices} == sparse
        if each.phase is Phase.DECODE:
            assert each.tokens == 1
            assert all(len(choice.experts) == model.experts_used for choice in each.choices)


def test_rows_are_what_the_router_chose(recorded: Recorded):
    listener = Recording(host_layout(DEMO), wants_weights=True)
    session = ENGINE.load(arguments(DEMO), supplier=listener)
    answer(session, REQUEST)
    session.close()
    first_turn = [line.split(",") for line in rows_of(recorded[0]) if line.startswith("0,")]
    found: list[list[str]] = []
    for heard in listener.heard:
        assert heard.weights is not None
        weights = heard.weights.reshape(heard.rows.shape)
        for (row, slot), expert in np.ndenumerate(heard.rows):
            weight = float(weights[row, slot])
            found.append([str(heard.layer), str(slot), str(expert), f"{weight:.6g}"])
    assert [row[3:7] for row in first_turn] == found
    assert np.isfinite([float(row[6]) for row in first_turn]).all()


def test_a_recorded_trace_can_be_replayed(recorded: Recorded):
    trace = read_trace(recorded[0])
    slots = traced_slots(trace)
    expert_bytes = trace.header.expert_count * sum(slots.values())
    done = replay(trace, SimulatedPolicy.FREQUENCY, slot_bytes=slots, cache_bytes=expert_bytes)
    assert done.decode.hit_fraction is not None
    assert done.decode.hit_fraction > 0.5
    assert done.decode.repeat_hit_fraction == 1.0


def rows_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(("#", "turn"))]
