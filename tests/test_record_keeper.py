import os
import threading

import pytest

from moerun.errors import EngineCrashed, MoerunError
from moerun.runner.record_keeper import RecordKeeper
from moerun.runner.records import read_records, record_path
from moerun.runner.statistics import MemorySample
from tests.streaming_samples import a_sample
from tests.test_records import a_record


class Rig:
    """A keeper whose runner answers by numbers, and all that it warned of."""

    def __init__(self, state, *, streams=True, fails=None):
        self.state = state
        self.fails = fails
        self.looks = 0
        self.warnings: list[str] = []
        self.has_looked_twice = threading.Event()
        self.keeper = RecordKeeper(
            a_record(os.getpid()),
            look=self.look,
            look_at_experts=self.look_at_experts if streams else None,
            state=lambda: state,
            warn=self.warnings.append,
            every_s=0.01,
        )

    def look(self):
        if self.fails is not None:
            raise self.fails
        return MemorySample(at_s=1.0, resident_bytes=7)

    def look_at_experts(self):
        self.looks += 1
        if self.looks >= 3:
            self.has_looked_twice.set()
        return a_sample(held_experts=self.looks)

    def read(self):
        [record] = read_records(self.state, mark_of=lambda pid: "ticks:1").records
        return record


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.keeper.close()


def test_a_record_follows_the_experts_between_answers(rig):
    rig.keeper.start()
    assert rig.read().last_sample.resident_bytes == 7
    assert rig.has_looked_twice.wait(30)
    rig.keeper.refresh()
    assert rig.read().last_streaming.held_experts >= 3
    rig.keeper.close()
    assert not record_path(rig.state, os.getpid()).exists()
    rig.keeper.refresh()
    assert not record_path(rig.state, os.getpid()).exists()


def test_without_streaming_no_thread_looks(tmp_path):
    rig = Rig(tmp_path, streams=False)
    before = threading.active_count()
    rig.keeper.start()
    assert threading.active_count() == before
    assert rig.read().last_streaming is None
    rig.keeper.close()


def test_what_cannot_be_written_is_warned_of_once(tmp_path):
    (tmp_path / "runners").write_text("in the way")
    rig = Rig(tmp_path)
    rig.keeper.start()
    rig.keeper.refresh()
    rig.keeper.close()
    assert len(rig.warnings) == 1
    assert "cannot be written" in rig.warnings[0]


def test_a_runner_that_died_ends_the_looking(tmp_path):
    rig = Rig(tmp_path)
    rig.keeper.start()

    def dead():
        rig.has_looked_twice.set()
        raise EngineCrashed("The runner died.")

    rig.has_looked_twice.clear()
    rig.keeper._look_at_experts = dead
    assert rig.has_looked_twice.wait(30)
    rig.keeper.close()
    assert rig.warnings == []
    rig.fails = MoerunError("gone")
    rig.keeper.refresh()
    assert rig.warnings == ["gone"]
