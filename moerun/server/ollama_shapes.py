"""Answers as Ollama's API writes them.

Every chunk names model and moment; the last one says why it is the last, with six figures.

Knows: names, nanoseconds, and that nothing is ever null.
Does not know: how an answer comes about.
"""

import json
from typing import Any

from moerun.engine.interface import (
    AnswerPart,
    GenerationResult,
    StopReason,
    TokenLogprob,
    ToolCall,
)
from moerun.server.backend import Answered
from moerun.server.durations import moment, nanoseconds
from moerun.server.endpoints import ErrorShape, write_json
from moerun.server.refusals import Refusal

NDJSON: str = "application/x-ndjson"


def line(content: Any) -> bytes:
    """Return one line of a stream."""
    return write_json(content) + b"\n"


def error_body(refusal: Refusal) -> Any:
    """Return an error: a text under one key."""
    return {"error": refusal.message}


SHAPE = ErrorShape(body=error_body, piece=lambda refusal: line(error_body(refusal)))


def head(model: str, now_s: float) -> dict[str, Any]:
    """Return what every chunk begins with."""
    return {"model": model, "created_at": moment(now_s)}


def chat_chunk(model: str, part: AnswerPart, now_s: float) -> dict[str, Any]:
    """Return a part of a chat."""
    chunk = {**head(model, now_s), "message": message_of(part), "done": False}
    if part.logprobs:
        chunk["logprobs"] = [_logprob(each) for each in part.logprobs]
    return chunk


def generate_chunk(model: str, part: AnswerPart, now_s: float) -> dict[str, Any]:
    """Return a part of a generated text."""
    chunk = {**head(model, now_s), "response": part.text, "done": False}
    if part.thinking:
        chunk["thinking"] = part.thinking
    if part.tool_calls:
        chunk["tool_calls"] = [tool_call(call) for call in part.tool_calls]
    if part.logprobs:
        chunk["logprobs"] = [_logprob(each) for each in part.logprobs]
    return chunk


def message_of(part: AnswerPart) -> dict[str, Any]:
    """Return an assistant's message, whole or in part."""
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if part.thinking:
        message["thinking"] = part.thinking
    if part.tool_calls:
        message["tool_calls"] = [tool_call(call) for call in part.tool_calls]
    return message


def tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a call whose arguments are an object; what is none goes under one name."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments
    if not isinstance(arguments, dict):
        arguments = {"value": arguments}
    named = {"function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **named} if call.id else named


def ending(answered: Answered) -> dict[str, Any]:
    """Return what the last chunk says."""
    result = answered.result
    return {
        "done": True,
        "done_reason": done_reason(result),
        "total_duration": nanoseconds(answered.total_s),
        "load_duration": nanoseconds(answered.load_s),
        "prompt_eval_count": result.prompt_tokens,
        "prompt_eval_duration": nanoseconds(result.prompt_s),
        "eval_count": result.answer_tokens,
        "eval_duration": nanoseconds(result.answer_s),
    }


def done_reason(result: GenerationResult) -> str:
    """Return why an answer ended; one that was cancelled is told to nobody."""
    return "length" if result.stop_reason is StopReason.LENGTH else "stop"


def joined(parts: list[AnswerPart]) -> AnswerPart:
    """Return several parts as one."""
    return AnswerPart(
        text="".join(part.text for part in parts),
        thinking="".join(part.thinking for part in parts),
        tool_calls=tuple(call for part in parts for call in part.tool_calls),
        logprobs=tuple(each for part in parts for each in part.logprobs),
    )


def _logprob(chosen: TokenLogprob) -> dict[str, Any]:
    return {
        "token": chosen.text,
        "logprob": chosen.logprob,
        "bytes": list(chosen.token_bytes),
        "top_logprobs": [
            {"token": each.text, "logprob": each.logprob, "bytes": list(each.token_bytes)}
            for each in chosen.top
        ],
    }
