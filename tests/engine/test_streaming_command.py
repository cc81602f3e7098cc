"""Streaming as a user asks for it: the command, its counters, and the same answers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import moerun
from moerun.planning.strategy import LoadMode

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="streaming is there on Linux only"),
]

ROOT = Path(moerun.__file__).parents[1]
MOERUN = (sys.executable, "-c", "import sys; from moerun.cli.app import main; sys.exit(main())")
LIMIT_S = 120
GREEDY = ("--temperature", "0", "--seed", "1", "--extra-buffers", "off")
QUESTION = "What is moerun?"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {
        **os.environ,
        "MOERUN_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MOERUN_CONFIG_DIR": str(tmp_path_factory.mktemp("config")),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def moerun_command(environment, tmp_path):
    def call(*arguments):
        done = subprocess.run(
            [*MOERUN, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.mark.parametrize("mode", ["cache", "paging"])
def test_answers_are_those_of_a_model_that_is_held(moerun_command, mode):
    held = json.loads(moerun_command("run", "demo", QUESTION, *GREEDY, "--json").stdout)
    streamed = json.loads(
        moerun_command("run", "demo", QUESTION, *GREEDY, "--json", "--streaming", mode).stdout
    )
    assert streamed["answer"] == held["answer"]
    assert held["streaming"] is None
    assert streamed["plan"]["load_mode"] == LoadMode.STREAM
    counters = streamed["streaming"]
    assert counters["mechanism"] == mode
    assert counters["decode"]["tokens"] >= streamed["answer_tokens"] - 1
    assert counters["because"].startswith(f"{mode} was asked for")
    assert len(counters["heat"]) > 1


def test_verbose_ends_with_the_same_counters(moerun_command):
    told = moerun_command("run", "demo", QUESTION, *GREEDY, "--streaming", "cache", "--verbose")
    lines = told.stderr.splitlines()
    labels = [line.partition(":")[0] for line in lines]
    for label in ("experts held", "expert hit rate", "read from SSD", "expert switch", "cache"):
        assert labels.index(label) > labels.index("eval rate"), told.stderr


def test_stat_shows_a_streaming_runner_from_outside(
    moerun_command, environment, tmp_path, tiny_model
):
    model = str(tiny_model("qwen3moe"))  # which hardly ever comes to an end
    running = subprocess.Popen(
        [*MOERUN, "run", model, "Why?", *GREEDY, "--streaming", "cache", "--num-predict", "2000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=tmp_path,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.read(1)
        os.kill(running.pid, signal.SIGSTOP)  # what it says of itself is in its record
        [runner] = json.loads(moerun_command("stat", "--memory", "--json").stdout)["runners"]
        assert runner["streaming"]["mechanism"] == "cache"
        shown = moerun_command("stat", "--memory").stdout
        assert "held in RAM" in shown
        metrics = moerun_command("stat", "--prometheus").stdout
        assert "moerun_expert_tier_bytes{" in metrics
    finally:
        running.kill()
        running.communicate()
