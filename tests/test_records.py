import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.engine.arguments import BufferReport
from moerun.errors import MoerunError
from moerun.machine.description import HOST
from moerun.machine.probe_processes import process_mark
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger
from moerun.runner.records import (
    RECORD_SCHEMA,
    RunnerRecord,
    read_records,
    record_path,
    remove_record,
    write_record,
)
from moerun.runner.statistics import MemorySample


def a_record(pid=4, *, mark="ticks:1", started_at_s=10.0, **changes):
    fields = {
        "pid": pid,
        "process_mark": mark,
        "started_at_s": started_at_s,
        "moerun_version": "1",
        "engine_version": "2",
        "model_name": "m",
        "model_paths": ("/models/m.gguf",),
        "mode": "m: 3 layers",
        "context_tokens": 512,
        "load_mode": "mmap",
        "labels": ((HOST, "cpu"),),
        "ledger": Ledger(
            charges=(
                Charge(
                    device=HOST,
                    kind=ChargeKind.DENSE_WEIGHTS,
                    size_bytes=100,
                    confidence=Confidence.EXACT,
                ),
            )
        ),
        "buffers": (
            BufferReport(component="c", buffer="CPU", device=HOST, kind="model", size_bytes=100),
        ),
    }
    return RunnerRecord(**{**fields, **changes})


def alive(marks):
    return lambda pid: marks.get(pid)


def test_a_record_comes_back_as_it_was_for_this_user_alone(tmp_path):
    record = a_record().with_sample(MemorySample(at_s=1.0, resident_bytes=7))
    write_record(tmp_path, record)
    read = read_records(tmp_path, mark_of=alive({4: "ticks:1"}))
    assert read.records == (record,)
    assert read.notes == ()
    path = record_path(tmp_path, 4)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["schema"] == RECORD_SCHEMA
    assert [p.name for p in path.parent.iterdir()] == ["4.json"]


def test_records_stand_in_the_order_of_their_start(tmp_path):
    write_record(tmp_path, a_record(4, started_at_s=20))
    write_record(tmp_path, a_record(5, started_at_s=10))
    read = read_records(tmp_path, mark_of=lambda pid: "ticks:1")
    assert [record.pid for record in read.records] == [5, 4]


@pytest.mark.parametrize("marks", [{}, {4: "ticks:999"}])
def test_a_record_of_a_dead_process_or_of_a_namesake_is_removed(tmp_path, marks):
    write_record(tmp_path, a_record())
    assert read_records(tmp_path, mark_of=alive(marks)).records == ()
    assert not record_path(tmp_path, 4).exists()


def test_a_newer_record_is_ignored_with_a_note_and_left_there(tmp_path):
    write_record(tmp_path, a_record())
    path = record_path(tmp_path, 4)
    path.write_text(json.dumps({"schema": RECORD_SCHEMA + 1, "anything": 1}))
    read = read_records(tmp_path, mark_of=alive({4: "ticks:1"}))
    assert read.records == ()
    assert "newer" in read.notes[0]
    assert path.exists()


@pytest.mark.parametrize("name", ["9" * 400, "٣", "-4", "notes"])
def test_a_document_whose_name_is_no_process_is_left_alone(tmp_path, name):
    write_record(tmp_path, a_record())
    path = record_path(tmp_path, 4).with_stem(name[:200])
    path.write_text("{}")
    assert len(read_records(tmp_path, mark_of=alive({4: "ticks:1"})).records) == 1
    assert path.exists()


def test_a_record_of_another_process_than_its_name_says_is_damaged(tmp_path):
    write_record(tmp_path, a_record())
    record_path(tmp_path, 4).rename(record_path(tmp_path, 5))
    read = read_records(tmp_path, mark_of=alive({4: "ticks:1", 5: "ticks:1"}))
    assert read.records == ()
    assert "of process 4" in read.notes[0]
    read_records(tmp_path, mark_of=alive({4: "ticks:1"}))
    assert not record_path(tmp_path, 5).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": true}', "[" * 100_000]
)
def test_a_damaged_record_is_noted_while_its_process_lives_and_removed_after(tmp_path, text):
    write_record(tmp_path, a_record())
    path = record_path(tmp_path, 4)
    path.write_text(text)
    assert len(read_records(tmp_path, mark_of=alive({4: "x"})).notes) == 1
    assert path.exists()
    assert read_records(tmp_path, mark_of=alive({})).notes == ()
    assert not path.exists()


def test_nothing_running_is_an_empty_answer(tmp_path):
    assert read_records(tmp_path).records == ()
    remove_record(tmp_path, 4)


def test_a_state_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "runners").write_text("a file in the way")
    with pytest.raises(MoerunError, match="cannot be written"):
        write_record(tmp_path, a_record())


def test_the_largest_look_is_kept():
    record = a_record()
    for resident in (5, 9, 6):
        record = record.with_sample(MemorySample(at_s=0, resident_bytes=resident))
    assert record.last_sample is not None
    assert record.peak_sample is not None
    assert (record.last_sample.resident_bytes, record.peak_sample.resident_bytes) == (6, 9)


def test_a_process_has_a_mark_while_it_lives():
    mine = process_mark(os.getpid())
    assert mine is not None
    assert process_mark(os.getpid()) == mine
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        assert process_mark(child.pid) not in (None, mine)
        child.kill()
        child.wait()
    assert process_mark(child.pid) is None


def test_a_zombie_and_a_name_with_parentheses_are_read_rightly(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_text("")
    fields = " ".join(str(number) for number in range(4, 30))
    for pid, state in ((1, "S"), (2, "Z")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b (c)) {state} {fields}")
    assert process_mark(1, proc=tmp_path) == "ticks:22"
    assert process_mark(2, proc=tmp_path) is None
    assert process_mark(3, proc=Path(tmp_path)) is None
