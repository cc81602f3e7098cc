"""What happens to an answer when its model's file, its disk or its process is harmed meanwhile.

The rule for all of them: what was said before is the beginning of the right answer, and then
comes either the rest of it or an error that says what happened. Never a wrong token.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moerun.errors import EngineCrashed, EngineError, ModelError
from moerun.planning.strategy import StreamingMode
from tests.engine.streaming import (
    Answer,
    a_full_disk,
    a_loop_disk,
    a_runner,
    an_order,
    ask,
    load,
    write_model,
)

pytestmark = pytest.mark.engine

CACHE, PAGING = StreamingMode.CACHE, StreamingMode.PAGING
both = pytest.mark.parametrize("mode", [CACHE, PAGING])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("original") / "model.gguf")


@pytest.fixture(scope="module")
def right(original: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The answer of the model mapped as ever."""
    answer = Answer()
    with a_runner(tmp_path_factory.mktemp("logs"), original, None) as runner:
        ask(runner, answer)
    assert len(set(answer.text.split())) > 20, "the answer goes in circles and needs few experts"
    return answer.text


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(original.read_bytes())
    return path


def broken_off(answer: Answer, right: str) -> bool:
    """Whether an answer is a beginning of the right one, and not all of it."""
    return right.startswith(answer.text) and 0 < len(answer.text) < len(right)


@both
def test_with_the_smallest_cache_the_answer_is_the_right_one(
    model: Path, tmp_path: Path, right: str, mode: StreamingMode
):
    answer = Answer()
    with a_runner(tmp_path, model, an_order(model, mode=mode)) as runner:
        ask(runner, answer)
        sample = runner.sample_streaming()
    assert answer.text == right
    assert sample is not None
    assert sample.mechanism == mode.value
    assert sample.decode.misses > 300


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def touched(path: Path) -> None:
    os.utime(path)


def overwritten(path: Path) -> None:
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size_bytes // 4)
        file.write(os.urandom(size_bytes // 2))


def replaced(path: Path) -> None:
    other = path.with_name("other.gguf")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.rename(path)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (touched, "was written to"),
        (overwritten, "was written to"),
        (replaced, "was replaced by another file"),
        (Path.unlink, "was removed or renamed"),
    ],
)
@both
def test_a_file_that_changes_ends_the_answer(
    model: Path,
    tmp_path: Path,
    right: str,
    mode: StreamingMode,
    harm: Callable[[Path], None],
    words: str,
):
    answer = Answer()
    with a_runner(tmp_path, model, an_order(model, mode=mode)) as runner:
        with pytest.raises(ModelError, match=words) as raised:
            ask(runner, answer, meanwhile=lambda: harm(model))
        assert broken_off(answer, right)
        assert str(model) in raised.value.message
        with pytest.raises(ModelError, match=words):
            ask(runner, Answer())  # nor is another begun with what may be mixed


@both
def test_a_file_that_is_cut_ends_the_answer(
    model: Path, tmp_path: Path, right: str, mode: StreamingMode
):
    answer = Answer()
    with (
        a_runner(tmp_path, model, an_order(model, mode=mode)) as runner,
        pytest.raises((ModelError, EngineCrashed)) as raised,
    ):
        ask(runner, answer, meanwhile=lambda: cut(model))
    assert broken_off(answer, right)
    assert str(model) in raised.value.message
    assert "was cut" in raised.value.message
    if isinstance(raised.value, EngineCrashed):
        assert mode is PAGING
        assert "SIGBUS" in raised.value.message


def test_after_a_change_the_model_can_be_loaded_again(model: Path, tmp_path: Path, right: str):
    order = an_order(model, mode=CACHE)
    with a_runner(tmp_path, model, order) as runner:
        with pytest.raises(ModelError):
            ask(runner, Answer(), meanwhile=lambda: touched(model))
        load(runner, model, order)
        answer = Answer()
        ask(runner, answer)
    assert answer.text == right


def test_a_file_that_changed_since_it_was_planned_is_not_loaded(model: Path, tmp_path: Path):
    order = an_order(model, mode=CACHE)
    with model.open("ab") as file:
        file.write(b"more")
    with (
        pytest.raises(ModelError, match="when its header was read"),
        a_runner(tmp_path, model, order),
    ):
        pass


def test_a_disk_that_fails_ends_the_answer_and_what_it_spoiled_is_not_used_again(
    original: Path, tmp_path: Path, right: str
):
    with a_loop_disk(tmp_path, original) as disk:
        path = disk.folder / original.name
        with a_runner(tmp_path, path, an_order(path, mode=CACHE)) as runner:
            answer, tails = Answer(), list[bytes]()
            with pytest.raises(ModelError, match="cannot be read at byte") as raised:
                ask(runner, answer, meanwhile=lambda: tails.append(disk.cut()))
            assert "Input/output error" in raised.value.message
            assert str(path) in raised.value.message
            assert broken_off(answer, right)
            disk.mend(tails[0])
            again = Answer()
            ask(runner, again)
    assert again.text == right


def test_a_disk_that_fails_under_a_mapping_ends_the_runner_with_a_sentence(
    original: Path, tmp_path: Path, right: str
):
    with a_loop_disk(tmp_path, original) as disk:
        path = disk.folder / original.name
        answer = Answer()
        with (
            a_runner(tmp_path, path, an_order(path, mode=PAGING)) as runner,
            pytest.raises(EngineCrashed, match="SIGBUS") as raised,
        ):
            ask(runner, answer, meanwhile=disk.cut)
        assert "its storage failed to read it" in raised.value.message
        assert raised.value.exit_code == EngineError.exit_code
        assert broken_off(answer, right)


@both
def test_a_runner_that_is_killed_leaves_a_sentence_and_nothing_behind(
    model: Path, tmp_path: Path, right: str, mode: StreamingMode
):
    order, answer = an_order(model, mode=mode, state_folder=str(tmp_path)), Answer()
    with (
        a_runner(tmp_path, model, order) as runner,
        pytest.raises(EngineCrashed, match="SIGKILL: killed from outside"),
    ):
        ask(runner, answer, meanwhile=lambda: os.kill(runner.pid, signal.SIGKILL))
    assert broken_off(answer, right)
    again = Answer()
    with a_runner(tmp_path, model, order) as runner:
        ask(runner, again)
    assert again.text == right


@both
def test_a_runner_that_stood_still_goes_on_as_if_nothing_was(
    model: Path, tmp_path: Path, right: str, mode: StreamingMode
):
    layout = an_order(model, mode=mode).layout
    order = an_order(model, mode=mode, cache_bytes=layout.expert_bytes)
    answer = Answer()
    with a_runner(tmp_path, model, order) as runner:
        ask(runner, answer, meanwhile=lambda: time.sleep(3.0))
        sample = runner.sample_streaming()
    assert answer.text == right
    assert sample is not None
    assert sample.cache_bytes == order.cache_bytes  # a pause is no pressure


@both
def test_a_full_disk_takes_nothing_from_the_answer(
    model: Path, tmp_path: Path, right: str, mode: StreamingMode
):
    """Neither what was learned nor the runner's log can be written there."""
    answer = Answer()
    with a_full_disk(tmp_path) as full:
        order = an_order(model, mode=mode, state_folder=str(full), model_digest="digest")
        with a_runner(full, model, order) as runner:
            ask(runner, answer)
    assert answer.text == right
