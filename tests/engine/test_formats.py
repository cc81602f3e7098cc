"""Answers held to JSON, schemas and grammars; bad grammars are refused and kill nobody."""

import json
import random
from typing import Any

import pytest

from moerun.engine.chat import ChatPrompt
from moerun.engine.formats import held_to
from moerun.engine.grammar import check_grammar
from moerun.engine.interface import (
    AnswerFormat,
    FormatKind,
    GenerationRequest,
    Sampling,
    Tool,
    ToolChoice,
    ToolUse,
)
from moerun.engine.json_schema import grammar_of_schema
from moerun.errors import UsageError
from tests.engine.builders import ENGINE, answer, arguments
from tests.engine.conftest import DEMO_FILE

pytestmark = pytest.mark.engine

SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
     "required": ["a"]},
    {"type": "array", "items": {"enum": ["x", "y\"\\", 3, None]}, "minItems": 2, "maxItems": 3},
    {"type": "integer", "minimum": -12, "maximum": 207},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 9},
    {"type": "string", "pattern": "^(ab|c)[0-9]{2,3}x?$"},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"anyOf": [{"const": {"k": 1}}, {"type": "null"}]},
    {"allOf": [{"properties": {"p": {"type": "null"}}, "required": ["p"]},
               {"properties": {"q": {"type": "boolean"}}, "required": ["q"]}]},
    {"$defs": {"t": {"type": "object", "properties": {
        "v": {"type": "boolean"}, "n": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}},
        "required": ["v", "n"]}}, "$ref": "#/$defs/t"},
    {"prefixItems": [{"type": "boolean"}, {"type": "null"}]},
    {"type": ["boolean", "null"]},
)  # fmt: skip


@pytest.fixture(scope="module")
def session():
    opened = ENGINE.load(arguments(DEMO_FILE))
    yield opened
    opened.close()


def request(kind: FormatKind, source: str = "", *, seed: int = 1) -> GenerationRequest:
    return GenerationRequest(
        prompt="Answer:",
        sampling=Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed),
        maximum_tokens=600,
        format=AnswerFormat(kind=kind, source=source),
    )


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:30])
def test_what_a_schema_lets_through_is_json_of_its_kind(session, schema):
    for seed in range(3):
        text, result = answer(session, request(FormatKind.SCHEMA, json.dumps(schema), seed=seed))
        if result.answer_tokens == 600:
            continue  # strings of a hot model may go on for ever
        check(schema, json.loads(text))


def check(schema: dict[str, Any], value: Any) -> None:
    match SCHEMAS.index(schema):
        case 0:
            assert isinstance(value["a"], int)
            assert set(value) <= {"a", "b"}
        case 1:
            assert 2 <= len(value) <= 3
            assert all(item in ("x", 'y"\\', 3, None) for item in value)
        case 2:
            assert -12 <= value <= 207
        case 3:
            assert 0 < value <= 9
        case 4:
            assert value.startswith(("ab", "c"))
        case 5:
            assert len(value) == 10
        case 6:
            assert 2 <= len(value) <= 4
        case 7:
            assert value in ({"k": 1}, None)
        case 8:
            assert value["p"] is None
            assert isinstance(value["q"], bool)
        case 9:
            assert isinstance(value["v"], bool)
        case 10:
            assert value[0] in (True, False)
            assert value[1] is None
        case _:
            assert value in (True, False, None)


def test_the_engine_holds_to_integer_bounds(session):
    """Six random ranges; what else their grammars let through is in tests/test_number_ranges.py."""
    chance = random.Random(7)
    for _ in range(6):
        low = chance.randint(-2000, 2000)
        high = low + chance.randint(0, 3000)
        schema = json.dumps({"type": "integer", "minimum": low, "maximum": high})
        text, _ = answer(session, request(FormatKind.SCHEMA, schema, seed=chance.randint(0, 99)))
        assert low <= json.loads(text) <= high


def test_the_engine_holds_to_a_large_enumeration(session):
    values = [f"value {number}" for number in range(3000)]
    text, _ = answer(session, request(FormatKind.SCHEMA, json.dumps({"enum": values})))
    assert json.loads(text) in values


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": list(range(5000))},
        {"enum": ["x" * 200_000]},
        {"const": "x" * 600_000},
        {"type": "object", "properties": {"k" * 600_000: {"type": "null"}}},
        {"type": "object", "properties": {f"p{index}": {"type": "null"} for index in range(3000)}},
    ],
    ids=["many values", "a long value", "a constant", "a name", "many names"],
)
def test_a_schema_that_would_hold_up_other_answers_is_refused(session, schema):
    with pytest.raises(UsageError, match="too large"):
        answer(session, request(FormatKind.SCHEMA, json.dumps(schema)))


def test_any_object(session):
    text, result = answer(session, request(FormatKind.JSON))
    assert text.startswith("{")
    if result.answer_tokens < 600:
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "grammar",
    ["root ::= (", 'start ::= "x"', "root ::= root", "root ::= nothing", 'root ::= "a"{9999}',
     "root ::= " + "(" * 200_000, 'root ::= "\\q"', "   "],
    ids=["open", "no root", "left", "undefined", "count", "deep", "escape", "blank"],
)  # fmt: skip
def test_a_bad_grammar_is_one_sentence(session, grammar):
    with pytest.raises(UsageError):
        answer(session, request(FormatKind.GRAMMAR, grammar))


def test_a_good_grammar_holds(session):
    check_grammar('root ::= "yes" | "no"')
    text, _ = answer(session, request(FormatKind.GRAMMAR, 'root ::= "yes" | "no"'))
    assert text in ("yes", "no")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"not": {}}', "'not'"),
        ('{"type": "number", "multipleOf": 2}', "multipleOf"),
        ('{"type": "string", "pattern": "(?=x)y"}', "assertion"),
        ('{"$ref": "http://x/y"}', "outside"),
        ('{"$ref": "#/$defs/none"}', "nothing at"),
        ('{"type": "fruit"}', "fruit"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "bounds"),
        ("[" * 3000, "no JSON"),
        ("{", "no JSON"),
    ],
)
def test_what_cannot_be_followed_is_named(schema, reason):
    with pytest.raises(UsageError, match=reason):
        grammar_of_schema(schema)


def test_a_tool_that_must_be_called_is(session):
    parameters = '{"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}'
    asked = GenerationRequest(
        prompt="x",
        tools=(Tool(name="count", parameters=parameters), Tool(name="other")),
        tool_choice=ToolChoice(use=ToolUse.NAMED, name="count"),
    )
    prompt = held_to(ChatPrompt(text="x"), asked)
    assert prompt.grammar is not None
    text, _ = answer(session, request(FormatKind.GRAMMAR, prompt.grammar))
    assert prompt.tools is not None
    assert prompt.tools.feed(text) == ("", ())
    (call,) = prompt.tools.finish()[1]
    assert call.name == "count"
    assert set(json.loads(call.arguments)) == {"n"}
