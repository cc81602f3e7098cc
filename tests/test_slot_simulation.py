"""Slots replayed over a trace: hits, uploads and what they make of a token."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from moerun.cli.app import main
from moerun.errors import UsageError
from moerun.experts.routes import Phase, Trace
from moerun.experts.simulate import SimulatedPolicy
from moerun.experts.slot_simulation import (
    SlotAmount,
    SlotQuestion,
    SlotSimulation,
    replay_slots,
    simulate_slots,
    uploads_per_token,
)
from moerun.experts.trace import read_trace
from moerun.planning.slot_gain import LAYER_S, Rates, expected_hit_fraction
from moerun.report.console import ASCII, Page
from moerun.report.slot_simulation_view import slot_simulation_document, slot_simulation_lines
from tests.plan_pictures import drawn
from tests.traces import RECORDED, a_pass, a_trace, recorded_trace

FREQUENCY = (SimulatedPolicy.FREQUENCY,)
RATES = Rates(device_bytes_per_s=100.0, link_bytes_per_s=20.0, host_bytes_per_s=20.0)


def a_slot_trace() -> Trace:
    """Return a prompt that uses all experts, and 10 tokens of two layers that use two in turn."""
    passes = [a_pass((0, 1, 2, 3), (0, 1, 2, 3), phase=Phase.PREFILL, tokens=4)]
    passes += [a_pass((0, 1 + step % 2), (4, 5)) for step in range(10)]
    return a_trace(passes)


def asked(*slots: int, rates: Rates | None = None, compute_s: float | None = None) -> SlotQuestion:
    return SlotQuestion(
        amounts=tuple(SlotAmount(slots=number) for number in slots),
        policies=FREQUENCY,
        rates=rates,
        compute_s=compute_s,
    )


def test_every_layer_has_its_own_slots_and_prompts_do_not_fill_them():
    (two, three) = simulate_slots(a_slot_trace(), asked(2, 3)).sizes
    enough = three.replays[0].decode
    assert (enough.misses, enough.first_misses) == (5, 5)  # 0, 1, 2 of one layer, 4, 5 of the other
    assert enough.read_bytes == 50
    scarce = two.replays[0].decode
    assert scarce.misses == 2 + 1 + 10  # 4 and 5, then 0, and 1 and 2 drive each other out
    assert uploads_per_token(scarce) == 1.3


def test_sizes_are_by_number_by_share_or_by_what_vram_holds():
    amounts = (
        SlotAmount(slots=4),
        SlotAmount(of_experts_fraction=0.5),
        SlotAmount(vram_bytes=119),
        SlotAmount(slots=100),
    )
    done = simulate_slots(a_slot_trace(), SlotQuestion(amounts=amounts, policies=FREQUENCY))
    assert [size.slots for size in done.sizes] == [4, 5, 8]  # half of 8 is 4, which is there once
    assert [size.vram_bytes for size in done.sizes] == [80, 100, 160]
    assert [size.held_fraction for size in done.sizes] == [0.5, 0.625, 1.0]
    assert [size.is_worth_having for size in done.sizes] == [False, False, True]


def test_fewer_slots_than_a_token_uses_are_not_replayed():
    (size,) = simulate_slots(a_slot_trace(), asked(1)).sizes
    assert size.replays == ()


def test_passes_of_more_tokens_than_slots_are_sure_to_hold_go_without():
    trace = a_trace([a_pass((0, 1), (2, 3), tokens=3), a_pass((0, 1), (2, 3))])
    few = replay_slots(trace, SimulatedPolicy.LRU, slots=4, slot_bytes=trace.slot_bytes)
    assert (few.decode.tokens, few.decode.misses) == (1, 4)
    many = replay_slots(trace, SimulatedPolicy.LRU, slots=6, slot_bytes=trace.slot_bytes)
    assert (many.decode.tokens, many.decode.hits) == (4, 4)


def test_no_policy_hits_more_than_the_one_that_knows_the_future():
    for name in RECORDED:
        trace = read_trace(str(recorded_trace(name)))
        for slots in (12, 32):
            rates = {
                policy: replay_slots(
                    trace, policy, slots=slots, slot_bytes=trace.slot_bytes
                ).decode.hit_fraction
                or 0
                for policy in SimulatedPolicy
            }
            assert rates[SimulatedPolicy.BELADY] == max(rates.values())


@pytest.mark.parametrize("percent", [5, 10, 15, 20, 25, 30])
def test_what_plans_expect_is_the_lower_of_two_recorded_traces(percent: int):
    rates = []
    for name in RECORDED:
        trace = read_trace(str(recorded_trace(name)))
        amount = SlotAmount(of_experts_fraction=percent / 100)
        done = simulate_slots(trace, SlotQuestion(amounts=(amount,), policies=FREQUENCY))
        rates.append(done.sizes[0].replays[0].warm.hit_fraction or 0)
    expected = expected_hit_fraction(percent / 100, expert_count=128)
    assert expected == pytest.approx(min(rates), abs=0.001)


def test_a_token_is_compared_with_whole_layers_in_the_same_memory():
    done = simulate_slots(a_slot_trace(), asked(4, rates=RATES, compute_s=0.5))
    (size,) = done.sizes
    # a token's experts are 40 bytes; half of them in whole layers
    assert size.static_s == pytest.approx(0.5 + 20 / 100 + 20 / 20)
    warm = size.replays[0].warm
    assert warm.hit_fraction == 1.0
    assert done.token_s(warm) == pytest.approx(0.5 + 40 / 100 + 2 * LAYER_S)
    even = size.break_even_fraction
    assert even == pytest.approx(1 - (1.2 - 0.4 - 2 * LAYER_S) * 10 / 40)


def test_a_trace_without_answers_is_refused():
    trace = a_trace([a_pass((0, 1), (2, 3), phase=Phase.PREFILL, tokens=3)])
    with pytest.raises(UsageError, match="no tokens of answers"):
        simulate_slots(trace, asked(4))


def test_the_document_holds_what_the_table_shows():
    done = simulate_slots(a_slot_trace(), asked(1, 4, rates=RATES))
    document = json.loads(json.dumps(slot_simulation_document(done)))
    assert document["schema"] == 1
    none, four = document["sizes"]
    assert none["replays"] == []
    assert four["static_tokens_per_s"] == pytest.approx(1 / 1.2)
    entry = four["replays"][0]
    assert (entry["policy"], entry["warm"]["hit_fraction"]) == ("frequency", 1.0)
    assert entry["decode"]["uploads_per_token"] == 0.5
    assert entry["warm"]["tokens_per_s"] == pytest.approx(1 / (0.4 + 2 * LAYER_S))
    plain = slot_simulation_document(simulate_slots(a_slot_trace(), asked(4)))
    assert plain["sizes"][0]["replays"][0]["warm"]["token_s"] is None


def shown(done: SlotSimulation, page: Page) -> str:
    return drawn(slot_simulation_lines(done, page), page)


@pytest.mark.parametrize("columns", [72, 80, 120])
def test_no_line_is_wider_than_its_page(columns: int):
    trace = a_slot_trace()
    trace = replace(trace, header=replace(trace.header, model_name="evil\x1b[31m name"))
    page = Page(columns=columns, glyphs=ASCII)
    text = shown(simulate_slots(trace, asked(1, 2, 4, rates=RATES, compute_s=0.5)), page)
    assert max(map(cell_len, text.splitlines())) <= columns
    assert "\x1b" not in text
    assert "too few: a token uses 2 experts" in text
    assert "Plans have no fewer than 6 slots" in " ".join(text.split())


def test_without_rates_the_table_says_what_is_missing():
    text = shown(simulate_slots(a_slot_trace(), asked(6)), Page(columns=80))
    assert "pass --link RATE, --memory RATE and --device RATE" in " ".join(text.split())


@pytest.fixture
def trace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.csv"
    lines = [
        "# route_trace v1",
        "# model=m.gguf arch=qwen3moe n_layer=1 n_expert=8 n_expert_used=2",
        "# layer=0 expert_bytes=1048576 dense_bytes=10",
        "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes",
    ]
    lines += [
        f"0,1,{step},0,{slot},{(step * slot) % 3 + slot},,,"
        for step in range(6)
        for slot in range(2)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


RATE_FLAGS = ("--link", "25GB/s", "--memory", "45GB/s", "--device", "900GB/s")


def test_slots_are_simulated_as_typed(trace_file: str, capsys: pytest.CaptureFixture[str]):
    typed = ["simulate", trace_file, "--slots", "50%,6", "--vram", "8M", *RATE_FLAGS, "--json"]
    assert main(typed) == 0
    document = json.loads(capsys.readouterr().out)
    assert [size["slots"] for size in document["sizes"]] == [4, 6, 8]
    assert document["rates"]["link_bytes_per_s"] == 25e9
    assert main(["simulate", trace_file, "--slots", "4"]) == 0
    assert "UPLOADS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--slots", "few"), "--slots: 'few' is no number of experts"),
        (("--slots", "0"), "--slots: '0' is no number of experts"),
        (("--slots", ","), "--slots: 0 sizes are given"),
        (("--vram", "much"), "--vram:"),
        (("--slots", "4", "--link", "fast"), "--device is missing"),
        (
            ("--slots", "4", "--link", "x", "--memory", "1GB", "--device", "1GB"),
            "--link: 'x' is not",
        ),
        (("--slots", "4", "--ram", "8G"), "--ram is of a cache in RAM"),
        (("--link", "25GB/s"), "--link is of slots in VRAM"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_a_sentence(
    trace_file: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["simulate", trace_file, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in " ".join(captured.err.split())
