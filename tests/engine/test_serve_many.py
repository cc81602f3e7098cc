"""Many clients at once, several models beside one another, and one that streams: for real."""

import asyncio
import json
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path

import httpx
import psutil
import pytest

from moerun.engine.interface import AnswerPart, GenerationRequest, Message, Sampling
from moerun.machine.description import HOST, DeviceId
from moerun.server.local_loader import LoaderSettings, LocalLoader, LocalModel
from moerun.server.runners import LoadWishes, ServedModel
from moerun.server.scheduler import Scheduler
from moerun.settings.load import load_settings
from moerun.store.names import demo_path
from tests.engine.servers import served

pytestmark = pytest.mark.engine

CLIENTS, TURNS = 64, 3


def test_64_clients_at_once_each_hear_their_own_answer(tmp_path):
    """The form of a minute, with the server's memory, is `python -m benchmarks.serve`."""
    wrong: list[str] = []

    def ask(url: str, number: int) -> None:
        try:
            with httpx.Client(base_url=url, timeout=120) as client:
                for turn in range(TURNS):
                    word = f"client{number}turn{turn}"
                    said = _word_said(client, word, streams=number % 2 == 0)
                    if said != word:
                        wrong.append(f"{word} heard {said!r}")
        except (httpx.HTTPError, ValueError, KeyError) as error:
            wrong.append(f"client {number}: {error!r}")

    with served(tmp_path) as (url, process):
        askers = [threading.Thread(target=ask, args=(url, number)) for number in range(CLIENTS)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert wrong == []
        status = httpx.get(f"{url}/api/moerun/status").json()
        assert (status["waiting"], [model["users"] for model in status["models"]]) == (0, [0])
        assert len(psutil.Process(process.pid).children()) == 1


def _word_said(client: httpx.Client, word: str, *, streams: bool) -> str:
    """Ask for one word and no other, by either API, so that a crossed answer shows."""
    messages = [{"role": "user", "content": f"Say {word}."}]
    if streams:
        body = {"model": "demo", "messages": messages, "format": {"const": word}}
        text = ""
        with client.stream("POST", "/api/chat", json=body) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                text += json.loads(line)["message"]["content"]
        return str(json.loads(text))
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"const": word}}}
    body = {"model": "demo", "messages": messages, "response_format": form}
    reply = client.post("/v1/chat/completions", json=body).raise_for_status()
    return str(json.loads(reply.json()["choices"][0]["message"]["content"]))


class SmallMachine(LocalLoader):
    """The loader of this machine, which has so much memory for models as a test says."""

    def __init__(self) -> None:
        super().__init__(LoaderSettings(settings=load_settings(environment={}), parallel=2))
        self.total_bytes = 1 << 40
        self.in_memory: list[LocalModel] = []

    def held_bytes(self) -> int:
        return sum(
            holding.size_bytes - holding.reclaimable_bytes
            for model in self.in_memory
            if model.is_alive
            for holding in model.holdings()
            if holding.device == HOST
        )

    def room(self) -> Mapping[DeviceId, int]:
        return {**super().room(), HOST: self.total_bytes - self.held_bytes()}

    def load(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> LocalModel:
        loaded = super().load(model, wishes, room)
        self.in_memory.append(loaded)
        return loaded


@pytest.fixture(scope="module")
def two_models(tmp_path_factory) -> tuple[ServedModel, ServedModel]:
    folder: Path = tmp_path_factory.mktemp("models")
    found = []
    for name in ("one", "two"):
        path = folder / f"{name}.gguf"
        shutil.copyfile(demo_path(), path)
        found.append(ServedModel(name=f"{name}:latest", path=str(path), modified_at_s=1.0))
    return found[0], found[1]


@pytest.mark.parametrize(("beside", "stay"), [(0.5, 1), (3.0, 2)])
def test_a_model_leaves_for_another_by_the_bytes_of_both(two_models, beside, stay):
    """Beside what the plan of a model needs there is room for so much of another as measured."""
    one, two = two_models
    wishes = LoadWishes(context_tokens=512)

    async def test(loader: SmallMachine) -> None:
        scheduler = Scheduler(loader)
        try:
            answers = [await _answer(scheduler, one, wishes)]
            needed_bytes = loader.needs(two, wishes, {HOST: 1 << 34})[HOST]
            loader.total_bytes = needed_bytes + int(beside * loader.held_bytes())
            answers += [await _answer(scheduler, model, wishes) for model in (two, one)]
            assert answers[0]
            assert answers == [answers[0]] * 3
            assert {slot.model.name for slot in scheduler.loaded} >= {"one:latest"}
            assert len(scheduler.loaded) == stay
            assert len(loader.in_memory) == (2 if stay == 2 else 3)  # loads
            alive = [model for model in loader.in_memory if psutil.pid_exists(model.pid)]
            assert len(alive) == stay
        finally:
            await scheduler.close()
        assert not any(model.is_alive for model in loader.in_memory)

    asyncio.run(asyncio.wait_for(test(SmallMachine()), 120))


async def _answer(scheduler: Scheduler, model: ServedModel, wishes: LoadWishes) -> str:
    request = GenerationRequest(
        messages=(Message(role="user", content="What is moerun?"),),
        sampling=Sampling(temperature=0.0),
        maximum_tokens=8,
    )
    lease = await scheduler.acquire(model, wishes)
    try:
        async with aclosing(lease.generate(request)) as events:
            return "".join([e.text async for e in events if isinstance(e, AnswerPart)])
    finally:
        lease.release()


@pytest.mark.skipif(sys.platform != "linux", reason="streaming is there on Linux only")
def test_a_model_that_streams_answers_one_after_the_other_and_shows_its_experts(tmp_path):
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is moerun?"}],
        "stream": False,
        "options": {"temperature": 0, "seed": 1, "num_predict": 12},
    }
    answers: list[str] = []

    def ask(url: str) -> None:
        reply = httpx.post(f"{url}/api/chat", json=body, timeout=120).raise_for_status()
        answers.append(reply.json()["message"]["content"])

    with served(tmp_path / "held", {"MOERUN_EXTRA_BUFFERS": "off"}) as (url, _):
        ask(url)
    more = {"MOERUN_STREAMING": "cache", "MOERUN_NUM_PARALLEL": "4", "MOERUN_EXTRA_BUFFERS": "off"}
    with served(tmp_path / "streams", more) as (url, _):
        askers = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        (model,) = httpx.get(f"{url}/api/moerun/status").json()["models"]
        (row,) = httpx.get(f"{url}/api/ps").json()["models"]
    assert answers == [answers[0]] * 5
    assert answers[0]
    assert "streamed through a cache" in model["mode"]
    assert model["streaming"]["expert_bytes"] > 0
    assert len(model["streaming"]["heat"]) > 1
    assert [tier["tier"] for tier in model["tiers"]] == ["ram", "ssd"]
    assert row["size"] > 0
