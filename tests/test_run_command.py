import io
from dataclasses import replace

import pytest

from moerun.cli.app import main
from moerun.cli.open_model import require_text
from moerun.engine.arguments import BufferReport, engine_args
from moerun.engine.interface import GenerationResult, LoadReport, StopReason
from moerun.errors import UnsupportedModel
from moerun.machine.description import HOST, DeviceId
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Strategy
from moerun.report.answer_view import AnswerWriter
from moerun.report.buffer_view import buffer_lines, difference_text
from moerun.report.progress_view import LoadingLine
from moerun.report.run_document import run_document
from moerun.report.timing_view import format_duration, timing_lines
from moerun.runner.buffer_report import compare_buffers
from moerun.runner.loading import Loaded
from moerun.runner.mode import describe_faster, describe_mode
from tests.builders import GIB, MIB, a_machine, a_model

CARD = DeviceId("gpu:0000:00:00.0")
RESULT = GenerationResult(
    stop_reason=StopReason.END,
    prompt_tokens=30,
    reused_tokens=4,
    answer_tokens=237,
    prompt_s=0.107345,
    answer_s=4.289432,
    seed=5,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class NarrowStream(io.StringIO):
    encoding = "ascii"


def test_the_timing_block_has_the_eight_lines_that_scripts_look_for():
    assert timing_lines(RESULT, load_s=0.534986708, total_s=4.935886791) == (
        "total duration:       4.935886791s",
        "load duration:        534.986708ms",
        "prompt eval count:    26 token(s)",
        "prompt eval duration: 107.345ms",
        "prompt eval rate:     242.21 tokens/s",
        "eval count:           237 token(s)",
        "eval duration:        4.289432s",
        "eval rate:            55.25 tokens/s",
    )


def test_a_line_whose_value_is_zero_is_left_out():
    quick = replace(RESULT, prompt_tokens=4, prompt_s=0.0, answer_tokens=0, answer_s=0.0)
    assert timing_lines(quick, load_s=0.0, total_s=1.0) == ("total duration:       1s",)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (62.345, "1m2.345s"),
        (0.8124, "812.4ms"),
        (35.1e-6, "35.1µs"),
        (3e-9, "3ns"),
        (7200.5, "2h0m0.5s"),
        (1.0, "1s"),
        (0.0, "0ns"),
    ],
)
def test_durations_are_spelled_as_in_go(seconds, text):
    assert format_duration(seconds) == text


def test_in_a_pipe_text_leaves_untouched_and_a_last_newline_follows():
    stream = io.StringIO()
    writer = AnswerWriter(stream, is_terminal=False)
    for piece in ("\x1b[31m[bold] ", "no wrap " * 40, "\r"):
        writer.write(piece)
    writer.finish()
    assert stream.getvalue() == "\x1b[31m[bold] " + "no wrap " * 40 + "\r\n"
    assert writer.text + "\n" == stream.getvalue()


@pytest.mark.parametrize(("said", "shown"), [("", ""), ("a\n", "a\n"), ("a", "a\n")])
def test_one_newline_ends_an_answer(said, shown):
    stream = io.StringIO()
    writer = AnswerWriter(stream, is_terminal=False)
    writer.write(said)
    writer.finish()
    assert stream.getvalue() == shown


def test_what_a_stream_cannot_say_is_replaced():
    stream = NarrowStream()
    AnswerWriter(stream, is_terminal=False).write("é\ud800")
    assert stream.getvalue() == "??"


def test_the_loading_line_leaves_nothing_behind_and_is_for_terminals_only():
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        line = LoadingLine(stream, "m", is_shown=True)
        for fraction in (0.0, 0.001, 0.5, 1.0):
            line.update(fraction)
        line.finish()
    assert pipe.getvalue() == ""
    assert terminal.getvalue().count("loading m") == 3
    assert terminal.getvalue().endswith("\r\x1b[K")


def a_load(*, gpus=(2 * GIB,), strategy=None, model=None, ram=64 * GIB):
    model, machine = model or a_model(), a_machine(gpus=gpus, ram=ram)
    plan = plan_placement(model, machine, strategy or Strategy())
    report = LoadReport(buffers=(), context_tokens=4096, load_s=0.5, engine_version="e")
    loaded = Loaded(plan=plan, args=engine_args(plan, model, machine), report=report)
    return loaded, model, machine


def test_the_mode_says_where_experts_lie_and_what_would_be_faster():
    loaded, model, machine = a_load(gpus=(GIB,), strategy=Strategy(gpu_margin_bytes=0))
    line = describe_mode(loaded.plan, model, machine)
    assert line.startswith("test model: 4 layers, experts: ")
    assert "on gpu0" in line
    assert "in RAM" in line
    assert "0 on SSD" in line
    assert f"context {loaded.plan.context_tokens:,}" in line
    assert "more VRAM" in (describe_faster(loaded.plan, model, machine) or "")


def test_a_model_that_lies_on_the_card_whole_needs_nothing():
    loaded, model, machine = a_load(gpus=(24 * GIB,))
    assert "experts: 4 on gpu0, 0 in RAM, 0 on SSD" in describe_mode(loaded.plan, model, machine)
    assert describe_faster(loaded.plan, model, machine) is None


def test_without_a_card_one_large_enough_is_named():
    loaded, model, machine = a_load(gpus=())
    assert "no GPU is used" in (describe_faster(loaded.plan, model, machine) or "")


def test_experts_on_ssd_are_named_with_their_size():
    model = a_model(expert=1000 * MIB)
    loaded, model, machine = a_load(gpus=(), model=model, ram=8 * GIB)
    assert "0 on SSD" not in describe_mode(loaded.plan, model, machine)
    assert "streamed through a cache of" in describe_mode(loaded.plan, model, machine)
    assert "no room in the cache" in (describe_faster(loaded.plan, model, machine) or "")
    assert loaded.plan.load_mode is LoadMode.STREAM


def test_a_dense_model_counts_layers():
    model = a_model(expert=0, dense=100 * MIB)
    loaded, model, machine = a_load(gpus=(24 * GIB,), model=model)
    assert describe_mode(loaded.plan, model, machine).startswith("test model: 4 layers, 4 on gpu0;")


def test_the_document_says_what_decides_the_arithmetic():
    loaded, model, _ = a_load()
    document = run_document(
        "an answer", RESULT, model=model, loaded=loaded, mode="m", buffers=(), total_s=6.0
    )
    assert document["answer"] == "an answer"
    assert document["stop_reason"] == "stop"
    assert document["seed"] == 5
    assert document["timings"]["answer_tokens_per_s"] == pytest.approx(55.25, abs=0.01)
    assert document["plan"]["extra_buffers"] is loaded.args.extra_buffers
    assert document["plan"]["ubatch_tokens"] == 512
    assert document["plan"]["context_tokens"] == 4096
    assert document["plan"]["devices"] == [{"id": str(CARD), "engine_name": "CUDA0"}]


def test_a_document_without_a_question_has_empty_figures():
    loaded, model, _ = a_load()
    document = run_document("", None, model=model, loaded=loaded, mode="m", buffers=(), total_s=1.0)
    assert document["answer"] == ""
    assert document["answer_tokens"] is None


def buffer(device, kind, size_bytes, name="CPU"):
    return BufferReport(component="x", buffer=name, device=device, kind=kind, size_bytes=size_bytes)


def test_buffers_stand_beside_their_prediction():
    ledger = Ledger(
        charges=(
            Charge(
                device=HOST,
                kind=ChargeKind.KV_CACHE,
                size_bytes=200,
                confidence=Confidence.DERIVED,
            ),
            Charge(
                device=HOST, kind=ChargeKind.MARGIN, size_bytes=9, confidence=Confidence.ASSUMED
            ),
        )
    )
    predicted = (
        buffer(HOST, "model", 1000, "CPU"),
        buffer(HOST, "model", 50, "CPU_Mapped"),
        buffer(HOST, "model", 50, "CPU_Mapped"),
    )
    reported = (
        buffer(HOST, "model", 900, "CPU"),
        buffer(HOST, "model", 105, "CPU_REPACK"),
        buffer(HOST, "model", 100, "CPU_Mapped"),
        buffer(HOST, "kv", 200),
        buffer(CARD, "compute", 7),
    )
    rows = compare_buffers(ledger, predicted, reported)
    found = {(row.device, row.name): (row.planned_bytes, row.reported_bytes) for row in rows}
    assert found == {
        (HOST, "weights"): (1000, 1005),
        (HOST, "mapped weights"): (100, 100),
        (HOST, "kv"): (200, 200),
        (CARD, "compute"): (0, 7),
    }
    lines = buffer_lines(rows, a_machine(gpus=(GIB,)).label)
    rounding = "equal but for the log's rounding"
    assert f"cpu weights:          planned 1000 B, reported 1005 B ({rounding})" in lines
    assert "cpu kv:               planned 200 B, reported 200 B (+0.00%)" in lines


@pytest.mark.parametrize(
    ("planned", "reported", "text"),
    [
        (100 * MIB, 101 * MIB, "+1.00%"),
        (100 * MIB, 99 * MIB, "-1.00%"),
        (100 * MIB, 100 * MIB + 5243, "equal but for the log's rounding"),
        (0, 7 * MIB, "not planned"),
        (5, 5, "+0.00%"),
    ],
)
def test_a_difference_is_told_from_the_rounding_of_the_log(planned, reported, text):
    assert difference_text(planned, reported) == text


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature", "-1"),
        ("--top-p", "2"),
        ("--num-predict", "-2"),
        ("--num-predict", "0"),
        ("--temperature", "inf"),
        ("--temperature", "nan"),
        ("--top-k", "99999999999"),
        ("--repeat-penalty", "1e300"),
        ("--seed", "-1"),
        ("--frobnicate",),
    ],
)
def test_flags_out_of_range_are_usage_errors_before_anything_is_read_or_loaded(flags, capsys):
    assert main(["run", "demo", "hi", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")


def test_a_missing_model_is_told_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MOERUN_REGISTRY", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["run", "no-such-model", "hi"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("Error:") == 1


def test_a_model_that_writes_no_text_is_refused_before_it_is_loaded():
    require_text(a_model())
    with pytest.raises(UnsupportedModel, match="does not write text"):
        require_text(replace(a_model(), generates_text=False))
