"""Tool calls read from the forms of their families, wherever the tokens are cut."""

import itertools
import json

import pytest

from moerun.engine.interface import Tool, ToolCall
from moerun.engine.tool_calls import ToolForm, ToolReader, tool_form

SCHEMA = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = (Tool(name="weather", parameters=json.dumps(SCHEMA)), Tool(name="now"))
BAR = "\uff5c"
DEEPSEEK_HEAD = f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>"
DEEPSEEK_TAIL = f"<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end{BAR}>"
OSLO = ("weather", {"city": "Oslo", "days": 3})
OSLO_JSON = '{"city": "Oslo", "days": 3}'


def read(form: ToolForm, text: str, size: int) -> tuple[str, list[tuple[str, object]]]:
    numbers = itertools.count()
    reader = ToolReader(form, TOOLS, new_id=lambda: f"c{next(numbers)}")
    content, calls = "", list[ToolCall]()
    for start in range(0, len(text), size):
        shown, found = reader.feed(text[start : start + size])
        content, calls = content + shown, [*calls, *found]
    shown, found = reader.finish()
    calls += found
    assert [call.id for call in calls] == [f"c{i}" for i in range(len(calls))]
    return content + shown, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 11, 1000])
@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (
            ToolForm.TAGGED,
            f'Sure.<tool_call>\n{{"name": "weather", "arguments": {OSLO_JSON}}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now"}\n</tool_call>',
            "Sure.",
            [OSLO, ("now", {})],
        ),
        (
            ToolForm.TAGGED,
            "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "",
            [OSLO],
        ),
        (
            ToolForm.TAGGED,
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
            "",
            [OSLO],
        ),
        (
            ToolForm.MISTRAL,
            f'[TOOL_CALLS][{{"name": "weather", "arguments": {OSLO_JSON}}}]',
            "",
            [OSLO],
        ),
        (
            ToolForm.MISTRAL,
            f"Hm[TOOL_CALLS]weather[ARGS]{OSLO_JSON}[TOOL_CALLS]now[ARGS]{{}}",
            "Hm",
            [OSLO, ("now", {})],
        ),
        (
            ToolForm.DEEPSEEK,
            f"{DEEPSEEK_HEAD}function<{BAR}tool▁sep{BAR}>weather\n```json\n{OSLO_JSON}\n```"
            + DEEPSEEK_TAIL,
            "",
            [OSLO],
        ),
        (
            ToolForm.DEEPSEEK,
            f"{DEEPSEEK_HEAD}weather<{BAR}tool▁sep{BAR}>{OSLO_JSON}{DEEPSEEK_TAIL}",
            "",
            [OSLO],
        ),
        (ToolForm.BARE, f'{{"name": "weather", "parameters": {OSLO_JSON}}}', "", [OSLO]),
        (
            ToolForm.BARE,
            f'<|python_tag|>{{"name": "weather", "parameters": {OSLO_JSON}}}; {{"name": "now"}}',
            "",
            [OSLO, ("now", {})],
        ),
        (
            ToolForm.BARE,
            '{"name": "Ada", "parameters": {}}',
            '{"name": "Ada", "parameters": {}}',
            [],
        ),
        (ToolForm.BARE, "It rains [in Oslo].", "It rains [in Oslo].", []),
        (ToolForm.TAGGED, "a <tool_ca b", "a <tool_ca b", []),
        (ToolForm.TAGGED, "<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        (ToolForm.TAGGED, '<tool_call>{"name": "now"}', "", [("now", {})]),
    ],
)
def test_forms(form, text, content, calls, size):
    assert read(form, text, size) == (content, calls)


def test_text_that_looks_like_a_number_stays_text_where_the_schema_says_so():
    text = "<tool_call><function=weather><parameter=city>007</parameter></function></tool_call>"
    assert read(ToolForm.TAGGED, text, 5) == ("", [("weather", {"city": "007"})])


def test_templates_tell_their_form():
    assert tool_form("... <tool_call> ...") is ToolForm.TAGGED
    assert tool_form("[TOOL_CALLS]") is ToolForm.MISTRAL
    assert tool_form(DEEPSEEK_HEAD) is ToolForm.DEEPSEEK
    assert tool_form("<|channel|>x<|message|>") is ToolForm.CHANNELS
    assert tool_form("{{ tools }}") is ToolForm.BARE
