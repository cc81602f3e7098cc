"""`run` where a server answers: what is asked of it, what is printed, and when it is not asked."""

import contextlib
import http.server
import io
import json
import os
import threading
import time

import pytest

from moerun.cli.app import main
from moerun.cli.chat_flags import attach_values, read_format, read_keep_alive, read_thinking
from moerun.cli.options import PlacementFlags
from moerun.cli.server_choice import choose_server, without_server
from moerun.engine.interface import FormatKind, Overflow, Thinking
from moerun.errors import ModelNotFound, ServeError, UsageError
from moerun.server.client import Client
from moerun.server.listening import write_server_record
from moerun.server.security import Access
from tests.server.fakes import serving


class Typed(io.TextIOWrapper):
    """Standard input with something in it."""

    def __init__(self, text=""):
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "STATE_DIR", "MODELS"):
        monkeypatch.setenv(f"MOERUN_{name}", str(tmp_path / name.partition("_")[0].lower()))
    (tmp_path / "state").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("sys.stdin", Typed())
    return tmp_path


@pytest.fixture
def server(here):
    with serving() as server:
        write_server_record(here / "state", server.url)
        yield server


def until(holds, otherwise):
    """Wait for what another thread does."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(otherwise)


def test_standard_output_holds_the_answer_alone(server, capsys):
    assert main(["run", "alpha", "echo", "one", "two"]) == 0
    said = capsys.readouterr()
    assert said.out == "one two \n"
    assert said.err == ""


def test_what_is_piped_in_stands_before_the_words(server, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Typed("echo first"))
    assert main(["run", "alpha", "second"]) == 0
    assert capsys.readouterr().out == "first second \n"


@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        ((), "yes \n", ""),
        (("--think",), "yes \n", "Thinking...\nhm \n...done thinking.\n\n"),
        (("--think=high", "--hidethinking"), "yes \n", ""),
        (("--think=false",), "yes \n", ""),
    ],
)
def test_thinking_stays_off_standard_output(server, capsys, flags, out, err):
    assert main(["run", "alpha", *flags, "think yes"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (out, err)


def test_a_document_has_the_thinking_and_the_server(server, capsys):
    assert main(["run", "alpha", "--json", "--seed", "4", "think", "yes"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["thinking"] == "hm "
    assert document["answer"] == "yes "
    assert document["seed"] == 4
    assert document["server"] == f"{server.host}:{server.port}"
    assert document["answer_tokens"] == 1
    assert document["timings"]["answer_s"] == 1.5


def test_flags_reach_the_runner(server, capsys):
    flags = ["--temperature", "0.5", "--seed", "4", "--num-predict", "9", "--system", "brief"]
    assert main(["run", "alpha", *flags, "--format", "json", "--ctx", "300", "echo", "x"]) == 0
    [runner] = server.loader.loaded
    [request] = runner.requests
    assert runner.context_tokens == 300
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 4)
    assert request.maximum_tokens == 9
    assert request.format.kind is FormatKind.JSON
    assert request.overflow is Overflow.END
    assert not request.truncates
    assert [message.content for message in request.messages] == ["brief", "echo x"]


def test_a_model_that_cannot_think_is_not_told_to(server, capsys):
    assert main(["run", "beta", "--think", "echo", "x"]) == 0
    said = capsys.readouterr()
    assert said.out == "x \n"
    assert "Warning: beta does not think" in said.err
    assert server.loader.loaded[0].requests[0].think is None


def test_the_timings_have_ollamas_labels_and_name_the_server(server, capsys):
    assert main(["run", "alpha", "--verbose", "echo", "a", "b", "c"]) == 0
    labels = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert labels == [
        "total duration",
        "load duration",
        "prompt eval count",
        "prompt eval duration",
        "prompt eval rate",
        "eval count",
        "eval duration",
        "eval rate",
        "server",
        "seed",
    ]


def test_an_empty_prompt_loads_for_as_long_as_is_said(server, capsys):
    assert main(["run", "alpha", "--keepalive", "-1", "", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["ps"]) == 0
    assert "Forever" in capsys.readouterr().out
    assert main(["run", "alpha", "--keepalive", "0", "echo", "x"]) == 0
    until(lambda: not server.loader.alive, "the model stays in memory")


def test_a_model_of_vectors_prints_one(server, capsys):
    assert main(["run", "gamma", "four"]) == 0
    assert json.loads(capsys.readouterr().out) == [4.0, 0.5]
    assert main(["run", "gamma"]) == 2
    assert "no text was given" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["crash", "late x"])
def test_a_runner_that_dies_is_one_sentence(server, capsys, prompt):
    assert main(["run", "alpha", prompt]) == 7
    said = capsys.readouterr()
    assert said.err.startswith("Error: The server ")
    assert "The runner died" in said.err
    assert said.err.count("\n") <= 2


def test_a_server_that_wants_a_key_is_told_of(here, capsys, monkeypatch):
    with serving(access=Access(api_key="sesame")) as server:
        write_server_record(here / "state", server.url)
        assert main(["run", "alpha", "echo", "x"]) == 7
        said = capsys.readouterr().err
        assert "MOERUN_API_KEY" in said
        assert "--local" in said
        monkeypatch.setenv("MOERUN_API_KEY", "sesame")
        assert main(["run", "alpha", "echo", "x"]) == 0
        assert capsys.readouterr().out == "x \n"


def test_flags_of_placement_and_files_need_a_runner_of_ones_own(server, here):
    def choice(name="alpha", *settings, is_local=False, **files):
        flags = PlacementFlags(settings=settings, **files)
        return choose_server(name, flags, is_local=is_local)

    assert choice().client is not None
    assert choice("alpha", ("context", "4096")).options == (("num_ctx", 4096),)
    assert choice("alpha", ("context", "max")).client is None
    limited = choice("alpha", ("vram_limit", "8G"))
    assert limited.client is None
    assert "takes no --vram from a request" in (limited.note or "")
    assert "--config" in (choice(config_file="x.yaml").note or "")
    assert choice(is_local=True).note is None
    (here / "work" / "mine.gguf").write_bytes(b"GGUF")
    assert "by name alone" in (choice("mine").note or "")
    assert choice("demo").client is not None
    absent = without_server(choice("delta"), "delta")
    assert absent.client is None
    assert "does not have delta" in (absent.note or "")


@contextlib.contextmanager
def another_program(content):
    """Answer every request with the same JSON, as a program that is not moerun."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("content", [b'{"version": "0.12.6"}', b"[]", b"<html>", b"null"])
def test_another_program_at_that_address_is_not_asked(content, monkeypatch):
    with another_program(content) as place:
        monkeypatch.setenv("MOERUN_HOST", place)
        assert choose_server("alpha", PlacementFlags(), is_local=False).client is None
    assert choose_server("alpha", PlacementFlags(), is_local=False).client is None  # nobody there


def test_a_reply_that_breaks_off_is_one_sentence():
    with another_program(b"") as place:
        host, _, port = place.partition(":")
        client = Client(host=host, port=int(port))
    with (
        pytest.raises(ServeError, match="does not answer"),
        client.stream("/api/chat", {}) as stream,
    ):
        list(stream.lines())


def test_a_stream_ends_when_it_is_cancelled(server):
    client = Client(host=server.host, port=server.port)
    body = {"model": "alpha", "messages": [{"role": "user", "content": "forever"}]}
    with client.stream("/api/chat", body) as stream:
        lines = stream.lines()
        assert next(lines)["message"]["content"] == "tick "
        stream.cancel()
        assert not any(chunk.get("done") for chunk in lines)
    [runner] = server.loader.loaded
    until(lambda: bool(runner.cancelled), "the server goes on with what nobody reads")


def test_a_model_that_the_server_has_not_is_told_as_such(server):
    client = Client(host=server.host, port=server.port)
    body = {"model": "delta", "messages": [{"role": "user", "content": "x"}]}
    with (
        pytest.raises(ModelNotFound, match="'delta' not found"),
        client.stream("/api/chat", body) as stream,
    ):
        list(stream.lines())


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["run", "m", "--think", "hello"], ["run", "m", "--think=true", "hello"]),
        (["run", "--truncate=false", "--think"], ["run", "--truncate=false", "--think=true"]),
        (["run", "m", "--", "--think"], ["run", "m", "--", "--think"]),
        (["plan", "--think"], ["plan", "--think"]),
        ([], []),
    ],
)
def test_bare_flags_take_no_word_for_their_value(typed, read):
    assert attach_values(typed) == read


def test_values_of_flags():
    assert read_keep_alive("5m") == "5m"
    assert read_keep_alive("-1") == -1.0
    assert read_thinking("true") is Thinking.ON
    assert read_thinking("max") is Thinking.MAX
    assert read_format('{"type": "object"}').kind is FormatKind.SCHEMA


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--keepalive=soon", "--keepalive"),
        ("--think=deeply", "--think takes"),
        ("--format=yaml", "--format takes json"),
        ("--truncate=some", "--truncate takes true or false"),
    ],
)
def test_wrong_values_are_one_sentence(capsys, flag, words):
    assert main(["run", "demo", flag, "x"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("Error: ")
