import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moerun.engine.interface import GenerationRequest, Message, StopReason
from moerun.errors import EngineCrashed, EngineOutOfMemory, EngineRefused, UsageError
from moerun.runner import protocol
from moerun.runner.interruption import interrupts
from moerun.runner.parent import Runner
from moerun.runner.protocol import RunnerFault
from moerun.runner.statistics import MemorySample
from tests.builders import some_arguments
from tests.fakes import FAILING_ENGINE, FAKE_ENGINE, FAKE_VERSION, NO_ENGINE

ROOT = Path(__file__).parents[1]


def some_args(name="model.gguf", **changes):
    return some_arguments(model_path=f"/models/{name}", **changes)


def prompt(text):
    return GenerationRequest(prompt=text)


@pytest.fixture
def runner(tmp_path):
    with Runner(log_folder=tmp_path, engine=FAKE_ENGINE) as started:
        yield started


def answer(runner, text):
    pieces: list[str] = []
    result = runner.generate(prompt(text), on_text=pieces.append)
    return pieces, result


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(claim, *, limit_s=30):
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_a_model_is_measured_loaded_and_answers_piece_by_piece(runner):
    assert runner.measure(some_args()).engine_version == FAKE_VERSION
    seen: list[float] = []
    report = runner.load(some_args(), on_progress=seen.append)
    assert seen == [0.5, 1.0]
    assert report.context_tokens == 512
    assert report.buffers[0].size_bytes == 1000
    assert runner.model_defaults == {"temperature": 0.5}
    pieces, result = answer(runner, "say a| b|c\n")
    assert pieces == ["a", " b", "c\n"]
    assert result.stop_reason is StopReason.END
    assert result.answer_tokens == 3
    sample = runner.sample_statistics()
    assert sample.resident_bytes > 1 << 20


def test_messages_arrive_in_order(runner):
    runner.load(some_args())
    messages = (Message(role="system", content="s"), Message(role="user", content="echo x"))
    pieces: list[str] = []
    runner.generate(GenerationRequest(messages=messages), on_text=pieces.append)
    assert pieces == ["system:s/user:echo x"]


def test_an_answer_is_cancelled_from_another_thread_and_the_next_one_is_not(runner):
    runner.load(some_args())
    seen = threading.Event()
    threading.Thread(target=lambda: (seen.wait(30), runner.cancel())).start()
    result = runner.generate(prompt("forever"), on_text=lambda _: seen.set())
    assert result.stop_reason is StopReason.CANCELLED
    runner.cancel()  # too late for anything
    pieces, result = answer(runner, "say on")
    assert pieces == ["on"]
    assert result.stop_reason is StopReason.END


def test_ctrl_c_ends_the_answer_with_its_result(runner):
    runner.load(some_args())
    before = signal.getsignal(signal.SIGINT)

    def press_once(_):
        if not interruption.has_happened:
            os.kill(os.getpid(), signal.SIGINT)

    with interrupts(runner.cancel) as interruption:
        result = runner.generate(prompt("forever"), on_text=press_once)
    assert result.stop_reason is StopReason.CANCELLED
    assert interruption.has_happened
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_a_runner_that_does_not_heed_the_first(tmp_path):
    def press(_):
        os.kill(os.getpid(), signal.SIGINT)

    def work():
        with Runner(log_folder=tmp_path, engine=FAKE_ENGINE) as runner:
            runner.load(some_args())
            pids.append(runner.pid)
            with interrupts(runner.cancel):
                runner.generate(prompt("stubborn"), on_text=press)

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        work()
    assert not is_alive(pids[0])


def test_a_runner_that_reads_nothing_more_holds_nobody_back_who_leaves(tmp_path):
    code = f"""
import os
import signal
from pathlib import Path
from moerun.engine.interface import GenerationRequest
from moerun.runner.interruption import terminations
from moerun.runner.parent import Runner
from tests.test_runner import some_args
with terminations(), Runner(log_folder=Path({str(tmp_path)!r}), engine={FAKE_ENGINE!r}) as runner:
    runner.load(some_args())
    os.kill(runner.pid, signal.SIGSTOP)
    print("stopped", flush=True)
    runner.generate(GenerationRequest(prompt="x" * 1_000_000), on_text=print)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"stopped\n"
            time.sleep(0.3)  # it now writes into a pipe that is full, or is about to
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_statistics_come_while_an_answer_is_made(runner):
    runner.load(some_args())
    samples: list[MemorySample] = []

    def look(_):
        if not samples:
            samples.append(runner.sample_statistics())
            runner.cancel()

    runner.generate(prompt("forever"), on_text=look)
    assert samples[0].resident_bytes > 0


def test_an_exception_of_the_reader_of_the_text_cancels_the_answer(runner):
    runner.load(some_args())

    def refuse(_):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        runner.generate(prompt("forever"), on_text=refuse)
    assert answer(runner, "say next")[0] == ["next"]


def test_errors_keep_their_class_and_fields_across_the_channel(runner):
    with pytest.raises(UsageError, match="No model is loaded"):
        runner.generate(prompt("say x"), on_text=str)
    with pytest.raises(EngineRefused) as refused:
        runner.load(some_args("refuse.gguf"))
    assert refused.value.log_tail == "fake: bad tensor"
    assert refused.value.hint == "try x"
    with pytest.raises(EngineOutOfMemory) as full:
        runner.load(some_args("full.gguf"))
    assert (full.value.device, full.value.requested_bytes) == ("gpu:0", 123)
    runner.load(some_args())
    with pytest.raises(EngineRefused, match="refused to decode"):
        answer(runner, "refuse")
    assert answer(runner, "say still here")[0] == ["still here"]


def test_a_request_that_no_line_holds_is_refused_and_the_runner_goes_on(runner):
    runner.load(some_args())
    with pytest.raises(UsageError, match="shorten the prompt"):
        answer(runner, "say " + "x" * protocol.LONGEST_LINE_BYTES)
    assert answer(runner, "say on")[0] == ["on"]


def test_a_bug_in_the_runner_is_a_bug_with_its_traceback(runner):
    runner.load(some_args())
    with pytest.raises(RunnerFault, match="ZeroDivisionError"):
        answer(runner, "bug")


def test_what_the_engine_prints_stays_out_of_the_channel_and_it_reads_nothing(runner):
    runner.load(some_args())
    assert answer(runner, "print")[0] == ["stdin=''"]
    log = runner.log_path.read_text()
    assert "native noise\n" in log
    assert "noise of Python\n" in log
    assert runner.log_path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("SIGSEGV", "memory fault"), ("SIGABRT", "check of the engine"), ("SIGKILL", "killed")],
)
def test_a_native_death_is_one_sentence_with_the_end_of_the_log(runner, name, words):
    runner.load(some_args())
    pieces: list[str] = []
    with pytest.raises(EngineCrashed) as crash:
        runner.generate(prompt(f"signal {name}"), on_text=pieces.append)
    assert pieces == ["before "]
    assert name in crash.value.message
    assert words in crash.value.message
    assert "answered" in crash.value.message
    assert crash.value.log_tail.endswith("fake: about to die")
    assert str(runner.log_path) in (crash.value.hint or "")
    runner.restart()
    runner.load(some_args())
    assert answer(runner, "say again")[0] == ["again"]


def test_a_death_while_loading_says_so(runner):
    with pytest.raises(EngineCrashed, match=r"loaded crash\.gguf") as crash:
        runner.load(some_args("crash.gguf"))
    assert "GGML_ASSERT" in crash.value.log_tail


def test_a_quiet_end_is_a_crash_too(runner):
    runner.load(some_args())
    with pytest.raises(EngineCrashed, match="exit code 3"):
        answer(runner, "exit 3")
    with pytest.raises(EngineCrashed):  # and later calls do not hang
        answer(runner, "say x")


@pytest.mark.parametrize("line", ["this is no message", '{"number":1,"type":"dance"}'])
def test_an_unreadable_line_of_the_runner_ends_it(runner, line):
    runner.load(some_args())
    pid = runner.pid
    with pytest.raises(EngineCrashed, match="unreadable"):
        answer(runner, f"garble {line}")
    wait_until(lambda: not is_alive(pid))


def test_an_unreadable_line_of_the_parent_is_answered(tmp_path):
    lines = b'nonsense\n{"number":5,"type":"hello","protocol":1}\n{"number":6,"type":"close"}\n'
    done = subprocess.run(
        [sys.executable, "-m", "moerun.runner.process", "--engine", FAKE_ENGINE],
        input=lines,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    events = [protocol.decode_event(line) for line in done.stdout.splitlines()]
    number, failed = events[0]
    assert number is None
    assert isinstance(failed, protocol.Failed)
    assert "not JSON" in failed.message
    # What follows is done, or cut short by the end of the input, which is the parent's death.
    assert done.returncode == 0


def test_another_protocol_is_refused(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "moerun.runner.process", "--engine", FAKE_ENGINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(protocol.encode(1, protocol.Hello(protocol=99)))
        child.stdin.flush()
        _, failed = protocol.decode_event(child.stdout.readline())
        assert isinstance(failed, protocol.Failed)
        assert failed.kind == "EngineMismatch"
        child.stdin.close()
        assert child.wait(timeout=60) == 0


def test_an_engine_that_cannot_be_made_says_why(tmp_path):
    runner = Runner(log_folder=tmp_path, engine=FAILING_ENGINE)
    runner.start()
    pid = runner.pid
    with pytest.raises(EngineRefused, match="no such library") as refused:
        runner.measure(some_args())
    assert refused.value.hint == "install it"
    assert not is_alive(pid)
    runner = Runner(log_folder=tmp_path, engine=NO_ENGINE)
    runner.start()
    with pytest.raises(RunnerFault, match="NoSuchEngine"):
        runner.measure(some_args())


def test_a_runner_that_was_never_asked_anything_ends_at_once(tmp_path):
    with Runner(log_folder=tmp_path, engine=FAKE_ENGINE) as runner:
        pid = runner.pid
    assert not is_alive(pid)


def test_the_exit_of_the_context_ends_the_process_even_in_the_middle(tmp_path):
    runner = Runner(log_folder=tmp_path, engine=FAKE_ENGINE)
    pids: list[int] = []

    def interrupt(_):
        raise KeyboardInterrupt

    def work():
        with runner:
            pids.append(runner.pid)
            runner.load(some_args())
            runner.generate(prompt("forever"), on_text=interrupt)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not is_alive(pids[0])
    runner.close()  # twice is well


@pytest.mark.parametrize("from_thread", [False, True])
def test_a_runner_does_not_outlive_its_parent(tmp_path, from_thread):
    """With the kernel's signal (started by the main thread) and by the end of the input alone."""
    script = f"""
import sys, threading
from pathlib import Path
from moerun.runner.parent import Runner
from moerun.engine.interface import GenerationRequest
from tests.test_runner import some_args
def work():
    runner = Runner(log_folder=Path({str(tmp_path)!r}), engine={FAKE_ENGINE!r})
    runner.start()
    runner.load(some_args())
    print(runner.pid, flush=True)
    runner.generate(GenerationRequest(prompt="forever"), on_text=lambda text: None)
if {from_thread}:
    threading.Thread(target=work).start()
else:
    work()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(child))


def test_ctrl_c_of_the_terminal_does_not_reach_the_runner(runner):
    runner.load(some_args())
    assert os.getsid(runner.pid) != os.getsid(0)
    os.kill(runner.pid, signal.SIGINT)
    assert answer(runner, "say unmoved")[0] == ["unmoved"]


def test_a_runner_without_streamed_experts_says_so_while_it_answers(runner):
    runner.load(some_args())
    assert runner.sample_streaming() is None
