"""The clients of ollama and openai against the real engine: the flows that people have."""

import contextlib
import json
import time

import httpx
import ollama
import openai
import pydantic
import pytest

from moerun.engine.tiny_gguf import write_tiny_moe
from tests.engine.servers import served

pytestmark = pytest.mark.engine

# Models of chance, one that may call tools and one that thinks: noise, but for its form.
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]"
CALLER = "{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS
THINKER = TURNS + "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}},
            "required": ["city"],
        },
    },
}
SAID = [{"role": "user", "content": "What is moerun?"}]
GREEDY = {"temperature": 0, "num_predict": 8}
ENDLESS = {"temperature": 1, "seed": 3, "num_predict": -1}


class Answer(pydantic.BaseModel):
    number: int
    is_even: bool


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    (state / "models").mkdir()
    write_tiny_moe(state / "models" / "caller.gguf", chat_template=CALLER)
    write_tiny_moe(state / "models" / "thinker.gguf", chat_template=THINKER)
    with served(state) as (address, _):
        yield address


@pytest.fixture(scope="module")
def ours(url):
    with ollama.Client(host=url) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_streams_say_what_whole_answers_say(ours, theirs):
    whole = ours.chat("demo", SAID, options=GREEDY)
    chunks = list(ours.chat("demo", SAID, options=GREEDY, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content != ""
    assert (whole.eval_count, chunks[-1].eval_count) == (8, 8)
    events = list(
        theirs.chat.completions.create(
            model="demo",
            messages=SAID,
            temperature=0,
            max_completion_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert text == whole.message.content
    assert events[-1].usage.completion_tokens == 8
    pieces = theirs.completions.create(
        model="demo", prompt="moerun", max_tokens=4, temperature=0, stream=True
    )
    raw = ours.generate("demo", "moerun", raw=True, options={"temperature": 0, "num_predict": 4})
    assert "".join(piece.choices[0].text for piece in pieces) == raw.response


def test_a_schema_holds_in_both(ours, theirs):
    made = ours.chat("demo", SAID, format=Answer.model_json_schema(), options={"temperature": 0})
    assert Answer.model_validate_json(made.message.content)
    parsed = theirs.chat.completions.parse(
        model="demo", messages=SAID, response_format=Answer, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    loose = theirs.chat.completions.create(
        model="demo", messages=SAID, response_format={"type": "json_object"}, max_tokens=99
    )
    assert loose.choices[0].finish_reason == "length" or isinstance(
        json.loads(loose.choices[0].message.content), dict
    )


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_is_called_answered_and_gone_on_from(theirs, choice, streams):
    reply = theirs.chat.completions.create(
        model="caller", messages=SAID, tools=[TOOL], tool_choice=choice, stream=streams
    )
    if streams:
        chunks = list(reply)
        (call,) = [c for e in chunks for c in e.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        (call,) = reply.choices[0].message.tool_calls
        reason = reply.choices[0].finish_reason
    assert (call.function.name, reason) == ("weather", "tool_calls")
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Rome")
    asked = {"id": call.id, "type": "function", "function": call.function.model_dump()}
    after = theirs.chat.completions.create(
        model="caller",
        messages=[
            *SAID,
            {"role": "assistant", "content": None, "tool_calls": [asked]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
        tools=[TOOL],
        tool_choice="none",
        max_completion_tokens=4,
    )
    assert after.usage.prompt_tokens > 0
    assert after.choices[0].message.tool_calls is None


def test_tools_and_thinking_by_the_client_of_ollama(ours):
    call = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
    turns = [
        *SAID,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    reply = ours.chat("caller", turns, tools=[TOOL], options=GREEDY)
    assert reply.done_reason in ("stop", "length")
    assert ours.show("caller").capabilities == ["completion", "tools"]
    assert ours.show("thinker").capabilities == ["completion", "thinking"]
    thought = ours.chat("thinker", SAID, think=True, options=GREEDY)
    assert thought.message.thinking
    silent = ours.chat("thinker", SAID, think=False, options=GREEDY)
    assert not silent.message.thinking


def test_vectors_are_the_same_in_both(ours, theirs):
    texts = ["a mixture of experts", "rain"]
    found = ours.embed("demo", texts)
    assert [round(sum(x * x for x in vector), 4) for vector in found.embeddings] == [1.0, 1.0]
    in_base64 = theirs.embeddings.create(model="demo", input=texts)
    for ours_one, row in zip(found.embeddings, in_base64.data, strict=True):
        assert row.embedding == pytest.approx(ours_one, abs=1e-6)
    short = theirs.embeddings.create(model="demo", input=texts[0], dimensions=8)
    assert len(short.data[0].embedding) == 8


def test_errors_have_the_classes_of_each(ours, theirs):
    with pytest.raises(ollama.ResponseError) as missing:
        ours.chat("nope", SAID)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        ours.chat("demo", SAID, tools=[TOOL])
    with pytest.raises(ollama.ResponseError, match="uniqueItems"):
        ours.chat("demo", SAID, format={"type": "array", "uniqueItems": True})
    with pytest.raises(openai.NotFoundError):
        theirs.chat.completions.create(model="nope", messages=SAID)
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        theirs.chat.completions.create(model="demo", messages=SAID, reasoning_effort="high")
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError, match="context"):
        theirs.chat.completions.create(model="demo", messages=long)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_turn(url, streams):
    body = {"model": "caller", "prompt": "x", "raw": True, "stream": streams, "options": ENDLESS}
    with contextlib.suppress(httpx.TimeoutException):
        asked = httpx.stream("POST", f"{url}/api/generate", json=body, timeout=1.0)
        with asked as reply:
            next(reply.iter_lines())
    assert is_idle_soon(url)


def test_a_stream_of_openai_that_is_closed_frees_its_turn(url, theirs):
    stream = theirs.completions.create(
        model="caller", prompt="x", stream=True, max_tokens=100_000, logit_bias={"2": -100}
    )
    next(iter(stream))
    stream.close()
    assert is_idle_soon(url)


def is_idle_soon(url: str) -> bool:
    for _ in range(500):
        status = httpx.get(f"{url}/api/moerun/status").json()
        if not any(model["users"] for model in status["models"]):
            return True
        time.sleep(0.02)
    return False
