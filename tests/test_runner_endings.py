import os

import pytest

from moerun.errors import MoerunError
from moerun.runner import logs, model_files
from moerun.runner.endings import Ending, crash_of, describe_code, memory_kills, tail_of


def an_ending(returncode, **changes):
    fields = {"doing": "loaded m.gguf", "log_path": None, "log_tail": "the end", **changes}
    return Ending(returncode=returncode, **fields)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-11, "SIGSEGV: a memory fault"),
        (-6, "SIGABRT: a check of the engine failed"),
        (-4, "SIGILL: an instruction"),
        (-64, "SIGRTMAX"),
        (-99, "signal 99"),
        (3, "exit code 3"),
        (0xC0000005, "an access violation, 0xC0000005"),
        (None, "closed its channel"),
    ],
)
def test_a_code_is_told_in_words(code, words):
    assert words in describe_code(code)


def test_the_sentence_says_what_was_done_and_the_hint_what_to_try(tmp_path):
    error = crash_of(an_ending(-4, log_path=tmp_path / "x.log"))
    assert error.exit_code == 6
    assert "while it loaded m.gguf (SIGILL" in error.message
    assert error.log_tail == "the end"
    assert "make run" in (error.hint or "")
    assert "x.log" in (error.hint or "")


def test_a_kill_for_want_of_memory_is_told_from_another_kill():
    starved = crash_of(an_ending(-9, memory_kills=1))
    assert "ran out of memory" in starved.message
    assert "--ctx" in (starved.hint or "")
    other = crash_of(an_ending(-9))
    assert "killed from outside" in other.message
    assert "ran out of memory" not in crash_of(an_ending(-11, memory_kills=1)).message


def test_a_bad_read_names_the_file_that_was_cut(tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"x" * 5000)
    files = model_files.remember([str(model)])
    assert model_files.change_since(files) is None
    os.truncate(model, 1234)
    change = model_files.change_since(files)
    error = crash_of(an_ending(-7, model_path=str(model), file_change=change))
    assert error.exit_code == 6
    assert f"{model} was cut from 5,000 to 1,234 bytes meanwhile" in error.message
    assert "start again" in (error.hint or "")
    unrelated = crash_of(an_ending(-11, model_path=str(model), file_change=change))
    assert "was cut" not in unrelated.message


def test_a_bad_read_of_a_whole_file_blames_the_storage():
    error = crash_of(an_ending(-7, model_path="/models/m.gguf"))
    assert "/models/m.gguf is as long as before, so its storage failed" in error.message
    assert "dmesg" in (error.hint or "")
    assert "dmesg" in (crash_of(an_ending(-7)).hint or "")


def test_what_became_of_files(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"22")
    files = model_files.remember([str(first), str(second), str(tmp_path / "absent")])
    second.write_bytes(b"4444")
    assert model_files.change_since(files) == f"{second} grew from 2 to 4 bytes meanwhile"
    first.unlink()
    assert model_files.change_since(files) == f"{first} cannot be found any more"


def test_kills_are_counted_where_linux_tells_them(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\noom_kill_other 9\n")
    assert memory_kills(tmp_path) == 3
    assert memory_kills(tmp_path / "absent") == 0


def test_the_tail_is_the_engines_and_not_pythons_stack_dump():
    log = "one\n\ntwo\nthree\nFatal Python error: Segmentation fault\n\nThread 0x1\n"
    assert tail_of(log, lines=2) == "two\nthree"
    assert tail_of("") == ""


def test_a_log_is_for_this_user_and_only_the_newest_are_kept(tmp_path):
    for index in range(25):
        path = tmp_path / f"runner-old-{index:02}.log"
        path.touch()
        os.utime(path, (index, index))
    path, descriptor = logs.open_log(tmp_path)
    os.write(descriptor, b"text")
    os.close(descriptor)
    assert path.stat().st_mode & 0o077 == 0
    assert logs.read_tail(path) == "text"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 20
    assert "runner-old-05.log" not in left
    assert "runner-old-24.log" in left


def test_a_log_in_which_nothing_was_written_is_removed(tmp_path):
    empty, full = tmp_path / "a", tmp_path / "b"
    empty.touch()
    full.write_text("x")
    for path in (empty, full, tmp_path / "absent"):
        logs.drop_empty(path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_logs_of_one_second_have_two_names(tmp_path):
    first, one = logs.open_log(tmp_path)
    second, two = logs.open_log(tmp_path)
    os.close(one)
    os.close(two)
    assert first != second


def test_a_log_that_cannot_be_made_is_one_sentence(tmp_path):
    with pytest.raises(MoerunError, match="cannot be written"):
        logs.open_log(tmp_path / "absent")


def test_a_log_past_its_bound_keeps_its_end(tmp_path):
    path, descriptor = logs.open_log(tmp_path)
    try:
        os.write(descriptor, b"old\n" * 200_000 + b"the newest line\n")
        assert not logs.bound_log(descriptor)
        assert logs.bound_log(descriptor, largest_bytes=100_000)
        os.write(descriptor, b"and one more\n")
    finally:
        os.close(descriptor)
    text = path.read_text()
    assert len(text) < 300_000
    assert text.startswith("(the log before this was dropped)")
    assert text.endswith("the newest line\nand one more\n")


def test_a_chatty_engine_does_not_fill_the_disk(tmp_path):
    path, descriptor = logs.open_log(tmp_path)
    stream = logs.BoundedStderr(descriptor)
    try:
        for index in range(12_000):
            stream.write(f"{index:06} " + "x" * 1000 + "\n")
    finally:
        os.close(descriptor)
    assert path.stat().st_size <= logs.LARGEST_LOG_BYTES + (512 << 10)
    assert path.read_text().splitlines()[-1].startswith("011999")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_log_that_cannot_grow_stops_nobody():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        assert logs.BoundedStderr(descriptor).write("lost") == 4
    finally:
        os.close(descriptor)


def test_a_folder_for_no_log_is_one_sentence_with_a_way_out(tmp_path):
    with pytest.raises(MoerunError, match="cannot be written") as raised:
        logs.open_log(tmp_path / "absent")
    assert "MOERUN_STATE_DIR" in (raised.value.hint or "")
