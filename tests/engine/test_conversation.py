"""A conversation as somebody holds it: keys on a terminal, a model that answers, a server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moerun.server.listening import read_server_record
from tests.engine.conftest import DEMO
from tests.terminal import Terminal

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
MOERUN = (sys.executable, "-c", "import sys; from moerun.cli.app import main; sys.exit(main())")
QUESTION = "What is moerun?"
ANSWER = "moerun runs Mixture-of-Experts GGUF models"
GREEDY = ("--temperature", "0", "--seed", "1", "--num-predict", "12")
LIMIT_S = 120


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return an environment of its own, in which the engine is checked once for all tests."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("MOERUN_")}
    return {
        **kept,
        "MOERUN_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MOERUN_CONFIG_DIR": str(tmp_path_factory.mktemp("config")),
        "MOERUN_MODELS": str(tmp_path_factory.mktemp("models")),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }


@pytest.fixture
def moerun(environment, tmp_path):
    def call(*arguments, stdin=b"", **more):
        return subprocess.run(
            [*MOERUN, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env={**environment, **more},
            cwd=tmp_path,
            timeout=LIMIT_S,
            check=False,
        )

    return call


@pytest.fixture
def terminal(environment, tmp_path):
    """Return a function that starts moerun on a terminal."""
    return lambda *arguments: Terminal([*MOERUN, *arguments], environment, tmp_path)


@pytest.fixture(scope="module")
def server(environment):
    """Serve on a port of its own, and return the address and the process."""
    own = {**environment, "MOERUN_HOST": "127.0.0.1:0"}
    process = subprocess.Popen([*MOERUN, "serve"], env=own, stderr=subprocess.DEVNULL)
    try:
        while (record := read_server_record(Path(environment["MOERUN_STATE_DIR"]))) is None:
            assert process.poll() is None, "the server ended at once"
            time.sleep(0.05)
        yield record.url, process
    finally:
        process.terminate()
        process.wait(30)


def test_a_conversation_is_held_saved_and_gone_on_with(terminal, moerun):
    with terminal("run", DEMO, "--local", "--verbose") as screen:
        screen.send(QUESTION)
        screen.expect(ANSWER)
        screen.expect("eval rate:")
        screen.send("/set system be brief")
        screen.expect("Set system message.")
        screen.send("/set parameter temperature 0.25")
        screen.expect("Set parameter 'temperature' to '0.25'")
        screen.send("/memory")
        screen.expect("kv")
        screen.send("/save remembered")
        screen.expect("Created new model 'remembered'")
        screen.send("/load remembered")
        screen.expect("Loading model 'remembered'")
        screen.expect(ANSWER)  # the conversation that it carries
        screen.send("/show parameters")
        screen.expect("temperature")
        screen.send("/load nothing-of-that-name")
        screen.expect("Couldn't find model")
        screen.send("/dance")
        screen.expect("Unknown command '/dance'. Type /? for help")
        screen.expect(">>> ")
        screen.type("\x04")
        assert screen.wait() == 0
    shown = moerun("show", "remembered", "--modelfile").stdout.decode()
    assert "SYSTEM" in shown
    assert QUESTION in shown
    assert "PARAMETER temperature 0.25" in shown


def test_keys_edit_complete_and_recall(terminal, environment):
    with terminal("run", DEMO, "--local") as screen:
        screen.send("half a line", end="\x03")  # dropped
        screen.expect("\n")
        screen.expect("Send a message")
        screen.type("\x03")
        screen.expect("Use Ctrl + d or /bye to exit.")
        screen.expect(">>> ")
        screen.type("/set nov\x7f\x7ferb\x01\x05\x17")  # the word is deleted again
        screen.type("verb\t")
        screen.expect("ose")
        screen.type("\r")
        screen.expect("Set 'verbose' mode.")
        screen.expect(">>> ")
        screen.type("\x1b[A\r")  # up
        screen.expect("Set 'verbose' mode.")
        screen.expect(">>> ")
        screen.type('"""first\r')
        screen.expect("... ")
        screen.type('second"""\r')
        screen.expect("eval count:")
        screen.send("/bye")
        assert screen.wait() == 0
    kept = Path(environment["MOERUN_STATE_DIR"], "history").read_text().splitlines()
    assert kept.count("/set verbose") == 1
    assert kept[-1] == "/bye"


def test_ctrl_c_ends_an_answer_and_not_the_conversation(terminal, tiny_model):
    model = str(tiny_model("qwen3moe"))  # which never comes to an end
    with terminal("run", model, "--local", "--num-predict", "900", "--verbose") as screen:
        screen.send("Tell me everything")
        screen.expect("\n")
        screen.await_more()
        [runner] = psutil.Process(screen.process.pid).children()
        runner.suspend()
        screen.type("/set quiet\r")  # kept for the next line
        screen.type("\x03")
        runner.resume()
        screen.expect("eval count:")
        assert int(screen.expect("token(s)")) < 900
        screen.expect("Set 'quiet' mode.")
        screen.send("/bye")
        assert screen.wait() == 0
        assert screen.is_echoing


def test_a_runner_that_dies_is_replaced_by_the_next_message(terminal):
    with terminal("run", DEMO, "--local") as screen:
        screen.expect("Send a message")
        [runner] = psutil.Process(screen.process.pid).children()
        runner.kill()
        while runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        screen.type(f"{QUESTION}\r")
        screen.expect(ANSWER)
        screen.send("/bye")
        assert screen.wait() == 0


def test_a_termination_at_the_prompt_leaves_the_terminal_as_it_was(terminal):
    with terminal("run", DEMO, "--local") as screen:
        screen.expect(">>> ")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM
        assert "Traceback" not in screen.seen
        assert screen.is_echoing


def test_a_server_that_runs_is_asked(moerun, server):
    url, process = server
    place = url.removeprefix("http://")
    done = moerun("run", DEMO, QUESTION, *GREEDY, "--verbose")
    assert done.returncode == 0
    assert f"server:               {place}" in done.stderr.decode()
    assert "eval rate:" in done.stderr.decode()
    here = moerun("run", DEMO, QUESTION, *GREEDY, "--local", "--quiet")
    assert here.stdout == done.stdout
    assert here.stderr == b""
    document = json.loads(moerun("run", DEMO, QUESTION, *GREEDY, "--json").stdout)
    assert document["server"] == place
    assert document["answer"].strip() == done.stdout.decode().strip()
    [served] = json.loads(moerun("ps", "--json").stdout)["models"]
    assert served["pid"] in {child.pid for child in psutil.Process(process.pid).children()}
    assert str(served["pid"]) in moerun("stat", "--memory").stdout.decode()
    made = moerun("run", DEMO, "a number", "--format", '{"type": "integer"}', "--temperature", "0")
    assert isinstance(json.loads(made.stdout), int)


@pytest.mark.usefixtures("server")
def test_flags_of_placement_load_beside_the_server(moerun):
    done = moerun("run", DEMO, QUESTION, *GREEDY, "--ram", "90%")
    assert done.returncode == 0
    assert b"takes no --ram from a request; the model is loaded beside it" in done.stderr
    served = moerun("run", DEMO, QUESTION, *GREEDY, "--ctx", "512")
    assert b"beside it" not in served.stderr


@pytest.mark.usefixtures("server")
def test_a_conversation_with_a_model_of_the_server(terminal, moerun):
    with terminal("run", DEMO) as screen:
        screen.send(QUESTION)
        screen.expect(ANSWER)
        screen.send("/memory")
        screen.expect("kv")
        screen.send("/set parameter ram_limit 4G")
        screen.expect("no request changes it")
        screen.send("/save from-server")
        screen.expect("Created new model 'from-server'")
        screen.send("/show info")
        screen.expect("placement")
        screen.send("/load from-server")
        screen.expect(ANSWER)
        screen.send("/bye")
        assert screen.wait() == 0
    assert QUESTION in moerun("show", "from-server", "--modelfile").stdout.decode()
    assert moerun("stop", DEMO).returncode == 0


def test_ctrl_c_ends_an_answer_of_the_server(environment, server, tmp_path):
    _, process = server
    command = [*MOERUN, "run", DEMO, "Tell me everything", "--num-predict", "2000"]
    run = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert run.stdout is not None
        assert run.stdout.read(1)
        for runner in psutil.Process(process.pid).children():
            runner.suspend()
        run.send_signal(signal.SIGINT)
        for runner in psutil.Process(process.pid).children():
            runner.resume()
        rest, errors = run.communicate(timeout=LIMIT_S)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 130
    assert rest.endswith(b"\n")
    assert errors == b""


def test_a_server_that_ends_in_the_middle_is_one_sentence(environment, tmp_path):
    state = tmp_path / "state"
    own = {**environment, "MOERUN_STATE_DIR": str(state), "MOERUN_HOST": "127.0.0.1:0"}
    process = subprocess.Popen([*MOERUN, "serve"], env=own, stderr=subprocess.DEVNULL)
    asking = {name: value for name, value in own.items() if name != "MOERUN_HOST"}
    runners: list[psutil.Process] = []
    try:
        while read_server_record(state) is None:
            time.sleep(0.05)
        command = [*MOERUN, "run", DEMO, "Tell me everything", "--num-predict", "2000"]
        with subprocess.Popen(
            command, env=asking, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            assert run.stdout.read(1)
            runners = psutil.Process(process.pid).children()
            for runner in runners:
                runner.suspend()
            process.kill()
            _, errors = run.communicate(timeout=LIMIT_S)
        assert run.returncode == 7
        said = errors.decode()
        assert re.match(r"Error: The server at \S+ broke off in the middle of the answer", said)
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
        for runner in runners:
            runner.kill()
