"""Streaming through a runner process: the same answers, and counters while they are made."""

import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import moerun
from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.errors import ModelError
from moerun.experts.order import SsdCacheOrder
from moerun.planning.strategy import LoadMode, StreamingMode
from moerun.runner.parent import Runner
from tests.engine.placements import on_the_host
from tests.engine.plain import Settings
from tests.engine.streaming_child import Way, order_of

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="streaming is there on Linux only"),
]

DEMO = Path(moerun.__file__).parent / "data" / "demo" / "demo.gguf"
REQUEST = GenerationRequest(
    messages=(Message(role="user", content="What is moerun?"),), sampling=Sampling(temperature=0)
)


@pytest.fixture
def runner(tmp_path):
    with Runner(log_folder=tmp_path) as started:
        yield started


def args_of(path=DEMO, mode=LoadMode.STREAM):
    return replace(on_the_host(path, Settings()), load_mode=mode)


def an_order(tmp_path, *, path=DEMO, mode=StreamingMode.AUTO, **changes):
    order = order_of(path, Way(name="", mode=mode, cycles=2.0))
    fields = {"preload_experts": None, "state_folder": str(tmp_path / "state")}
    return replace(order, **{**fields, **changes})


def answer(runner):
    pieces: list[str] = []
    runner.generate(REQUEST, on_text=pieces.append)
    return "".join(pieces)


def test_answers_are_the_same_and_counted_while_they_are_made(runner, tmp_path):
    runner.load(args_of(mode=LoadMode.MMAP))
    expected = answer(runner)
    runner.load(args_of(), streaming=an_order(tmp_path))
    before = runner.sample_streaming()
    assert before.decode.tokens == 0
    assert before.storage_read_bytes > 0  # the dense weights
    samples = []
    answering = threading.Event()

    def look():
        while not answering.wait(0.01):
            samples.append(runner.sample_streaming())

    looking = threading.Thread(target=look)
    looking.start()
    answers = [answer(runner) for _ in range(5)]
    answering.set()
    looking.join()
    assert answers == [expected] * 5
    after = runner.sample_streaming()
    assert after.decode.tokens > 0
    assert after.decode.hits + after.decode.misses > 0
    assert after.resident_bytes > 0
    tokens = [sample.decode.tokens for sample in samples]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 1
    memory = runner.sample_statistics((str(DEMO),))
    assert memory.private_bytes > after.resident_bytes


def test_what_was_used_is_remembered_for_the_next_run(runner, tmp_path):
    runner.load(args_of(), streaming=an_order(tmp_path, model_digest="demo"))
    answer(runner)
    runner.close()
    [hot] = (tmp_path / "state" / "hot").iterdir()
    assert '"model_digest": "demo"' in hot.read_text()


def test_the_last_runs_experts_are_read_before_anybody_asks(runner, tmp_path):
    order = an_order(tmp_path, model_digest="demo", mode=StreamingMode.CACHE)
    runner.load(args_of(), streaming=order)
    expected = answer(runner)
    runner.load(args_of(), streaming=order)  # the model before is closed, and remembers
    deadline_s = time.monotonic() + 60
    while (held := runner.sample_streaming().held_experts) < 5:
        assert time.monotonic() < deadline_s, f"only {held} experts were read"
        time.sleep(0.05)
    sample = runner.sample_streaming()
    assert sample.decode.hits + sample.decode.misses + sample.prefill.misses == 0
    assert "were read while nobody waited" in "".join(sample.notes)
    assert answer(runner) == expected


def test_a_file_that_changes_ends_the_answer_with_an_error(runner, tmp_path):
    path = tmp_path / "copy.gguf"
    path.write_bytes(DEMO.read_bytes())
    runner.load(args_of(path), streaming=an_order(tmp_path, path=path))
    answer(runner)
    path.touch()
    with pytest.raises(ModelError, match="was written to"):
        answer(runner)


def test_an_order_that_does_not_fit_its_file_is_refused(runner, tmp_path):
    order = an_order(tmp_path)
    [file] = order.layout.files
    larger = replace(order.layout, files=(replace(file, size_bytes=file.size_bytes + 1),))
    with pytest.raises(ModelError, match="when its header was read"):
        runner.load(args_of(), streaming=replace(order, layout=larger))
    runner.load(args_of(), streaming=order)
    assert answer(runner)


@pytest.fixture
def other_disk(tmp_path):
    """Give a folder on another file system than that of the models."""
    folder = Path("/dev/shm")
    if not folder.is_dir() or folder.stat().st_dev == DEMO.stat().st_dev:
        pytest.skip("there is no second file system to copy to")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield name


def test_answers_through_an_ssd_cache_are_the_same_and_come_from_it(runner, tmp_path, other_disk):
    runner.load(args_of(mode=LoadMode.MMAP))
    expected = answer(runner)
    order = an_order(
        tmp_path,
        mode=StreamingMode.CACHE,
        ssd_cache=SsdCacheOrder(path=other_disk),
        model_digest="ab" * 32,
    )
    runner.load(args_of(), streaming=order)
    assert answer(runner) == expected
    first = runner.sample_streaming()
    runner.load(args_of(), streaming=order)
    assert answer(runner) == expected
    second = runner.sample_streaming()
    assert first.ssd_cache.written_bytes > 0
    assert second.ssd_cache.held_bytes >= first.ssd_cache.held_bytes
    assert second.ssd_cache.read_bytes > first.ssd_cache.read_bytes
    assert not [note for note in (*first.notes, *second.notes) if "SSD cache" in note]


def test_an_ssd_cache_that_cannot_be_used_is_told_when_the_model_is_loaded(runner, tmp_path):
    (tmp_path / "file").write_text("")
    order = an_order(
        tmp_path,
        mode=StreamingMode.CACHE,
        ssd_cache=SsdCacheOrder(path=str(tmp_path / "file" / "fast")),
    )
    report = runner.load(args_of(), streaming=order)
    assert [note for note in report.notes if "is not used: Not a directory" in note]
    assert runner.load(args_of(), streaming=an_order(tmp_path)).notes == ()
