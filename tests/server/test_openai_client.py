"""The Python client of OpenAI against a server with fakes behind it."""

import json

import httpx
import openai
import pydantic
import pytest

from tests.server.fakes import serving
from tests.server.test_ollama_client import SCHEMA, TOOL, said


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    url = f"{server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as open_client:
        yield open_client


def test_a_chat(client):
    reply = client.chat.completions.create(model="alpha", messages=said("say hello"))
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.content == "hello "
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (7, 8)


def test_a_stream_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="alpha",
            messages=said("say a b"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert texts == ["", "a ", "b ", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 2)


@pytest.mark.parametrize("streams", [False, True])
def test_tools(client, streams):
    reply = client.chat.completions.create(
        model="alpha", messages=said("call it"), tools=[TOOL], stream=streams
    )
    if streams:
        chunks = list(reply)
        calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls, reason = reply.choices[0].message.tool_calls, reply.choices[0].finish_reason
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Bern"})
    ]
    assert (calls[0].id, reason) == ("call_1", "tool_calls")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ("none", "")),
        ("required", ("required", "")),
        ({"type": "function", "function": {"name": "weather"}}, ("named", "weather")),
    ],
)
def test_the_choice_of_tools_reaches_the_runner(client, server, choice, expected):
    client.chat.completions.create(
        model="alpha", messages=said("say x"), tools=[TOOL], tool_choice=choice
    )
    request = server.loader.loaded[-1].requests[-1]
    assert (request.tool_choice.use.value, request.tool_choice.name) == expected


def test_a_schema_and_the_newer_limit_reach_the_runner(client, server):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    client.chat.completions.create(
        model="alpha",
        messages=[{"role": "developer", "content": "be brief"}, *said("say x")],
        response_format=form,
        max_completion_tokens=9,
        stop=["x", "y"],
        seed=5,
        logprobs=True,
        top_logprobs=2,
    )
    request = server.loader.loaded[-1].requests[-1]
    assert json.loads(request.format.source) == SCHEMA
    assert (request.maximum_tokens, request.stop) == (9, ("x", "y"))
    assert (request.sampling.seed, request.top_logprobs) == (5, 2)
    assert request.messages[0].role == "system"


def test_an_answer_is_parsed_into_a_class(client):
    class Answer(pydantic.BaseModel):
        a: int

    reply = client.chat.completions.parse(
        model="alpha", messages=said('say {"a":3}'), response_format=Answer
    )
    assert reply.choices[0].message.parsed == Answer(a=3)


def test_a_completion(client):
    assert client.completions.create(model="alpha", prompt="say x y").choices[0].text == "x y "
    chunks = list(client.completions.create(model="alpha", prompt="say x", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "x "


def test_vectors_which_the_client_asks_for_in_base64(client):
    reply = client.embeddings.create(model="alpha", input=["ab", "abc"])
    assert [row.embedding for row in reply.data] == [[2.0, 0.5], [3.0, 0.5]]
    plain = client.embeddings.create(model="alpha", input="ab", encoding_format="float")
    assert plain.data[0].embedding == [2.0, 0.5]


def test_models(client):
    listed = [model.id for model in client.models.list()]
    assert listed == ["alpha:latest", "beta:latest", "gamma:latest"]
    assert client.models.retrieve("alpha:latest").id == "alpha:latest"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (openai.NotFoundError, {"model": "nope"}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"n": 2}),
        (openai.BadRequestError, {"messages": said("bad")}),
        (openai.BadRequestError, {"temperature": 9}),
        (openai.InternalServerError, {"messages": said("bug")}),
        (openai.InternalServerError, {"messages": said("crash")}),
    ],
)
def test_errors_have_the_clients_classes(client, kind, more):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "alpha", "messages": said("say x"), **more})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    assert "secret" not in str(caught.value)


def test_an_error_in_a_stream_is_an_object(client):
    with pytest.raises(openai.APIError, match="The runner died"):
        list(client.chat.completions.create(model="alpha", messages=said("late"), stream=True))


def test_pictures_are_refused(client):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(openai.BadRequestError, match="text alone"):
        client.chat.completions.create(
            model="alpha", messages=[{"role": "user", "content": [part]}]
        )


def test_a_stream_ends_with_done(server):
    body = {"model": "alpha", "messages": said("say x"), "stream": True}
    text = httpx.post(f"{server.url}/v1/chat/completions", json=body).text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("path", "status"), [("/v1/models/none/such", 404), ("/v1/chat", 404)])
def test_what_is_not_there(server, path, status):
    assert httpx.get(server.url + path).status_code == status
