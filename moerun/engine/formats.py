"""What the content of an answer is held to: a format, or the call of a tool that must be made.

Knows: which grammar a request asks for, and when calls are forced.
Does not know: the engine, or how grammars are applied.
"""

from dataclasses import replace
from typing import assert_never

from moerun.engine.chat import ChatPrompt, new_call_id
from moerun.engine.grammar import check_grammar
from moerun.engine.interface import FormatKind, GenerationRequest, Tool, ToolUse
from moerun.engine.json_schema import JSON_OBJECT_GRAMMAR, grammar_of_call, grammar_of_schema
from moerun.engine.tool_calls import ToolForm, ToolReader
from moerun.errors import UsageError


def grammar_of(request: GenerationRequest) -> str | None:
    """Return the grammar of the content, checked; None for any text."""
    source = request.format.source
    match request.format.kind:
        case FormatKind.TEXT:
            return None
        case FormatKind.JSON:
            return JSON_OBJECT_GRAMMAR
        case FormatKind.SCHEMA:
            return grammar_of_schema(source)
        case FormatKind.GRAMMAR:
            if not source.strip():
                raise UsageError("The grammar is empty.")
            check_grammar(source)
            return source
        case _:
            assert_never(request.format.kind)


def held_to(prompt: ChatPrompt, request: GenerationRequest) -> ChatPrompt:
    """Return a prompt with the grammar of its answer, and the reader of a forced call."""
    tools = _forced(request)
    if not tools:
        return replace(prompt, grammar=grammar_of(request))
    # A form of its own, which every model can be held to and which is certain to be read.
    return replace(
        prompt,
        grammar=grammar_of_call([(tool.name, tool.parameters) for tool in tools]),
        tools=ToolReader(ToolForm.BARE, tools, new_id=new_call_id),
    )


def _forced(request: GenerationRequest) -> tuple[Tool, ...]:
    """Return the tools of which one must be called."""
    choice = request.tool_choice
    if choice.use in (ToolUse.AUTO, ToolUse.NONE):
        return ()
    if not request.tools:
        raise UsageError("A tool must be called, but none is given.")
    if choice.use is ToolUse.REQUIRED:
        return request.tools
    named = tuple(tool for tool in request.tools if tool.name == choice.name)
    if not named:
        names = ", ".join(tool.name for tool in request.tools)
        raise UsageError(f"There is no tool named '{choice.name}'; given are {names}.")
    return named
