"""Answers as OpenAI's API writes them: whole objects, and events of a stream.

Knows: names, the order of a stream's events, errors as objects.
Does not know: how an answer comes about.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Any, Final

from moerun.engine.interface import (
    AnswerPart,
    GenerationResult,
    StopReason,
    TokenLogprob,
    ToolCall,
)
from moerun.server.endpoints import ErrorShape, write_json
from moerun.server.refusals import NOT_FOUND, UNAUTHORIZED, Refusal

SSE: Final = "text/event-stream"
DONE: Final = b"data: [DONE]\n\n"
FINGERPRINT: Final = "fp_moerun"


def event(content: Any) -> bytes:
    """Return one event of a stream."""
    return b"data: " + write_json(content) + b"\n\n"


def error_body(refusal: Refusal) -> Any:
    """Return an error as an object."""
    match refusal.status:
        case status if status == NOT_FOUND:
            kind = "not_found_error"
        case status if status == UNAUTHORIZED:
            kind = "authentication_error"
        case status if status < 500:
            kind = "invalid_request_error"
        case _:
            kind = "api_error"
    error = {"message": refusal.message, "type": kind, "param": None, "code": None}
    return {"error": error}


SHAPE: Final = ErrorShape(body=error_body, piece=lambda refusal: event(error_body(refusal)))


def usage(result: GenerationResult) -> dict[str, Any]:
    """Return the counts of tokens."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.answer_tokens,
        "total_tokens": result.prompt_tokens + result.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": result.reused_tokens},
    }


def finish_reason(result: GenerationResult, *, has_calls: bool) -> str:
    """Return why an answer ended."""
    if result.stop_reason is StopReason.LENGTH:
        return "length"
    return "tool_calls" if has_calls else "stop"


def message_of(part: AnswerPart) -> dict[str, Any]:
    """Return a whole message of the assistant."""
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if part.thinking:
        message["reasoning"] = part.thinking
        message["reasoning_content"] = part.thinking
    if part.tool_calls:
        message["content"] = part.text or None
        message["tool_calls"] = [
            tool_call(call, index) for index, call in enumerate(part.tool_calls)
        ]
    return message


def delta_of(part: AnswerPart, *, first_call: int) -> dict[str, Any]:
    """Return what a part adds; its first tool call has the number `first_call`."""
    delta: dict[str, Any] = {}
    if part.text:
        delta["content"] = part.text
    if part.thinking:
        delta["reasoning"] = part.thinking
        delta["reasoning_content"] = part.thinking
    if part.tool_calls:
        delta["tool_calls"] = [
            tool_call(call, first_call + index) for index, call in enumerate(part.tool_calls)
        ]
    return delta


def tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    """Return a call whose arguments are text."""
    return {
        "id": call.id or f"call_{index}",
        "type": "function",
        "index": index,
        "function": {"name": call.name, "arguments": call.arguments},
    }


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Return the probabilities of a chat's tokens, None where none were asked for."""
    return {"content": [_logprob(each) for each in found], "refusal": None} if found else None


def text_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Return the probabilities of a completion's tokens, in the older form."""
    if not found:
        return None
    offsets, position = [], 0
    for each in found:
        offsets.append(position)
        position += len(each.text)
    return {
        "tokens": [each.text for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [{top.text: top.logprob for top in each.top} for each in found],
        "text_offset": offsets,
    }


def vector(values: Sequence[float], *, as_base64: bool) -> Any:
    """Return a vector as numbers, or as little-endian floats in base64."""
    if as_base64:
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)


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
