import io
from dataclasses import replace

from rich.console import Console

from moerun.engine.arguments import BufferReport
from moerun.machine.description import HOST, SSD, DeviceId
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger
from moerun.report.console import ASCII
from moerun.report.memory_view import memory_view, runner_lines
from moerun.runner.memory_report import compare
from moerun.runner.statistics import GpuSample, MemorySample
from tests.builders import GIB, MIB
from tests.test_records import a_record

CARD = DeviceId("gpu:0000:01:00.0")


def charge(device, kind, size_bytes):
    return Charge(device=device, kind=kind, size_bytes=size_bytes, confidence=Confidence.EXACT)


def buffer(device, kind, size_bytes, name="CPU"):
    return BufferReport(component="x", buffer=name, device=device, kind=kind, size_bytes=size_bytes)


RECORD = a_record(
    7,
    started_at_s=100.0,
    model_name="some model",
    mode="some model: 4 layers",
    labels=((CARD, "gpu0"), (HOST, "cpu"), (SSD, "ssd")),
    ledger=Ledger(
        charges=(
            charge(CARD, ChargeKind.DENSE_WEIGHTS, GIB),
            charge(CARD, ChargeKind.KV_CACHE, 2 * GIB),
            charge(CARD, ChargeKind.RUNTIME, GIB // 2),
            charge(HOST, ChargeKind.EXPERT_WEIGHTS, 8 * GIB),
            charge(HOST, ChargeKind.RUNTIME, GIB // 4),
            charge(SSD, ChargeKind.EXPERT_WEIGHTS, 20 * GIB),
        )
    ),
    buffers=(
        buffer(CARD, "model", GIB + 4000, "CUDA0"),
        buffer(CARD, "kv", 2 * GIB + 20 * MIB, "CUDA0"),
        buffer(HOST, "model", 28 * GIB, "CPU_Mapped"),
    ),
)
SAMPLE = MemorySample(
    at_s=1.0,
    resident_bytes=12 * GIB,
    private_bytes=GIB,
    file_backed_bytes=11 * GIB,
    model_resident_bytes=10 * GIB,
    proportional_bytes=11 * GIB,
    gpus=(GpuSample(device=CARD, process_bytes=4 * GIB, used_bytes=5 * GIB),),
)


SHOWN = """\
some model: 4 layers
pid 7, engine 2

gpu0  ███████████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░ 3.5 GiB
                  planned   reported    differs   observed
  █ dense         1.0 GiB    1.0 GiB   rounding          -
  ▒ kv            2.0 GiB    2.0 GiB     +0.98%          -
  ░ runtime       0.5 GiB          -          -    0.5 GiB
    together      3.5 GiB    3.0 GiB               4.0 GiB
    unaccounted                                    0.5 GiB

ram   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓░ 8.2 GiB
                  planned   reported   differs   observed
  ▓ experts       8.0 GiB    8.0 GiB    +0.00%          -
  ░ runtime       0.2 GiB          -         -    0.2 GiB
    together      8.2 GiB    8.0 GiB             10.0 GiB
    unaccounted                                   0.8 GiB

ssd   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 20.0 GiB
                planned   reported   differs   in RAM now
  ▓ experts    20.0 GiB   20.0 GiB    +0.00%      2.0 GiB
    together   20.0 GiB   20.0 GiB                2.0 GiB

host memory of the process: 12.0 GiB resident
  1.0 GiB private: caches, compute, the program
  11.0 GiB pages of files, 10.0 GiB of it the model; the system may drop and share them
  11.0 GiB with shared pages by their share
"""


def rendered(view):
    console = Console(file=io.StringIO(), width=80, no_color=True, record=True)
    console.print(view, soft_wrap=True)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_each_device_has_its_bar_its_rows_and_what_is_unaccounted():
    report = compare(RECORD.ledger, RECORD.buffers, (SAMPLE,))
    assert "\n".join(rendered(memory_view(RECORD, report))) + "\n" == SHOWN


def test_a_terminal_without_block_characters_has_bars_all_the_same():
    report = compare(RECORD.ledger, RECORD.buffers, (SAMPLE,))
    text = "\n".join(rendered(memory_view(RECORD, report, glyphs=ASCII)))
    assert text.isascii()
    assert "gpu0  ###########+++" in text


def test_a_runner_without_a_look_has_a_line_all_the_same():
    report = compare(RECORD.ledger, RECORD.buffers, ())
    head, line = (text.plain for text in runner_lines([(RECORD, report)], now_s=165.0))
    assert line.split() == ["some", "model", "7", "-", "512", "1m5s"]
    assert head.index("PID") == line.index("7")


def test_the_clock_may_have_been_set_back():
    report = compare(RECORD.ledger, RECORD.buffers, (replace(SAMPLE, swapped_bytes=GIB),))
    [_, line] = runner_lines([(RECORD, report)], now_s=50.0)
    assert line.plain.endswith("0ns")
    assert any("swapped out" in text for text in rendered(memory_view(RECORD, report)))
