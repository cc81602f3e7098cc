"""Requests of OpenAI's API as values.

Knows: names of fields, roles, parts of content, forms of tools and formats.
Does not know: models, answers, or HTTP.
"""

import json
from typing import Any, Final

from moerun.engine.interface import (
    AnswerFormat,
    FormatKind,
    GenerationRequest,
    Message,
    Sampling,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolUse,
)
from moerun.server.bodies import Fields
from moerun.server.ollama_requests import bounded, read_stop, read_tools, whole
from moerun.server.refusals import Refused

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_EFFORTS: Final = {
    "none": Thinking.OFF,
    "minimal": Thinking.LOW,
    "low": Thinking.LOW,
    "medium": Thinking.MEDIUM,
    "high": Thinking.HIGH,
    "xhigh": Thinking.MAX,
    "max": Thinking.MAX,
}
_MOST_TOP_LOGPROBS: Final = 20
_MOST_TOKENS: Final = 1 << 27


def read_chat(body: Fields) -> GenerationRequest:
    """Return what a chat asks for."""
    _check_count(body)
    messages = tuple(_read_message(each) for each in body.objects("messages"))
    if not messages:
        raise Refused("messages must hold at least one message")
    tools = read_tools(body)
    return GenerationRequest(
        messages=messages,
        sampling=_read_sampling(body),
        maximum_tokens=_read_maximum(body, "max_completion_tokens", "max_tokens"),
        stop=read_stop(body),
        format=_read_format(body),
        tools=tools,
        tool_choice=_read_choice(body.values.get("tool_choice"), tools),
        think=_read_effort(body),
        top_logprobs=_read_logprobs(body),
    )


def read_completion(body: Fields) -> GenerationRequest:
    """Return what a completion of raw text asks for."""
    _check_count(body)
    if body.flag("echo", default=False):
        raise Refused("echo is not supported; put the prompt before the answer yourself")
    prompt = body.values.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise Refused("prompt must be one text that is not empty")
    return GenerationRequest(
        prompt=prompt,
        suffix=body.text("suffix"),
        sampling=_read_sampling(body),
        maximum_tokens=_read_maximum(body, "max_tokens"),
        stop=read_stop(body),
        top_logprobs=whole(body, "logprobs", 0, _MOST_TOP_LOGPROBS),
    )


def _check_count(body: Fields) -> None:
    for name in ("n", "best_of"):
        count = body.integer(name)
        if count is not None and count != 1:
            raise Refused(f"{name} must be 1: one answer is made for each request")


def _read_sampling(body: Fields) -> Sampling:
    seed = body.integer("seed")
    return Sampling(
        temperature=bounded(body, "temperature", 0.0, 2.0),
        top_p=bounded(body, "top_p", 0.0, 1.0),
        top_k=whole(body, "top_k", -1, 1_000_000),
        min_p=bounded(body, "min_p", 0.0, 1.0),
        frequency_penalty=bounded(body, "frequency_penalty", -2.0, 2.0),
        presence_penalty=bounded(body, "presence_penalty", -2.0, 2.0),
        logit_bias=_read_bias(body.child("logit_bias")),
        seed=None if seed is None else seed & 0x7FFFFFFF,
    )


def _read_bias(bias: Fields) -> tuple[tuple[int, float], ...]:
    found = []
    for name in bias.values:
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise Refused("logit_bias names tokens by their numbers")
        found.append((int(name), bounded(bias, name, -100.0, 100.0) or 0.0))
    return tuple(found)


def _read_maximum(body: Fields, *names: str) -> int | None:
    for name in names:
        found = whole(body, name, 0, _MOST_TOKENS)
        if found is not None:
            return found
    return None


def _read_logprobs(body: Fields) -> int | None:
    top = whole(body, "top_logprobs", 0, _MOST_TOP_LOGPROBS)
    return (top or 0) if body.flag("logprobs", default=False) else None


def _read_format(body: Fields) -> AnswerFormat:
    form = body.child("response_format")
    match form.text("type", "text"):
        case "text":
            return AnswerFormat()
        case "json_object":
            return AnswerFormat(kind=FormatKind.JSON)
        case "json_schema":
            schema = form.child("json_schema").child("schema").values
            if not schema:
                raise Refused("response_format.json_schema.schema is required")
            return AnswerFormat(kind=FormatKind.SCHEMA, source=json.dumps(dict(schema)))
        case _:
            raise Refused("response_format.type must be text, json_object or json_schema")


def _read_choice(value: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    match value:
        case None:
            return ToolChoice(use=ToolUse.AUTO if tools else ToolUse.NONE)
        case "auto" | "none" | "required":
            if value == "required" and not tools:
                raise Refused("tool_choice is required, but there are no tools")
            return ToolChoice(use=ToolUse(value) if tools else ToolUse.NONE)
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in {tool.name for tool in tools}:
                raise Refused(f"tool_choice names '{name[:80]}', which is none of the tools")
            return ToolChoice(use=ToolUse.NAMED, name=name)
        case _:
            raise Refused("tool_choice must be auto, none, required or name a function")


def _read_effort(body: Fields) -> Thinking | None:
    effort = body.text("reasoning_effort") or body.child("reasoning").text("effort")
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise Refused(f"reasoning_effort must be one of {', '.join(_EFFORTS)}")
    return _EFFORTS[effort]


def _read_message(message: Fields) -> Message:
    role = message.text("role")
    if role not in _ROLES:
        raise Refused(f"{message.where}role must be one of {', '.join(_ROLES)}")
    thinking = message.text("reasoning_content") or message.text("reasoning")
    return Message(
        role=_ROLES[role],
        content=_read_content(message),
        thinking=thinking,
        tool_calls=tuple(_read_call(call) for call in message.objects("tool_calls")),
        tool_name=message.text("name"),
        tool_call_id=message.text("tool_call_id"),
    )


def _read_content(message: Fields) -> str:
    content = message.values.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in message.objects("content"):
        kind = part.text("type")
        if kind not in ("text", "refusal"):
            raise Refused(f"{part.where}type: this model reads text alone, no '{kind[:40]}'")
        texts.append(part.text(kind))
    return "\n".join(texts)


def _read_call(call: Fields) -> ToolCall:
    function = call.child("function")
    arguments = function.text("arguments") or "{}"
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise function.wrong("arguments", "a JSON object as text")
    return ToolCall(name=function.needed_text("name"), arguments=arguments, id=call.text("id"))
