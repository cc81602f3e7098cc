"""The Python client of ollama against a server with fakes behind it."""

import contextlib
import json
import threading
import time

import httpx
import ollama
import pytest

from moerun.server.scheduler import SchedulePolicy
from tests.server.fakes import FakeLoader, FakeServer, serving

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: FakeServer):
    with ollama.Client(host=server.url) as open_client:
        yield open_client


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_a_chat(client):
    reply = client.chat("alpha", said("say hello there"))
    assert reply.message.role == "assistant"
    assert reply.message.content == "hello there "
    assert (reply.done, reply.done_reason, reply.model) == (True, "stop", "alpha")
    assert (reply.prompt_eval_count, reply.eval_count) == (7, 2)
    assert (reply.prompt_eval_duration, reply.eval_duration) == (500_000_000, 1_500_000_000)
    assert reply.total_duration >= 0


def test_a_chat_as_a_stream(client):
    chunks = list(client.chat("alpha", said("say a b c"), stream=True))
    assert [chunk.message.content for chunk in chunks] == ["a ", "b ", "c ", ""]
    assert [chunk.done for chunk in chunks] == [False, False, False, True]


def test_a_generate_whole_and_as_a_stream(client):
    assert client.generate("alpha", "say x y").response == "x y "
    chunks = list(client.generate("alpha", "say x y", stream=True))
    assert "".join(chunk.response for chunk in chunks) == "x y "
    assert chunks[-1].done_reason == "stop"


def test_tools_and_their_answers(client, server):
    reply = client.chat("alpha", said("call it"), tools=[TOOL])
    call = reply.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Bern"})
    conversation = [
        *said("call it"),
        reply.message,
        {"role": "tool", "tool_name": "weather", "content": "say sunny"},
    ]
    assert client.chat("alpha", conversation, tools=[TOOL]).message.content == "sunny "
    request = server.loader.loaded[-1].requests[-1]
    assert json.loads(request.messages[1].tool_calls[0].arguments) == {"city": "Bern"}
    assert request.messages[2].tool_name == "weather"


def test_thinking_stands_apart(client):
    reply = client.chat("alpha", said("think so"), think=True)
    assert (reply.message.thinking, reply.message.content) == ("hm ", "so ")


def test_options_and_schema_reach_the_runner(client, server):
    options = {"temperature": 0, "seed": 3, "num_predict": 4.0, "stop": "x", "odd": 1}
    client.chat("alpha", said("say x"), options=options, format=SCHEMA, keep_alive="10m")
    request = server.loader.loaded[-1].requests[-1]
    assert (request.sampling.temperature, request.sampling.seed) == (0.0, 3)
    assert (request.maximum_tokens, request.stop) == (4, ("x",))
    assert json.loads(request.format.source) == SCHEMA


def test_vectors(client):
    reply = client.embed("alpha", ["ab", "abc"])
    assert reply.embeddings == [[2.0, 0.5], [3.0, 0.5]]
    assert reply.prompt_eval_count == 3
    assert client.embed("alpha", []).embeddings == []
    assert client.embeddings("alpha", "abcd").embedding == [4.0, 0.25]  # not normalised


def test_listings(client):
    listed = client.list().models
    assert [model.model for model in listed] == ["alpha:latest", "beta:latest", "gamma:latest"]
    assert listed[0].digest == "d" * 64
    assert listed[0].details.parameter_size == "6.51M"
    shown = client.show("alpha")
    assert shown.modelinfo["general.architecture"] == "fake"
    assert "tools" in shown.capabilities
    client.generate("alpha", keep_alive=-1)
    running = client.ps().models
    assert [(model.model, model.size, model.size_vram) for model in running] == [
        ("alpha:latest", 100, 0)
    ]
    assert running[0].expires_at.year > 2100


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (lambda c: c.chat("nope", said("x")), 404, "model 'nope' not found"),
        (lambda c: c.chat("../etc/passwd", said("x")), 400, "not the name"),
        (lambda c: c.chat("gamma", said("x")), 400, "does not support chat"),
        (lambda c: c.generate("gamma", "x"), 400, "does not support generate"),
        (lambda c: c.chat("beta", said("x"), think=True), 400, "does not support thinking"),
        (lambda c: c.chat("beta", said("x"), tools=[TOOL]), 400, "does not support tools"),
        (lambda c: c.generate("alpha", "x", images=[b"abc"]), 400, "images"),
        (lambda c: c.generate("alpha", "x", raw=True, system="s"), 400, "raw mode"),
        (lambda c: c.chat("alpha", said("bad")), 400, "The schema cannot be had."),
        (lambda c: c.chat("alpha", said("crash")), 500, "The runner died."),
        (lambda c: c.chat("alpha", said("bug")), 500, "fault of its own"),
    ],
)
def test_errors_are_a_status_and_a_sentence(client, ask, status, words):
    with pytest.raises(ollama.ResponseError) as caught:
        ask(client)
    assert caught.value.status_code == status
    assert words in caught.value.error
    assert "secret" not in caught.value.error


def test_an_error_after_the_first_byte_is_a_line(client, server):
    with pytest.raises(ollama.ResponseError, match="The runner died"):
        list(client.chat("alpha", said("late"), stream=True))
    assert client.chat("alpha", said("say again")).message.content == "again "


def test_loading_and_unloading_by_empty_requests(server):
    def post(path: str, **body: object):
        return httpx.post(server.url + path, json={"model": "beta", **body}).json()

    assert post("/api/generate")["done_reason"] == "load"
    assert post("/api/chat", messages=[])["message"] == {"role": "assistant", "content": ""}
    assert any(runner.name == "beta" for runner in server.loader.alive)
    assert post("/api/generate", prompt="", keep_alive=0)["done_reason"] == "unload"
    assert not any(runner.name == "beta" for runner in server.loader.alive)


def test_a_stream_has_no_blank_line_no_null_and_ends_with_a_newline(server):
    body = {"model": "alpha", "prompt": "say a b"}
    reply = httpx.post(f"{server.url}/api/generate", content=json.dumps(body))
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.text.endswith("\n")
    lines = reply.text.removesuffix("\n").split("\n")
    assert len(lines) == 3
    for line in lines:
        chunk = json.loads(line)
        assert None not in chunk.values()
        assert {"model", "created_at", "done"} <= set(chunk)
    assert all(isinstance(chunk[name], int) for name in chunk if name.endswith("_duration"))


@pytest.mark.parametrize("prompt", ["forever", "silent"])
@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_ends_its_answer(prompt, streams):
    loader = FakeLoader(sequences=1)
    with serving(loader=loader) as server:
        body = {"model": "alpha", "prompt": prompt, "stream": streams}
        with (
            contextlib.suppress(httpx.TimeoutException),
            httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=0.3) as reply,
        ):
            next(reply.iter_lines())
        assert loader.loaded[0].begun.acquire(timeout=5)
        with ollama.Client(host=server.url, timeout=10) as next_client:
            assert next_client.generate("alpha", "say next").response == "next "
        assert loader.loaded[0].now_at_once == 0


def test_a_full_queue_says_when_to_come_again():
    loader = FakeLoader(sequences=1)
    with serving(loader=loader, policy=SchedulePolicy(most_waiting=1)) as server:
        body = {"model": "alpha", "prompt": "silent", "stream": False}
        statuses = []

        def ask() -> None:
            status = 503
            while status == 503:  # until it is the one that waits
                reply = httpx.post(f"{server.url}/api/generate", json=body, timeout=60)
                status = reply.status_code
            statuses.append(status)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        askers[0].start()
        while not loader.loaded or not loader.loaded[0].now_at_once:
            time.sleep(0.01)
        askers[1].start()
        reply = None
        while reply is None:  # as long as the second does not wait yet, this one does
            with contextlib.suppress(httpx.TimeoutException):
                reply = httpx.post(f"{server.url}/api/generate", json=body, timeout=0.5)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) > 0
        assert "server busy" in reply.json()["error"]
        loader.loaded[0].is_closed = True  # which lets both come to an end
        for asker in askers:
            asker.join()
        assert statuses == [200, 200]
