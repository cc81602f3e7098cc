"""The command as a user starts it: a process, pipes, signals and a terminal."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moerun.engine.check_record import FILE_NAME, SCHEMA, engine_key

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
MOERUN = (sys.executable, "-c", "import sys; from moerun.cli.app import main; sys.exit(main())")
LIMIT_S = 120


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return an environment of its own, in which the engine is checked once for all tests."""
    return {
        **os.environ,
        "MOERUN_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MOERUN_CONFIG_DIR": str(tmp_path_factory.mktemp("config")),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }


@pytest.fixture
def moerun(environment, tmp_path):
    def call(*arguments, stdin=b"", env=None, **more):
        return subprocess.run(
            [*MOERUN, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=env or environment,
            cwd=tmp_path,
            timeout=LIMIT_S,
            check=False,
            **more,
        )

    return call


@pytest.fixture
def start(environment, tmp_path):
    """Return a function that starts a run without waiting, and end what is left afterwards."""
    started = []

    def call(*arguments):
        process = subprocess.Popen(
            [*MOERUN, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def model(tiny_model):
    return tiny_model("qwen3moe")


# As on a device, whose weights are never repacked for the processor.
SAME_ARITHMETIC = ("--extra-buffers", "off")
GREEDY = ("--temperature", "0", "--seed", "1", "--num-predict", "12")


def stopped_in_the_middle(process):
    """Wait for the first text, stop the runner where it is, and return its process."""
    assert process.stdout.read(1), process.stderr.read()
    [runner] = psutil.Process(process.pid).children()
    runner.suspend()
    return runner


def the_runner(moerun):
    [runner] = json.loads(moerun("stat", "--memory", "--json").stdout)["runners"]
    return runner


def test_standard_output_holds_the_answer_alone(moerun, model):
    plain = moerun("run", model, "hi", *GREEDY)
    assert plain.returncode == 0
    told = moerun("run", model, "hi", *GREEDY, "--json")
    document = json.loads(told.stdout)
    answer = document["answer"]
    assert document["answer_tokens"] > 0
    assert plain.stdout.decode() == (answer if answer.endswith("\n") else answer + "\n")
    assert b"experts:" in plain.stderr
    assert b"experts:" not in moerun("run", model, "hi", *GREEDY, "--quiet").stderr


def test_what_is_piped_in_stands_before_the_words(moerun, model):
    piped = json.loads(moerun("run", model, "b", "c", *GREEDY, "--json", stdin=b"a").stdout)
    typed = json.loads(moerun("run", model, "a b c", *GREEDY, "--json").stdout)
    assert piped["answer"] == typed["answer"]
    assert piped["prompt_tokens"] == typed["prompt_tokens"]
    assert (
        json.loads(moerun("run", model, *GREEDY, "--json", stdin=b"a b c").stdout)["answer"]
        == (typed["answer"])
    )


def test_the_document_is_the_only_output_with_warnings_present(moerun, model):
    done = moerun("run", model, "hi", *GREEDY, "--json", "--max-swap", "2G")
    document = json.loads(done.stdout)
    assert b"changes nothing" in done.stderr
    assert document["schema"] == 1
    assert document["stop_reason"] in ("stop", "length")
    assert document["plan"]["ubatch_tokens"] == 512
    assert {"load_mode", "extra_buffers", "context_tokens"} <= document["plan"].keys()


@pytest.mark.parametrize("mode", ["mmap", "copy"])
def test_planned_buffers_are_the_reported_ones(moerun, model, mode):
    done = moerun("run", model, "hi", *GREEDY, "--json", "--load-mode", mode)
    rows = {row["name"]: row for row in json.loads(done.stdout)["plan"]["buffers"]}
    assert ("mapped weights" in rows) == (mode == "mmap")
    for row in rows.values():
        assert abs(row["drift_fraction"]) < 0.01, row
    assert rows["kv"]["planned_bytes"] == rows["kv"]["reported_bytes"]


def test_a_reader_that_leaves_early_is_no_error(start, model):
    process = start("run", model, "hi", "--num-predict", "400", "--quiet")
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert errors == b""


def test_an_empty_prompt_loads_and_exits(moerun, model):
    done = moerun("run", model, "")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"nothing was asked" in done.stderr


def test_verbose_prints_the_eight_lines_then_ours(moerun, model):
    done = moerun("run", model, "hi", *GREEDY, "--verbose", "--quiet")
    lines = done.stderr.decode().splitlines()
    labels = [line.partition(":")[0] for line in lines if ":" in line]
    eight = [
        "total duration",
        "load duration",
        "prompt eval count",
        "prompt eval duration",
        "prompt eval rate",
        "eval count",
        "eval duration",
        "eval rate",
    ]
    first = labels.index("total duration")
    assert labels[first : first + 8] == eight
    assert "cpu kv" in labels[first + 8 :]


def test_a_dry_run_shows_the_plan_and_starts_nothing(moerun, model):
    done = moerun("run", model, "hi", "--dry-run")
    assert done.returncode == 0
    assert b"Context" in done.stdout
    document = json.loads(moerun("run", model, "--dry-run", "--json").stdout)
    assert document["schema"] == 1


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "truncated", "text"])
def test_a_bad_file_is_one_sentence_and_exit_code_3(moerun, model, tmp_path, kind):
    path = tmp_path / "bad.gguf"
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "truncated":
            path.write_bytes(model.read_bytes()[:-5000])
        case "text":
            path.write_text("hello " * 1000)
    done = moerun("run", path, "hi")
    assert done.returncode == 3
    assert done.stdout == b""
    assert done.stderr.decode().startswith("Error: ")
    assert b"Traceback" not in done.stderr


def test_a_prompt_beyond_the_context_is_a_usage_error(moerun, model):
    done = moerun("run", model, "word " * 3000, "--ctx", "256")
    assert done.returncode == 2
    assert done.stderr.count(b"Error:") == 1


def test_ctrl_c_ends_the_answer_with_130_and_the_text_so_far(start, moerun, model):
    process = start("run", model, "hi", "--num-predict", "900", "--quiet")
    runner = stopped_in_the_middle(process)
    process.send_signal(signal.SIGINT)
    runner.resume()
    rest, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert errors == b""
    assert json.loads(moerun("stat", "--json").stdout)["runners"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_ends_the_runner_and_takes_its_record_away(
    start, environment, moerun, model, number
):
    process = start("run", model, "hi", "--num-predict", "900", "--quiet")
    runner = stopped_in_the_middle(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number
    assert errors == b""
    assert not psutil.pid_exists(runner.pid) or runner.status() == psutil.STATUS_ZOMBIE
    assert not list(Path(environment["MOERUN_STATE_DIR"], "runners").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_hints_that_nobody_takes_cost_no_answer(environment, model, tmp_path):
    command = [*MOERUN, "run", str(model), "hi", *GREEDY, "--verbose"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            env=environment,
            cwd=tmp_path,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0
    assert done.stdout.endswith(b"\n")


def test_ctrl_c_while_loading_ends_everything(start, moerun, model):
    process = start("run", model, "hi", "--num-predict", "900")
    assert b"experts:" in process.stderr.readline()  # said right before loading
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert json.loads(moerun("stat", "--json").stdout)["runners"] == []


def test_stat_sees_a_runner_while_it_lives(start, moerun, model):
    process = start("run", model, "hi", "--num-predict", "900", "--load-mode", "mmap")
    child = stopped_in_the_middle(process)
    runner = the_runner(moerun)
    assert runner["pid"] == child.pid
    devices = {device["label"]: device for device in runner["devices"]}
    rows = {row["kind"]: row for row in devices["cpu"]["rows"]}
    assert {"dense", "experts", "kv", "compute", "runtime"} <= rows.keys()
    for kind in ("dense", "experts", "kv", "compute"):
        assert abs(rows[kind]["drift_fraction"]) < 0.01
    assert devices["cpu"]["observed_bytes"] > 1 << 20
    assert 0 < runner["host"]["model_resident_bytes"] <= model.stat().st_size + 8192
    assert b"planned" in moerun("stat", "--memory").stdout
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    child.resume()
    deadline = time.monotonic() + LIMIT_S
    while json.loads(moerun("stat", "--json").stdout)["runners"]:
        assert time.monotonic() < deadline, "the runner outlived its parent"


def test_a_runner_that_dies_is_one_sentence_and_exit_code_6(start, moerun, model):
    process = start("run", model, "hi", "--num-predict", "900", "--quiet")
    runner = stopped_in_the_middle(process)
    runner.send_signal(signal.SIGSEGV)
    runner.resume()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 6
    text = errors.decode()
    assert text.startswith("Error: The runner died while it answered (SIGSEGV")
    assert "  | " in text
    assert ".log" in text
    assert "Traceback" not in text
    assert json.loads(moerun("stat", "--json").stdout)["runners"] == []


@pytest.mark.skipif(
    psutil.virtual_memory().available < 5 << 30, reason="the plan itself needs 4 GiB of memory"
)
def test_a_host_that_is_full_is_planned_for_once_more_and_then_told(moerun, model):
    """The address space of the processes is bounded, which no plan can see."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    done = moerun(
        "run",
        model,
        "hi",
        "--ctx",
        "1000000",
        "--host-margin",
        "64M",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, hard)),
    )
    lines = [
        line for line in done.stderr.decode().splitlines() if "Error" in line or "once" in line
    ]
    assert done.returncode == 6
    assert done.stdout == b""
    assert len(lines) == 2
    assert "the host ran out of memory while loading" in lines[0]
    assert "planning once more" in lines[0]
    assert "also with a larger margin" in lines[1]


def test_a_worker_stands_in_for_a_gpu(moerun, model, two_workers):
    done = moerun("run", model, "hi", *GREEDY, "--json", "--worker", two_workers[0])
    document = json.loads(done.stdout)
    assert document["plan"]["devices"][0]["id"].startswith("gpu:RPC")
    weights = {
        row["device"]: row for row in document["plan"]["buffers"] if row["name"] == "weights"
    }
    on_worker = weights[document["plan"]["devices"][0]["id"]]
    assert abs(on_worker["drift_fraction"]) < 0.01
    alone = json.loads(moerun("run", model, "hi", *GREEDY, "--json", *SAME_ARITHMETIC).stdout)
    assert document["answer"] == alone["answer"]


def test_an_engine_that_is_not_as_expected_loads_plainly(environment, moerun, model, tmp_path):
    problem = {"name": "overrides", "is_ok": False, "detail": "logits differ"}
    check = {"engine_version": "0.3.36", "findings": [problem]}
    document = {"schema": SCHEMA, "key": engine_key(), "check": check}
    (tmp_path / FILE_NAME).write_text(json.dumps(document))
    unsound = {**environment, "MOERUN_STATE_DIR": str(tmp_path)}
    done = moerun("run", model, "hi", *GREEDY, "--json", "--vram", "1G", env=unsound)
    assert done.returncode == 0
    assert b"Warning: the engine is not as moerun expects it (overrides: logits differ)" in (
        done.stderr
    )
    plan = json.loads(done.stdout)["plan"]
    assert plan["devices"] == []
    assert plan["extra_buffers"] is False
    for row in plan["buffers"]:
        assert abs(row["drift_fraction"]) < 0.01, row


def test_an_engine_that_cannot_be_opened_is_one_sentence(environment, moerun, model, tmp_path):
    problem = {"name": "library", "is_ok": False, "detail": "The libraries cannot be opened."}
    check = {"engine_version": "0.3.36", "findings": [problem]}
    document = {"schema": SCHEMA, "key": engine_key(), "check": check}
    (tmp_path / FILE_NAME).write_text(json.dumps(document))
    done = moerun("run", model, "hi", env={**environment, "MOERUN_STATE_DIR": str(tmp_path)})
    assert done.returncode == 6
    assert done.stderr == b"Error: The libraries cannot be opened.\n"


def test_watching_prints_one_document_a_line_until_ctrl_c(start, environment):
    records = Path(environment["MOERUN_STATE_DIR"], "runners")
    records.mkdir(exist_ok=True)
    newer = records / f"{os.getpid()}.json"
    newer.write_text('{"schema": 99}')
    process = start("stat", "--memory", "--json", "--watch", "--interval", "0.1")
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    newer.unlink()
    assert [line["schema"] for line in lines] == [1, 1, 1]
    assert process.returncode == 0
    assert errors.count(b"\n") == errors.count(b"a newer one wrote it") == 1
