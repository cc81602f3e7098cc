"""Traces read, written, and read again; and what is said of files that are none."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from moerun.engine.interface import MappedFile, Routing
from moerun.errors import MoerunError, UsageError
from moerun.experts.layout import expert_layout
from moerun.experts.routes import (
    COLUMNS,
    FIRST_LINE,
    LayerChoice,
    Phase,
    TracedLayer,
    TraceHeader,
    header_lines,
    read_lines,
)
from moerun.experts.trace import (
    TraceRecorder,
    TraceWriter,
    read_trace,
    start_trace,
    trace_header,
)
from moerun.machine.description import HOST
from tests.builders import a_model
from tests.traces import RECORDED, recorded_trace

HEADER = TraceHeader(
    model_name="Some model.gguf",
    architecture="qwen3moe",
    layer_count=3,
    expert_count=8,
    experts_used=2,
    layers=(
        TracedLayer(layer=0, expert_bytes=0, dense_bytes=300),
        TracedLayer(layer=1, expert_bytes=10, dense_bytes=100),
        TracedLayer(layer=2, expert_bytes=20, dense_bytes=100),
    ),
    shared_bytes=70,
)
NAMES = ",".join(COLUMNS)


def a_routing(layer: int, *rows: tuple[int, ...], weights: bool = False) -> Routing:
    chosen = numpy.array(rows, dtype=numpy.int32)
    return Routing(
        layer=layer,
        experts=tuple(sorted({expert for row in rows for expert in row})),
        rows=chosen,
        weights=(chosen / 10).astype(numpy.float32) if weights else None,
    )


def text_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "t.csv"
    start_trace(path, HEADER)
    writer = TraceWriter(path)
    writer.note(a_routing(1, (0, 1), (1, 2), (3, 0), weights=True), {})
    writer.note(a_routing(2, (7, 6), weights=True), {})  # of the last layer, the last token alone
    writer.note(a_routing(1, (4, 5)), {5: 10})
    writer.note(a_routing(2, (5, 6)), None)
    writer.close()
    assert text_of(path)[-12:] == [
        "0,0,0,1,0,0,0,1,0",
        "0,0,0,1,1,1,0.1,1,0",
        "0,0,1,1,0,1,0.1,1,0",
        "0,0,1,1,1,2,0.2,1,0",
        "0,0,2,1,0,3,0.3,1,0",
        "0,0,2,1,1,0,0,1,0",
        "0,0,2,2,0,7,0.7,1,0",
        "0,0,2,2,1,6,0.6,1,0",
        "0,1,3,1,0,4,,1,0",
        "0,1,3,1,1,5,,0,10",
        "0,1,3,2,0,5,,,",
        "0,1,3,2,1,6,,,",
    ]
    trace = read_trace(path)
    prompt, answer = trace.passes
    assert (prompt.phase, prompt.tokens, answer.phase, answer.tokens) == (
        Phase.PREFILL,
        3,
        Phase.DECODE,
        1,
    )
    assert prompt.choices == (LayerChoice(1, (0, 1, 2, 3)), LayerChoice(2, (7, 6)))
    assert answer.choices == (LayerChoice(1, (4, 5)), LayerChoice(2, (5, 6)))
    assert trace.header == replace(HEADER, model_name="Some_model.gguf")
    assert trace.header.dense_bytes == 570
    assert trace.slot_bytes == {1: 10, 2: 20}
    assert trace.notes == ()


def test_a_new_prompt_is_a_new_turn(tmp_path: Path):
    path = tmp_path / "t.csv"
    start_trace(path, HEADER)
    writer = TraceWriter(path)
    for rows in (((0, 1),), ((1, 2),), ((1, 2), (2, 3)), ((3, 4), (5, 6)), ((0, 1),)):
        writer.note(a_routing(1, *rows), {})
    writer.close()
    passes = read_trace(path).passes
    # one token alone at the very beginning is a prompt; two batches of one prompt are one turn
    assert [(p.turn, p.phase.value, p.tokens) for p in passes] == [
        (0, 0, 1),
        (0, 1, 1),
        (1, 0, 4),
        (1, 1, 1),
    ]
    steps = [line.split(",")[2] for line in text_of(path) if line.startswith("1,")]
    assert steps == ["0", "0", "1", "1", "2", "2", "3", "3", "4", "4"]


def test_the_header_of_a_model(tmp_path: Path):
    model = a_model(layers=2, dense=64, expert=800, input_bytes=96, output_bytes=96)
    layout = expert_layout(model, {tensor.name: HOST for tensor in model.loaded_tensors})
    header = trace_header(model, layout)
    assert header.layers[1] == TracedLayer(layer=1, expert_bytes=300, dense_bytes=64)
    assert header.dense_bytes + layout.expert_bytes == model.weight_bytes
    assert next(iter(header_lines(header))) == FIRST_LINE


class ScriptedSupplier:
    """Another supplier, which only keeps what it is told."""

    def __init__(self, streamed: dict[str, int]) -> None:
        self.streamed = streamed
        self.wants_hidden = True
        self.wants_weights = False
        self.told: list[object] = []

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        self.told.append(mapped)

    def supply(self, routing: Routing) -> None:
        self.told.append(routing.layer)

    def supply_layer(self, layer: int) -> None:
        self.told.append(("whole", layer))

    def check(self) -> None:
        self.told.append("check")

    def close(self) -> None:
        self.told.append("close")


def test_a_recorder_alone_writes_and_supplies_nothing(tmp_path: Path):
    path = tmp_path / "t.csv"
    start_trace(path, HEADER)
    recorder = TraceRecorder(TraceWriter(path), traced={"blk.1.ffn_up_exps.weight": 1})
    assert dict(recorder.streamed) == {"blk.1.ffn_up_exps.weight": 1}
    assert recorder.wants_weights
    assert not recorder.wants_hidden
    recorder.attach(())
    recorder.supply(a_routing(1, (2, 3)))
    recorder.supply_layer(1)
    recorder.check()
    recorder.close()
    recorder.close()
    assert text_of(path)[-2:] == ["0,0,0,1,0,2,,1,0", "0,0,0,1,1,3,,1,0"]


def test_a_recorder_hands_on_what_the_other_supplier_needs(tmp_path: Path):
    path = tmp_path / "t.csv"
    start_trace(path, HEADER)
    inner = ScriptedSupplier({"b": 2})
    recorder = TraceRecorder(TraceWriter(path), traced={"a": 1, "b": 2}, inner=inner)
    assert dict(recorder.streamed) == {"a": 1, "b": 2}
    assert recorder.wants_hidden
    recorder.attach(())
    recorder.supply(a_routing(1, (2, 3)))
    recorder.supply(a_routing(2, (4, 5)))
    recorder.supply_layer(1)
    recorder.supply_layer(2)
    recorder.check()
    recorder.close()
    assert inner.told == [(), 2, ("whole", 2), "check", "close"]
    # what the other one had to read is not known here
    assert [line.split(",")[-2:] for line in text_of(path)[-4:]] == [
        ["1", "0"],
        ["1", "0"],
        ["", ""],
        ["", ""],
    ]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    with pytest.raises(MoerunError, match="cannot be written"):
        start_trace(tmp_path / "none" / "t.csv", HEADER)
    with pytest.raises(MoerunError, match="cannot be written"):
        TraceWriter(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence():
    writer = TraceWriter("/dev/full")
    writer.note(a_routing(1, (1, 2)), {})
    with pytest.raises(MoerunError, match="cannot be written"):
        writer.close()


ROWS = "0,0,0,0,0,5,0.5,0,30\n0,0,0,1,0,6,0.5,0,40\n"


def test_other_columns_and_orders_are_understood():
    text = "# n_expert=9\n\nexpert,layer,step,more\n8,0,0,x\n3,1,0,x\n3,0,1,x\n"
    trace = read_lines(text.splitlines(keepends=True), label="t")
    assert [each.choices for each in trace.passes] == [
        (LayerChoice(0, (8,)), LayerChoice(1, (3,))),
        (LayerChoice(0, (3,)),),
    ]
    assert trace.slot_bytes == {}
    assert trace.header.experts_used == 1


def test_sizes_of_experts_are_taken_from_the_rows_where_no_line_tells_them():
    trace = read_lines(f"{NAMES}\n{ROWS}0,1,1,0,0,5,0.5,1,0\n".splitlines(True), label="t")
    assert trace.slot_bytes == {0: 30, 1: 40}


def test_windows_line_ends_and_byte_order_marks_do_not_matter():
    text = f"\ufeff{FIRST_LINE}\n{NAMES}\n{ROWS}".replace("\n", "\r\n")
    assert len(read_lines(text.splitlines(keepends=True), label="t").passes) == 1


def test_a_last_line_that_was_cut_off_is_left_out():
    trace = read_lines(f"{NAMES}\n{ROWS}0,0,0,2,".splitlines(keepends=True), label="t")
    assert trace.routed_layers == {0, 1}
    assert trace.notes == ("line 4 of t was cut off and is left out",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line that names the columns"),
        ("hello\n", "line 1: .* step, layer, expert are not among them"),
        (f"{NAMES}\n", "holds no routing"),
        ("# route_trace v9\n", "version v9"),
        (f"{NAMES}\n0,0,0,0\n{ROWS}", "line 2: 4 values stand under 9 columns"),
        (f"{NAMES}\n{ROWS}0,0,0,1,0,x,0.5,0,0\n", "line 4: expert is 'x'"),
        (f"{NAMES}\n{ROWS}0,0,0,-1,0,1,0.5,0,0\n", "line 4: layer is '-1'"),
        (f"{NAMES}\n0,7,0,0,0,1,0.5,0,0\n", "line 2: phase 7"),
        (f"# n_expert=4\n{NAMES}\n{ROWS}", "line 3: expert 5 of 4"),
        (f"{NAMES}\n0,0,0,99999999,0,1,0.5,0,0\n", "line 2: layer is 99,999,999"),
        ("# layer=1 expert_bytes=-3\n", "line 1: expert_bytes is '-3'"),
    ],
)
def test_a_damaged_line_is_named(text: str, message: str):
    with pytest.raises(UsageError, match=message):
        read_lines(text.splitlines(keepends=True), label="t")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"GGUF\x00\xff\xfe\n" * 3)
    with pytest.raises(UsageError, match="line 1"):
        read_trace(tmp_path / "binary.csv")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_traces_are_understood(name: str):
    trace = read_trace(recorded_trace(name))
    assert trace.notes == ()
    assert len(trace.routed_layers) == trace.header.layer_count
    answers = [each for each in trace.passes if each.phase is Phase.DECODE]
    assert len(answers) == len(trace.passes) - 1
    for each in answers:
        assert all(len(choice.experts) == trace.header.experts_used for choice in each.choices)
