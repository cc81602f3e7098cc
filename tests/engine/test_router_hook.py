"""The router's choices are heard before the experts are read, in every architecture and placement.

That nothing unheard was read shows in the logits: what was not announced is poison (`suppliers`).
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from moerun.codec import from_plain
from moerun.engine import abi
from moerun.engine.arguments import EngineArgs, Override
from moerun.engine.decode import Decoder
from moerun.engine.graph_tensors import (
    copied_name,
    is_copy,
    name_of,
    operation_of,
    shown_name,
)
from moerun.engine.interface import GenerationRequest, Routing, Sampling, StopReason
from moerun.engine.llama import LlamaSession
from moerun.engine.load import context_parameters, load_model
from moerun.errors import EngineRefused, MoerunError
from moerun.machine.description import HOST
from moerun.planning.strategy import LoadMode
from tests.engine.builders import ENGINE, answer, arguments, device_references
from tests.engine.hook_child import HookRun
from tests.engine.lossless_child import SHORT, run_script
from tests.engine.placements import EXPERTS
from tests.engine.suppliers import Poisoned, Recording, host_layout
from tests.tiny_models import MOE_ARCHITECTURES, write_tiny_model

pytestmark = pytest.mark.engine

RUNS = 7
GREEDY = GenerationRequest(
    prompt="The router chooses", sampling=Sampling(temperature=0.0), maximum_tokens=6
)


@contextmanager
def loaded(args: EngineArgs, supplier: Recording | None) -> Iterator[LlamaSession]:
    session = ENGINE.load(args, supplier=supplier)
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_every_choice_is_heard_before_its_experts_are_read(
    architecture: str, tiny_model: Callable[[str], Path], run_child: Callable
):
    report = run_child("tests.engine.hook_child", tiny_model(architecture))
    runs = [from_plain(HookRun, line) for line in report.lines]

    assert len(runs) == RUNS, report.ending
    assert {run.name: run.rows_apart for run in runs if run.rows_apart} == {}
    for run in runs:
        assert run.layers
        # Once each and in order; no architecture here hides its choice.
        assert set(run.heard) == {run.layers}, run.name
        assert run.whole_layers == (), run.name
        assert run.choices_apart == 0, f"{run.name} chose otherwise than the processor alone"
        assert (run.out_of_range, run.wrong_unions) == (0, 0), run.name
        assert (run.without_hidden, run.without_weights) == (0, 0), run.name


class Deaf(Poisoned):
    """Supplies nothing to one layer."""

    def supply(self, routing: Routing) -> None:
        if routing.layer != 2:
            super().supply(routing)


def test_what_was_not_supplied_would_show(tiny_model: Callable[[str], Path]):
    """Without this the tests with poison would prove nothing."""
    path = tiny_model("qwen3moe")
    with loaded(arguments(path), None) as session:
        expected = session.evaluate((3, 4, 5))
    with loaded(arguments(path, load_mode=LoadMode.STREAM), Deaf(host_layout(path))) as session:
        assert np.any(session.evaluate((3, 4, 5)) != expected, axis=1).all()


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_split_files(architecture: str, tmp_path: Path):
    whole = write_tiny_model(tmp_path / "whole.gguf", architecture)
    first = write_tiny_model(tmp_path / "split.gguf", architecture, shards=3)
    with loaded(arguments(whole), None) as session:
        expected = run_script(session, SHORT)
    supplier = Poisoned(host_layout(first))
    assert len({tensor.file_index for tensor in supplier.layout.tensors}) > 1
    with loaded(arguments(first, load_mode=LoadMode.STREAM), supplier) as session:
        assert np.array_equal(run_script(session, SHORT), expected)


def test_graphs_that_change_their_size(tiny_model: Callable[[str], Path]):
    """Past 256 tokens the graph sees 512 cells and is another one, at the same addresses."""
    path = tiny_model("qwen3moe")
    tokens = [*range(3, 258), 7, 8, 9, 10]
    args = arguments(path, batch_tokens=512, ubatch_tokens=64)
    poisoned, rows = Poisoned(host_layout(path)), []
    for supplier, mode in ((None, LoadMode.MMAP), (poisoned, LoadMode.STREAM)):
        with loaded(replace(args, load_mode=mode), supplier) as session:
            decoder = Decoder(session.loaded)
            parts = [decoder.evaluate(tokens[:250])]
            for token in tokens[250:]:
                decoder.advance(token)
                parts.append(_last_row(session))
            rows.append(np.concatenate(parts))
    assert np.array_equal(rows[0], rows[1])
    assert poisoned.whole_layers == []
    assert len(poisoned.evaluations) == 4 + len(tokens) - 250


def _last_row(session: LlamaSession) -> np.ndarray:
    llama, size = session.loaded.abi.llama, session.loaded.vocabulary_size
    pointer = llama.llama_get_logits_ith(session.loaded.context, -1)
    return np.array(np.ctypeslib.as_array(pointer, shape=(1, size)))


@pytest.mark.parametrize("architecture", ["qwen3moe", "llama4", "nemotron_h_moe", "gpt-oss"])
def test_hidden_is_what_the_router_saw(architecture: str, tiny_model: Callable[[str], Path]):
    """The router applied to it ranks what was chosen first."""
    path = tiny_model(architecture)
    routers = {
        int(tensor.name.split(".")[1]): dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(path).tensors
        if tensor.name.endswith("ffn_gate_inp.weight")
    }
    biases = {
        int(tensor.name.split(".")[1]): tensor.data
        for tensor in GGUFReader(path).tensors
        if tensor.name.endswith(("ffn_gate_inp.bias", "exp_probs_b.bias"))
    }
    supplier = Recording(host_layout(path), wants_hidden=True, wants_weights=True)
    with loaded(arguments(path), supplier) as session:
        run_script(session, SHORT)
    agreed = total = 0
    for heard in supplier.heard:
        assert heard.hidden is not None
        assert heard.weights is not None
        scores = heard.hidden @ routers[heard.layer].T
        if architecture == "nemotron_h_moe":
            scores = 1 / (1 + np.exp(-scores))
        scores = scores + biases.get(heard.layer, 0)
        best = np.argsort(-scores, axis=1)[:, : heard.rows.shape[1]]
        pairs = zip(best.tolist(), heard.rows.tolist(), strict=True)
        agreed += sum(set(a) == set(b) for a, b in pairs)
        total += len(best)
        assert np.isfinite(heard.weights).all()
    assert agreed == total


def test_what_is_not_wanted_is_not_read(tiny_model: Callable[[str], Path]):
    supplier = Recording(host_layout(tiny_model("qwen3moe")))
    with loaded(arguments(tiny_model("qwen3moe")), supplier) as session:
        run_script(session, SHORT)
    assert {heard.hidden is None for heard in supplier.heard} == {True}
    assert {heard.weights is None for heard in supplier.heard} == {True}


@pytest.mark.parametrize("architecture", ["qwen3moe", "llama4"])
def test_a_supplier_may_change_its_mind(architecture: str, tiny_model: Callable[[str], Path]):
    """Whether preloading is worth it is found out while a model answers."""
    path = tiny_model(architecture)
    supplier = Poisoned(host_layout(path))
    with loaded(arguments(path, load_mode=LoadMode.STREAM), supplier) as session:
        decoder = Decoder(session.loaded)
        decoder.evaluate([3, 4, 5])
        for token, wants in ((6, True), (7, True), (8, False), (9, False)):
            supplier.wants_hidden = wants
            decoder.advance(token)
            assert {h.hidden is not None for h in supplier.evaluations[-1]} == {wants}
        row = _last_row(session)
    with loaded(arguments(path), None) as session:
        decoder = Decoder(session.loaded)
        decoder.evaluate([3, 4, 5])
        for token in (6, 7, 8, 9):
            decoder.advance(token)
        assert np.array_equal(row, _last_row(session))


def test_cuts_lie_right_before_the_experts(tiny_model: Callable[[str], Path]):
    """So a device's fused kernels for the choice stay whole; the choice itself is nodes away."""
    with loaded(
        arguments(tiny_model("qwen3moe")), Recording(host_layout(tiny_model("qwen3moe")))
    ) as (session):
        run_script(session, SHORT)
        assert session.loaded.hook is not None
        graph = session.loaded.hook._graph
        assert graph is not None
        order = list(graph.actions)
        cuts = [index for index, pointer in enumerate(order) if graph.actions[pointer]]
        assert len(cuts) == 4
        for index in cuts:
            assert operation_of(order[index + 1]) == abi.Operation.MUL_MAT_ID
            choices = [i for i in range(index) if name_of(order[i]).startswith(b"ffn_moe_topk-")]
            assert choices[-1] < index - 1


@pytest.mark.parametrize("mode", [LoadMode.COPY, LoadMode.MMAP])
@pytest.mark.parametrize("extra_buffers", [False, True])
def test_choices_are_heard_however_a_model_is_loaded(
    mode: LoadMode, extra_buffers: bool, tiny_model: Callable[[str], Path]
):
    """Routing can be traced without streaming, also of repacked experts."""
    path = tiny_model("qwen3moe")
    args = arguments(path, load_mode=mode, extra_buffers=extra_buffers)
    supplier = Recording(host_layout(path))
    with loaded(args, None) as plain, loaded(args, supplier) as traced:
        assert np.array_equal(run_script(plain, SHORT), run_script(traced, SHORT))
    assert [[h.layer for h in e] for e in supplier.evaluations] == [[0, 1, 2, 3]] * 9
    assert supplier.attached == 1


def test_nothing_is_installed_without_something_to_supply(tiny_model: Callable[[str], Path]):
    path = tiny_model("qwen3moe")
    args = arguments(path)
    assert not context_parameters(abi.open_engine(), args).cb_eval
    idle = Recording(replace(host_layout(path), tensors=()))
    with loaded(args, None) as plain, loaded(args, idle) as other:
        assert plain.loaded.hook is None
        assert other.loaded.hook is None
        assert np.array_equal(run_script(plain, SHORT), run_script(other, SHORT))
        assert other.loaded.decode_tokens == args.batch_tokens
    assert len(idle.evaluations) == 1 + len(SHORT.steps)  # it may still object to a token
    assert idle.closed == 1


class Failing(Poisoned):
    """Raises at one of its calls, counted from one."""

    def __init__(self, layout, *, at: int, error: BaseException) -> None:
        super().__init__(layout)
        self.at, self.error, self.calls = at, error, 0

    def supply(self, routing: Routing) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        super().supply(routing)


class Unreadable(MoerunError):
    """What a supplier may raise."""


@pytest.mark.parametrize("at", [1, 3, 5, 13])
@pytest.mark.parametrize("error", [Unreadable("the disk is gone"), KeyboardInterrupt()])
def test_a_supplier_that_raises_ends_the_answer_and_nothing_else(
    at: int, error: BaseException, tiny_model: Callable[[str], Path]
):
    """In the prompt's first batch, its second, and at later tokens of four layers each."""
    path = tiny_model("qwen3moe")
    with loaded(arguments(path), None) as session:
        expected = answer(session, GREEDY)[0]
    supplier = Failing(host_layout(path), at=at, error=error)
    args = arguments(path, ubatch_tokens=12, load_mode=LoadMode.STREAM)
    with loaded(args, supplier) as session:
        said: list[str] = []
        with pytest.raises(type(error)) as caught:
            session.generate(GREEDY, on_text=said.append, is_cancelled=lambda: False)
        assert caught.value is error
        assert expected.startswith("".join(said))
        supplier.forget()
        assert answer(session, GREEDY)[0] == expected
        assert session.evaluate((1, 2, 3)).shape[0] == 3


def test_a_supplier_that_raises_beside_a_device(
    tiny_model: Callable[[str], Path], two_workers: tuple[str, str]
):
    path = tiny_model("qwen3moe")
    args = arguments(
        path,
        devices=device_references(two_workers[:1]),
        workers=two_workers[:1],
        n_gpu_layers=99,
        overrides=(Override(pattern=EXPERTS, device=HOST),),
        load_mode=LoadMode.STREAM,
    )
    with loaded(replace(args, load_mode=LoadMode.MMAP), None) as session:
        expected = run_script(session, SHORT)
    for at in (1, 2, 4, 7):
        supplier = Failing(host_layout(path), at=at, error=Unreadable("gone"))
        with loaded(args, supplier) as session:
            with pytest.raises(Unreadable):
                run_script(session, SHORT)
            supplier.forget()
            assert np.array_equal(run_script(session, SHORT), expected)


class Objecting(Recording):
    """Objects to one evaluation after it was computed."""

    def check(self) -> None:
        super().check()
        if len(self.evaluations) == 3:
            raise Unreadable("the file has changed")


def test_a_token_that_must_not_leave_does_not(tiny_model: Callable[[str], Path]):
    path = tiny_model("mixtral")
    with loaded(arguments(path), None) as session:
        expected = answer(session, GREEDY)[0]
    with loaded(arguments(path), Objecting(host_layout(path))) as session:
        said: list[str] = []
        with pytest.raises(Unreadable):
            session.generate(GREEDY, on_text=said.append, is_cancelled=lambda: False)
        assert expected.startswith("".join(said))
        assert len("".join(said)) < len(expected)
        assert answer(session, GREEDY)[0] == expected


def test_a_prompt_can_be_cancelled_in_the_middle(tiny_model: Callable[[str], Path]):
    path = tiny_model("qwen3moe")
    supplier = Poisoned(host_layout(path))
    args = arguments(path, load_mode=LoadMode.STREAM, ubatch_tokens=4, batch_tokens=16)
    with loaded(args, supplier) as session:
        polls = iter([False] * 3)
        result = session.generate(
            GREEDY, on_text=lambda _: None, is_cancelled=lambda: next(polls, True)
        )
        assert result.stop_reason is StopReason.CANCELLED
        text, result = answer(session, GREEDY)
    with loaded(arguments(path), None) as session:
        assert text == answer(session, GREEDY)[0]


class Misnaming(Poisoned):
    """Calls the layers by numbers that no node of the graph has in its name."""

    def __init__(self, layout) -> None:
        super().__init__(layout)
        self.streamed = {name: layer + 50 for name, layer in self.streamed.items()}

    def supply(self, routing: Routing) -> None:
        super().supply(replace(routing, layer=routing.layer - 50))

    def supply_layer(self, layer: int) -> None:
        super().supply_layer(layer - 50)


def _evaluate_untaught(path: Path, supplier: Recording) -> list[bytes]:
    """Run tokens one by one without the first look at the graph."""
    model = load_model(arguments(path, load_mode=LoadMode.STREAM), supplier=supplier)
    llama, rows = model.abi.llama, []
    assert model.hook is not None
    for token in (5, 6, 7):
        array = (llama.llama_token * 1)(token)
        model.hook.begin(1)
        assert llama.llama_decode(model.context, llama.llama_batch_get_one(array, 1)) == 0
        model.hook.end(is_complete=True)
        supplier.check()
        pointer = llama.llama_get_logits_ith(model.context, -1)
        rows.append(ctypes.string_at(pointer, 4 * model.vocabulary_size))
    model.free()
    return rows


def test_the_first_token_teaches_where_nothing_else_could(tiny_model: Callable[[str], Path]):
    path = tiny_model("qwen3moe")
    known, unknown = Poisoned(host_layout(path)), Misnaming(host_layout(path))
    assert _evaluate_untaught(path, known) == _evaluate_untaught(path, unknown)
    assert known.whole_layers == []
    assert [[h.layer for h in e] for e in known.evaluations] == [[0, 1, 2, 3]] * 3
    # By a choice of another name the whole layer is supplied, once: then it is known.
    assert unknown.whole_layers == [0, 1, 2, 3]
    assert [[h.layer for h in e] for e in unknown.evaluations] == [[], *[[0, 1, 2, 3]] * 2]


def test_names_of_copies_and_views():
    assert is_copy(b"CPU#ffn_moe_topk-0#0")
    assert not is_copy(b"ffn_moe_topk-0")
    assert copied_name(b"RPC0[127.0.0.1:50052]#blk.0.ffn_up_exps.weight#1") == (
        b"blk.0.ffn_up_exps.weight"
    )
    assert shown_name(b"CPU#ffn_norm-3 (reshaped) (view)#0") == b"ffn_norm-3"
    assert shown_name(b"ffn_norm-3 (copy)") == b"ffn_norm-3 (copy)"


def test_a_graph_used_again_is_counted_before_it_is_computed(tiny_model: Callable[[str], Path]):
    with loaded(arguments(tiny_model("qwen3moe")), None) as session:
        decoder = Decoder(session.loaded)
        decoder.evaluate([3, 4, 5])
        counts = []
        for token in (6, 7, 8):
            decoder.advance(token)
            perf = session.loaded.abi.llama.llama_perf_context(session.loaded.context)
            counts.append(perf.n_reused)
    assert counts[2] - counts[1] == counts[1] - counts[0] == 1


def test_a_layer_that_the_engine_left_out_is_noticed(tiny_model: Callable[[str], Path]):
    """The count of cuts is what a graph that changed unseen would show in."""
    path = tiny_model("qwen3moe")
    with loaded(arguments(path), Recording(host_layout(path))) as session:
        decoder = Decoder(session.loaded)
        decoder.evaluate([3, 4, 5])
        decoder.advance(6)
        assert session.loaded.hook is not None
        graph = session.loaded.hook._graph
        assert graph is not None
        assert graph.cut_count == 4
        graph.cut_count = 5
        with pytest.raises(EngineRefused, match="computed 4 layers"):
            decoder.advance(7)
        assert decoder.tokens == ()
        decoder.advance(6)
