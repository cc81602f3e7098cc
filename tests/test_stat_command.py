import json
import os
import re

import pytest

from moerun.cli.app import main
from moerun.machine.probe_processes import process_mark
from moerun.runner.records import record_path, write_record
from tests.streaming_samples import SAMPLE, SLOTS, a_sample
from tests.test_records import a_record


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    return tmp_path


def a_living_record(**changes):
    """Return a record whose process is this one."""
    mark = process_mark(os.getpid())
    assert mark is not None
    return a_record(os.getpid(), mark=mark, **changes)


def test_nothing_running_is_no_error(state, capsys):
    assert main(["stat"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no model is running" in captured.err


def test_nothing_running_is_an_empty_list_in_json(state, capsys):
    assert main(["stat", "--memory", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": 1, "runners": []}
    assert "no model is running" in captured.err


def test_a_runner_is_a_line(state, capsys):
    write_record(state, a_living_record(model_name="m\x1b[31m"))
    assert main(["stat"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["MODEL", "PID", "RAM", "CONTEXT", "RUNNING", "FOR"]
    assert str(os.getpid()) in line
    assert "\x1b" not in line


def test_memory_is_shown_by_device_with_the_hosts_use_told_twice(state, capsys):
    write_record(state, a_living_record())
    assert main(["stat", "--memory"]) == 0
    out = capsys.readouterr().out
    for word in ("planned", "reported", "observed", "dense", "unaccounted", "private", "pages of"):
        assert word in out


def test_memory_in_json_has_every_figure(state, capsys):
    write_record(state, a_living_record())
    assert main(["stat", "--memory", "--json"]) == 0
    [runner] = json.loads(capsys.readouterr().out)["runners"]
    [device] = runner["devices"]
    assert device["label"] == "cpu"
    assert device["rows"][0] == {
        "device": "host",
        "kind": "dense",
        "planned_bytes": 100,
        "reported_bytes": 100,
        "observed_bytes": None,
        "drift_fraction": 0.0,
    }
    assert device["observed_bytes"] > 1 << 20
    assert runner["host"]["resident_bytes"] == pytest.approx(
        runner["host"]["private_bytes"] + runner["host"]["file_backed_bytes"]
    )


def test_a_stale_record_is_cleaned_and_a_newer_one_noted(state, capsys):
    write_record(state, a_record(2**22 + 1))
    write_record(state, a_living_record())
    record_path(state, os.getpid()).write_text('{"schema": 99}')
    assert main(["stat", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runners"] == []
    assert "newer" in captured.err
    assert not record_path(state, 2**22 + 1).exists()


def test_streamed_experts_follow_the_memory_with_their_map(state, capsys):
    write_record(state, a_living_record(last_streaming=SAMPLE))
    assert main(["stat", "--memory"]) == 0
    out = capsys.readouterr().out
    assert "hit rate                        90.0%" in out
    assert "held in RAM" in out
    assert "one cell is 1 expert" in out
    assert main(["stat"]) == 0
    assert "hit rate" not in capsys.readouterr().out


def test_streamed_experts_are_in_the_document(state, capsys):
    write_record(state, a_living_record(last_streaming=SAMPLE))
    assert main(["stat", "--memory", "--json"]) == 0
    [runner] = json.loads(capsys.readouterr().out)["runners"]
    assert runner["streaming"]["decode"]["hits"] == 900
    assert runner["streaming"]["latency"]["p99_s"] == 0.0082


LINE = re.compile(r'(moerun_[a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (-?[0-9.e+-]+)')


def test_prometheus_reads_every_line(state, capsys):
    sample = a_sample(slots=SLOTS)
    write_record(state, a_living_record(last_streaming=sample, model_name='a "b" \\ c\nd'))
    assert main(["stat", "--prometheus"]) == 0
    lines = capsys.readouterr().out.splitlines()
    typed: set[str] = set()
    values = {}
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed
            assert kind in ("gauge", "counter")
            assert (kind == "counter") == name.endswith("_total")
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            assert match[1] in typed
            values[match[1], match[2].partition('",')[2].partition(",")[2]] = float(match[3])
    assert values["moerun_expert_hits_total", 'phase="decode"'] == 900
    assert values["moerun_expert_tier_bytes", 'tier="ssd"'] == 6 << 30
    assert values["moerun_expert_switch_quantile_seconds", 'quantile="0.99"'] == 0.0082
    assert values["moerun_expert_slot_uploads_total", ""] == 200
    assert values["moerun_expert_slot_bytes", 'device="gpu:0000:01:00.0"'] == 3 << 30
    assert values["moerun_memory_planned_bytes", 'device="cpu",use="dense"'] == 100
    assert 'model="a \\"b\\" \\\\ c\\nd"' in lines[2]


def test_prometheus_of_nothing_is_nothing(state, capsys):
    assert main(["stat", "--prometheus"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("other", ["--json", "--watch"])
def test_prometheus_stands_alone(state, capsys, other):
    assert main(["stat", "--prometheus", other]) == 2
    assert other in capsys.readouterr().err
