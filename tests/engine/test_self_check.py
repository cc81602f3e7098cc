"""The self-check, on the engine that is here and on children that fail in every way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.engine import abi
from moerun.engine.arguments import Override
from moerun.engine.check_record import FILE_NAME, check_engine_once, engine_key
from moerun.engine.children import child_environment
from moerun.engine.llama import evaluate
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.self_check import Finding, SelfCheck, plain_arguments, run_self_check
from moerun.engine.tiny_gguf import write_tiny_moe
from moerun.machine.description import HOST
from moerun.planning.strategy import LoadMode
from tests.engine.builders import ENGINE, arguments, device_references

pytestmark = pytest.mark.engine

BEGIN = "import os, signal, sys, time; say = lambda d: print('moerun-self-check ' + d, flush=True)"
LIBRARY = (
    """say('{"begins": "library"}'); """
    """say('{"found": {"name": "library", "is_ok": true, "detail": "fine"}}')"""
)


def child(*statements: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "; ".join((BEGIN, *statements)))


def test_the_engine_here_is_sound():
    """On a processor with AMX this is also the test that the build does not crash there."""
    check = run_self_check()
    assert check.problems == ()
    assert check.is_sound
    assert check.engine_version == abi.VERSION
    assert [f.name for f in check.findings] == [
        "version",
        "library",
        "devices",
        "prompt",
        "overrides",
        "streaming",
    ]
    assert "overridden" in check.findings[-2].detail
    assert "3 layers heard" in check.findings[-1].detail


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("step", "signal_name", "words"),
    [
        ("prompt", "SIGSEGV", "-mno-amx-tile"),
        ("prompt", "SIGILL", "AMX"),
        ("devices", "SIGABRT", "driver"),
    ],
)
def test_a_native_death_names_the_step_and_the_way_out(step: str, signal_name: str, words: str):
    check = run_self_check(
        command=child(
            LIBRARY,
            f"""say('{{"begins": "{step}"}}')""",
            f"os.kill(os.getpid(), signal.{signal_name})",
        )
    )
    assert not check.is_sound
    assert [f.name for f in check.problems] == [step]
    assert f"died with {signal_name} at '{step}'" in check.problems[0].detail
    assert words in check.problems[0].detail
    assert [f.name for f in check.findings if f.is_ok] == ["version", "library"]


def test_a_child_that_never_ends_is_stopped():
    check = run_self_check(
        timeout_s=2.0, command=child("""say('{"begins": "prompt"}')""", "time.sleep(60)")
    )
    assert "did not end in 2 s at 'prompt'" in check.problems[0].detail


def test_a_child_that_stops_early_without_an_error_is_noticed():
    check = run_self_check(command=child(LIBRARY, "os._exit(0)"))
    assert not check.is_sound
    assert "the end" in check.problems[0].name


def test_a_check_that_cannot_write_says_that_and_blames_no_processor(tmp_path: Path):
    program = (
        "import sys, tempfile; from pathlib import Path; from moerun.engine import self_check; "
        "print(self_check._do('prompt', self_check._check_prompt, Path(sys.argv[1]) / 'gone'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is_ok=False" in done.stdout
    assert "the check itself failed: FileNotFoundError" in done.stdout
    assert "AMX" not in done.stdout


def test_a_child_that_cannot_start_is_noticed():
    check = run_self_check(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert "exit code 3 at 'start'" in check.problems[0].detail


def test_plain_arguments_use_the_processor_alone(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    write_tiny_moe(path)
    plain = arguments(path)
    with loopback_worker() as worker:
        placed = arguments(
            path,
            devices=device_references((worker,)),
            workers=(worker,),
            n_gpu_layers=99,
            tensor_split=(1.0,),
            overrides=(Override(pattern="ffn_.*_exps", device=HOST),),
            extra_buffers=True,
            load_mode=LoadMode.STREAM,
        )
    assert plain_arguments(placed) == plain
    session = ENGINE.load(plain_arguments(placed))
    assert evaluate(session, range(260, 270)).shape[0] == 10
    session.close()


SOUND = SelfCheck(
    engine_version="0.3.36", findings=(Finding(name="library", is_ok=True, detail="fine"),)
)
BAD = SelfCheck(
    engine_version="0.3.36", findings=(Finding(name="prompt", is_ok=False, detail="died"),)
)


class Counting:
    def __init__(self, check: SelfCheck) -> None:
        self.check = check
        self.runs = 0

    def __call__(self) -> SelfCheck:
        self.runs += 1
        return self.check


def test_a_sound_result_is_kept_for_the_same_engine(tmp_path: Path):
    run = Counting(SOUND)
    assert check_engine_once(tmp_path, run=run, key=lambda: "one") == SOUND
    assert check_engine_once(tmp_path, run=run, key=lambda: "one") == SOUND
    assert run.runs == 1
    check_engine_once(tmp_path, run=run, key=lambda: "another")
    assert run.runs == 2
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_a_bad_result_is_not_kept(tmp_path: Path):
    run = Counting(BAD)
    for _ in range(2):
        assert check_engine_once(tmp_path, run=run, key=lambda: "one") == BAD
    assert run.runs == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "key": "k"}'])
def test_a_damaged_or_newer_record_costs_a_check(tmp_path: Path, content: str):
    (tmp_path / FILE_NAME).write_text(content)
    run = Counting(SOUND)
    assert check_engine_once(tmp_path, run=run, key=lambda: "k") == SOUND
    assert run.runs == 1
    assert json.loads((tmp_path / FILE_NAME).read_text())["key"] == "k"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path):
    run = Counting(SOUND)
    assert check_engine_once(tmp_path / "absent", run=run, key=lambda: "k") == SOUND


def test_the_key_is_stable_and_says_nothing_of_the_user():
    assert engine_key() == engine_key()
    assert len(engine_key()) == 64
