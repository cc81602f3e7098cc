"""OpenAI's API: chats, completions, vectors, the list of models.

Knows: each endpoint's fields, and the order of a stream's events.
Does not know: how an answer is made, or who may ask.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from moerun.engine.interface import AnswerPart, Capability, EmbeddingRequest, Thinking
from moerun.server import openai_requests, openai_shapes
from moerun.server.backend import Answered, Backend, Order
from moerun.server.endpoints import Call, Reply, StreamReply
from moerun.server.ollama_requests import whole
from moerun.server.ollama_shapes import joined
from moerun.server.refusals import Refused
from moerun.server.runners import LoadWishes, ServedModel
from moerun.server.shelf import tagged

_MOST_TEXTS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What all objects of one answer share."""

    is_chat: bool
    id: str
    created: int
    model: str
    wants_usage: bool = False

    def wrap(self, choices: list[dict[str, Any]], *, is_piece: bool) -> dict[str, Any]:
        """Return an object around choices."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if is_piece and self.is_chat else kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": openai_shapes.FINGERPRINT,
            "choices": choices,
        }


class OpenAiApi:
    """The endpoints under `/v1`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def chat(self, call: Call) -> Reply | StreamReply:
        """Go on with a conversation."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        request = openai_requests.read_chat(body)
        self._backend.require(model, Capability.COMPLETION, verb="chat")
        if request.tools:
            self._backend.require(model, Capability.TOOLS, verb="tools")
        if request.think not in (None, Thinking.OFF):
            self._backend.require_thinking(model, request.think)
        order = Order(model=model, request=request, wishes=LoadWishes())
        return await self._answer(order, call, is_chat=True)

    async def completion(self, call: Call) -> Reply | StreamReply:
        """Go on with raw text."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        request = openai_requests.read_completion(body)
        self._backend.require(model, Capability.COMPLETION, verb="completions")
        if request.suffix:
            self._backend.require(model, Capability.INSERT, verb="insert")
        order = Order(model=model, request=request, wishes=LoadWishes())
        return await self._answer(order, call, is_chat=False)

    async def embeddings(self, call: Call) -> Reply:
        """Turn texts into vectors."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        texts, form = body.texts("input"), body.text("encoding_format", "float")
        if not texts or not all(texts):
            raise Refused("input must be a text, or a list of texts, that are not empty")
        if len(texts) > _MOST_TEXTS:
            raise Refused(f"input has {len(texts):,} texts; at most {_MOST_TEXTS:,} are taken")
        if form not in ("float", "base64"):
            raise Refused("encoding_format must be float or base64")
        dimensions = whole(body, "dimensions", 1, 1_000_000)
        request = EmbeddingRequest(texts=texts, truncates=False, dimensions=dimensions)
        result, _ = await self._backend.embed(model, request, LoadWishes(), None)
        rows = [
            {
                "object": "embedding",
                "index": index,
                "embedding": openai_shapes.vector(values, as_base64=form == "base64"),
            }
            for index, values in enumerate(result.vectors)
        ]
        counts = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
        name = body.text("model")
        return Reply(content={"object": "list", "data": rows, "model": name, "usage": counts})

    async def models(self, call: Call) -> Reply:
        """List every model."""
        found = await asyncio.to_thread(self._backend.shelf.all)
        rows = [_model_row(model) for model in found]
        return Reply(content={"object": "list", "data": rows})

    async def model(self, call: Call) -> Reply:
        """Tell of one model."""
        name = str(call.request.path_params["name"])
        return Reply(content=_model_row(await self._backend.find(name)))

    async def _answer(self, order: Order, call: Call, *, is_chat: bool) -> Reply | StreamReply:
        body = call.fields
        frame = _Frame(
            is_chat=is_chat,
            id=f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(self._backend.now_s()),
            model=body.text("model"),
            wants_usage=body.child("stream_options").flag("include_usage", default=False),
        )
        if body.flag("stream", default=False):
            pieces = self._events(frame, order)
            return StreamReply(pieces=pieces, content_type=openai_shapes.SSE)
        return await self._whole(frame, order)

    async def _whole(self, frame: _Frame, order: Order) -> Reply:
        parts: list[AnswerPart] = []
        end: Answered | None = None
        async with aclosing(self._backend.answer(order)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    end = event
                else:
                    parts.append(event)
        assert end is not None, "every answer ends with its result"
        whole_part = joined(parts)
        choice: dict[str, Any] = {"index": 0}
        if frame.is_chat:
            choice["message"] = openai_shapes.message_of(whole_part)
            choice["logprobs"] = openai_shapes.chat_logprobs(whole_part.logprobs)
        else:
            choice["text"] = whole_part.text
            choice["logprobs"] = openai_shapes.text_logprobs(whole_part.logprobs)
        has_calls = bool(whole_part.tool_calls)
        choice["finish_reason"] = openai_shapes.finish_reason(end.result, has_calls=has_calls)
        content = frame.wrap([choice], is_piece=False)
        return Reply(content={**content, "usage": openai_shapes.usage(end.result)})

    async def _events(self, frame: _Frame, order: Order) -> AsyncGenerator[bytes, None]:
        is_first, calls = frame.is_chat, 0
        async with aclosing(self._backend.answer(order)) as events:
            async for event in events:
                if is_first:
                    is_first = False
                    opening = {"role": "assistant", "content": ""}
                    yield _piece(frame, {"delta": opening, "finish_reason": None})
                if not isinstance(event, Answered):
                    yield _piece(frame, _choice_of(frame, event, calls))
                    calls += len(event.tool_calls)
                    continue
                reason = openai_shapes.finish_reason(event.result, has_calls=calls > 0)
                last: dict[str, Any] = {"delta": {}} if frame.is_chat else {"text": ""}
                yield _piece(frame, {**last, "finish_reason": reason})
                if frame.wants_usage:
                    counts = {"usage": openai_shapes.usage(event.result)}
                    yield openai_shapes.event({**frame.wrap([], is_piece=True), **counts})
        yield openai_shapes.DONE


def _choice_of(frame: _Frame, part: AnswerPart, calls: int) -> dict[str, Any]:
    if frame.is_chat:
        logprobs = openai_shapes.chat_logprobs(part.logprobs)
        content: dict[str, Any] = {"delta": openai_shapes.delta_of(part, first_call=calls)}
    else:
        logprobs = openai_shapes.text_logprobs(part.logprobs)
        content = {"text": part.text}
    return {**content, "logprobs": logprobs, "finish_reason": None}


def _piece(frame: _Frame, choice: dict[str, Any]) -> bytes:
    return openai_shapes.event(frame.wrap([{"index": 0, **choice}], is_piece=True))


def _model_row(model: ServedModel) -> dict[str, Any]:
    return {
        "id": tagged(model.name),
        "object": "model",
        "created": int(model.modified_at_s),
        "owned_by": "library",
    }
