"""The server with the real engine and the demo: clients, a crash under load, a clean end."""

import json
import os
import signal
import threading

import httpx
import ollama
import openai
import psutil
import pytest

from moerun.server.listening import read_server_record
from tests.engine.servers import served

pytestmark = pytest.mark.engine
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def url(state):
    with served(state) as (address, _):
        yield address


def test_the_client_of_ollama(url):
    with ollama.Client(host=url) as client:
        said = [{"role": "user", "content": "hello"}]
        whole = client.chat("demo", said, options=GREEDY)
        chunks = list(client.chat("demo", said, options=GREEDY, stream=True))
        assert "".join(chunk.message.content for chunk in chunks) == whole.message.content
        assert whole.message.content
        assert whole.eval_count > 0
        assert chunks[-1].done_reason in ("stop", "length")
        made = client.generate("demo", "number", format=SCHEMA, options={"temperature": 0})
        assert isinstance(json.loads(made.response)["a"], int)
        assert [model.model for model in client.ps().models] == ["demo:latest"]
        assert client.show("demo").modelinfo["general.architecture"] == "qwen3moe"


def test_the_client_of_openai(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hello"}],
            max_completion_tokens=5,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 5
        assert reply.choices[0].finish_reason == "length"
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        probabilities = logprobs.content
        assert probabilities is not None
        assert len(probabilities) == 5
        assert all(len(each.top_logprobs) == 2 for each in probabilities)


def test_a_schema_that_crashes_engines_is_refused(url):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "\\d+("}}}
    body = {"model": "demo", "prompt": "x", "format": schema, "stream": False}
    assert httpx.post(f"{url}/api/generate", json=body, timeout=60).status_code in (200, 400)
    body = {"model": "demo", "prompt": "x", "stream": False, "options": GREEDY}
    assert httpx.post(f"{url}/api/generate", json=body, timeout=60).status_code == 200


def test_a_runner_that_is_killed_under_load_is_replaced(url, state):
    body = {"model": "demo", "prompt": "a story", "stream": False}
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(3):
            short = {**body, "options": GREEDY}
            assert client.post("/api/generate", json=short).status_code == 200
            statuses: list[int] = []

            def ask(statuses: list[int] = statuses) -> None:
                reply = httpx.post(f"{url}/api/generate", json=body, timeout=60)
                statuses.append(reply.status_code)

            asker = threading.Thread(target=ask)
            asker.start()
            for path in (state / "runners").glob("*.json"):
                os.kill(int(path.stem), signal.SIGKILL)
            asker.join()
            assert statuses[0] in (200, 500)
            assert client.post("/api/generate", json=short).status_code == 200
    record = read_server_record(state)
    assert record is not None
    children = psutil.Process(record.pid).children()
    assert [child.status() == psutil.STATUS_ZOMBIE for child in children] == [False]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_its_runners(tmp_path, ending):
    with served(tmp_path) as (url, process):
        body = {"model": "demo", "prompt": "", "stream": False}
        assert httpx.post(f"{url}/api/generate", json=body, timeout=60).status_code == 200
        runners = psutil.Process(process.pid).children()
        assert runners
        process.send_signal(ending)
        assert process.wait(30) == 0
        assert not [runner for runner in runners if runner.is_running()]
        assert read_server_record(tmp_path) is None
        assert not list((tmp_path / "runners").glob("*.json"))
