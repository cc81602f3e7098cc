"""Requests of Ollama's API as values: options, messages, tools, formats.

Knows: the names of fields and options, their kinds, which are accepted and change nothing.
Does not know: models, answers, or HTTP.
"""

import json
from typing import Any, Final

from moerun.engine.interface import (
    AnswerFormat,
    FormatKind,
    GenerationRequest,
    Message,
    Overflow,
    Sampling,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolUse,
)
from moerun.server.bodies import Fields
from moerun.server.durations import parse_keep_alive
from moerun.server.refusals import Refused
from moerun.server.runners import LoadWishes

_ROLES: Final = ("system", "user", "assistant", "tool")
_MOST_STOPS: Final = 64
_MOST_TOOLS: Final = 256
_MOST_MESSAGES: Final = 10_000
_MOST_TOP_LOGPROBS: Final = 20
_LARGEST_CONTEXT_TOKENS: Final = 1 << 27
_LARGEST_SEED: Final = (1 << 31) - 1
# More tokens than any answer gets: the engine ends one after some contexts' worth.
_ENDLESS_TOKENS: Final = (1 << 31) - 1
_FILLS_THE_CONTEXT: Final = -2


def read_sampling(options: Fields) -> Sampling:
    """Return how tokens are chosen; a negative seed draws a fresh one."""
    seed = options.integer("seed")
    return Sampling(
        temperature=bounded(options, "temperature", 0.0, 100.0),
        top_k=whole(options, "top_k", -1, 1_000_000),
        top_p=bounded(options, "top_p", 0.0, 1.0),
        min_p=bounded(options, "min_p", 0.0, 1.0),
        typical_p=bounded(options, "typical_p", 0.0, 1.0),
        repeat_penalty=bounded(options, "repeat_penalty", 0.0, 100.0),
        repeat_last_tokens=whole(options, "repeat_last_n", -1, _LARGEST_CONTEXT_TOKENS),
        presence_penalty=bounded(options, "presence_penalty", -100.0, 100.0),
        frequency_penalty=bounded(options, "frequency_penalty", -100.0, 100.0),
        mirostat=whole(options, "mirostat", 0, 2),
        mirostat_tau=bounded(options, "mirostat_tau", 0.0, 100.0),
        mirostat_eta=bounded(options, "mirostat_eta", 0.0, 100.0),
        seed=None if seed is None or seed < 0 else seed & _LARGEST_SEED,
    )


def read_wishes(options: Fields) -> LoadWishes:
    """Return what of loading the options ask for; 0 and negative numbers leave it open."""
    return LoadWishes(
        context_tokens=_positive(options, "num_ctx", _LARGEST_CONTEXT_TOKENS),
        batch_tokens=_positive(options, "num_batch", 1 << 20),
        threads=_positive(options, "num_thread", 1024),
        gpu_layers=0 if options.integer("num_gpu") == 0 else None,
    )


def read_options(body: Fields) -> Fields:
    """Return the object of options."""
    return body.child("options")


def read_keep_alive(body: Fields) -> float | None:
    """Return seconds, None when nothing was said."""
    if not body.has("keep_alive"):
        return None
    try:
        return parse_keep_alive(body.values["keep_alive"])
    except ValueError as error:
        raise Refused(str(error)) from None


def read_stop(options: Fields) -> tuple[str, ...]:
    """Return the strings that end an answer; empty ones would end it at once, and are left out."""
    stop = options.texts("stop")
    if len(stop) > _MOST_STOPS:
        raise Refused(f"stop has {len(stop)} texts; at most {_MOST_STOPS} are taken")
    return tuple(text for text in stop if text)


def read_maximum(options: Fields) -> int | None:
    """Return the most tokens of an answer, None where nothing was said.

    -1 is no limit, whatever the model's own is; -2 is none but the context.
    """
    maximum = options.integer("num_predict")
    return _ENDLESS_TOKENS if maximum is not None and maximum < 0 else maximum


def read_overflow(body: Fields, options: Fields) -> Overflow:
    """Return whether an answer goes on when the context is full."""
    fills = options.integer("num_predict") == _FILLS_THE_CONTEXT
    return Overflow.SHIFT if body.flag("shift", default=True) and not fills else Overflow.END


def read_keep(options: Fields) -> int | None:
    """Return how many tokens of the prompt's head survive a shift; -1 is all of them."""
    return whole(options, "num_keep", -1, _LARGEST_CONTEXT_TOKENS)


def read_format(value: Any) -> AnswerFormat:
    """Return what `format` asks for: json, or a JSON schema."""
    match value:
        case None | "":
            return AnswerFormat()
        case "json":
            return AnswerFormat(kind=FormatKind.JSON)
        case dict():
            return AnswerFormat(kind=FormatKind.SCHEMA, source=json.dumps(value))
        case _:
            raise Refused('format must be "json" or a JSON schema')


def read_think(value: Any) -> Thinking | None:
    """Return how much to think, None when it is left to the model."""
    match value:
        case None:
            return None
        case bool():
            return Thinking.ON if value else Thinking.OFF
        case "low" | "medium" | "high" | "max":
            return Thinking(value)
        case "true" | "false":
            return Thinking.ON if value == "true" else Thinking.OFF
        case _:
            raise Refused('think must be true, false, "low", "medium", "high" or "max"')


def read_messages(body: Fields) -> tuple[Message, ...]:
    """Return a conversation; images are refused, since the models here read text."""
    given = body.objects("messages")
    if len(given) > _MOST_MESSAGES:
        raise Refused(f"{len(given):,} messages; at most {_MOST_MESSAGES:,} are taken")
    return tuple(_read_message(message) for message in given)


def read_tools(body: Fields) -> tuple[Tool, ...]:
    """Return the functions that a model may ask for."""
    given = body.objects("tools")
    if len(given) > _MOST_TOOLS:
        raise Refused(f"{len(given):,} tools; at most {_MOST_TOOLS} are taken")
    return tuple(_read_tool(tool) for tool in given)


def read_logprobs(body: Fields) -> int | None:
    """Return how many of the likeliest tokens are told, None for no probabilities at all."""
    top = whole(body, "top_logprobs", 0, _MOST_TOP_LOGPROBS)
    return (top or 0) if body.flag("logprobs", default=False) else None


def refuse_images(body: Fields, model: str) -> None:
    """Refuse pictures, which no model here can see."""
    if body.has("images") and body.items("images"):
        raise Refused(f'"{model}" does not support images: it reads text alone')


def read_chat(body: Fields) -> GenerationRequest:
    """Return what a chat asks for."""
    options = read_options(body)
    tools = read_tools(body)
    return GenerationRequest(
        messages=read_messages(body),
        sampling=read_sampling(options),
        maximum_tokens=read_maximum(options),
        stop=read_stop(options),
        format=read_format(body.values.get("format")),
        tools=tools,
        tool_choice=ToolChoice(use=ToolUse.AUTO if tools else ToolUse.NONE),
        think=read_think(body.values.get("think")),
        overflow=read_overflow(body, options),
        keep_tokens=read_keep(options),
        truncates=body.flag("truncate", default=True),
        top_logprobs=read_logprobs(body),
    )


def read_generate(body: Fields) -> GenerationRequest:
    """Return what a generate asks for: a conversation of one turn, or raw text."""
    options, prompt = read_options(body), body.text("prompt")
    is_raw, suffix = body.flag("raw", default=False), body.text("suffix")
    if is_raw and (body.text("system") or body.text("template") or body.items("context")):
        raise Refused("raw mode does not support template, system, or context")
    if body.text("template"):
        raise Refused(
            "a template of the request is not supported; send raw text with raw: true, "
            "or messages to /api/chat"
        )
    if body.has("context") and body.items("context"):
        raise Refused("context is not supported; send the conversation to /api/chat")
    messages: tuple[Message, ...] = ()
    if not is_raw and not suffix:
        system = body.text("system")
        messages = ((Message(role="system", content=system),) if system else ()) + (
            Message(role="user", content=prompt),
        )
    return GenerationRequest(
        messages=messages,
        prompt="" if messages else prompt,
        suffix=suffix,
        sampling=read_sampling(options),
        maximum_tokens=read_maximum(options),
        stop=read_stop(options),
        format=read_format(body.values.get("format")),
        think=read_think(body.values.get("think")),
        overflow=read_overflow(body, options),
        keep_tokens=read_keep(options),
        truncates=body.flag("truncate", default=True),
        top_logprobs=read_logprobs(body),
    )


def bounded(options: Fields, name: str, least: float, most: float) -> float | None:
    """Return a number between two others; Refused outside."""
    value = options.number(name)
    if value is not None and not least <= value <= most:
        raise Refused(f"{options.where}{name} must be between {least:g} and {most:g}")
    return value


def whole(options: Fields, name: str, least: int, most: int) -> int | None:
    """Return a whole number between two others; Refused outside."""
    value = options.integer(name)
    if value is not None and not least <= value <= most:
        raise Refused(f"{options.where}{name} must be between {least:,} and {most:,}")
    return value


def _positive(options: Fields, name: str, most: int) -> int | None:
    value = options.integer(name)
    if value is not None and value > most:
        raise Refused(f"{options.where}{name} must be at most {most:,}")
    return value if value is not None and value > 0 else None


def _read_message(message: Fields) -> Message:
    role = message.text("role")
    if role not in _ROLES:
        raise Refused(f"{message.where}role must be one of {', '.join(_ROLES)}")
    if message.items("images"):
        raise Refused(f"{message.where}images: this model does not support images, only text")
    return Message(
        role=role,
        content=message.text("content"),
        thinking=message.text("thinking"),
        tool_calls=tuple(_read_call(call) for call in message.objects("tool_calls")),
        tool_name=message.text("tool_name") or message.text("name"),
        tool_call_id=message.text("tool_call_id"),
    )


def _read_call(call: Fields) -> ToolCall:
    function = call.child("function")
    return ToolCall(
        name=function.needed_text("name"),
        arguments=json.dumps(dict(function.child("arguments").values), ensure_ascii=False),
        id=call.text("id"),
    )


def _read_tool(tool: Fields) -> Tool:
    if tool.text("type", "function") != "function":
        raise Refused(f"{tool.where}type must be function")
    function = tool.child("function")
    return Tool(
        name=function.needed_text("name"),
        description=function.text("description"),
        parameters=json.dumps(dict(function.child("parameters").values), ensure_ascii=False),
    )
