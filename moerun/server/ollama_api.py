"""Ollama's API: answers, vectors, and what is known of models.

Knows: each endpoint's fields, forms (load, unload) and words.
Does not know: how an answer is made, or who may ask.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from moerun import __version__
from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    GenerationRequest,
)
from moerun.errors import ModelError
from moerun.machine.description import HOST
from moerun.server import ollama_requests, ollama_shapes
from moerun.server.backend import Answered, Backend, Order
from moerun.server.durations import expiry, moment, nanoseconds
from moerun.server.endpoints import Call, Reply, StreamReply
from moerun.server.option_notes import OptionNotes
from moerun.server.refusals import Refused
from moerun.server.runners import LoadWishes, ServedModel
from moerun.server.shelf import tagged
from moerun.server.showing import shown
from moerun.server.slots import Slot

# The level of Ollama's API that is spoken, for clients that check it; moerun's own version stands
# beside it. Three whole numbers: Open WebUI makes integers of them.
API_VERSION: Final = "0.12.6"
_MOST_TEXTS: Final = 2048

ChunkOf = Callable[[str, AnswerPart, float], dict[str, Any]]


class OllamaApi:
    """The endpoints that need no store of their own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._notes = OptionNotes()

    async def version(self, call: Call) -> Reply:
        """Tell the API's version and moerun's."""
        return Reply(content={"version": API_VERSION, "moerun": __version__})

    async def chat(self, call: Call) -> Reply | StreamReply:
        """Go on with a conversation."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        request = ollama_requests.read_chat(body)
        if not request.messages:
            message = {"message": {"role": "assistant", "content": ""}}
            return await self._load_or_unload(model, call, message)
        self._backend.require(model, Capability.COMPLETION, verb="chat")
        if request.tools:
            self._backend.require(model, Capability.TOOLS, verb="tools")
        return await self._answer(model, request, call, ollama_shapes.chat_chunk)

    async def generate(self, call: Call) -> Reply | StreamReply:
        """Answer a prompt, or go on with raw text."""
        body = call.fields
        name = body.needed_text("model")
        model = await self._backend.find(name)
        ollama_requests.refuse_images(body, name)
        request = ollama_requests.read_generate(body)
        if not body.text("prompt") and not request.suffix:
            return await self._load_or_unload(model, call, {"response": ""})
        self._backend.require(model, Capability.COMPLETION, verb="generate")
        if request.suffix:
            self._backend.require(model, Capability.INSERT, verb="insert")
        return await self._answer(model, request, call, ollama_shapes.generate_chunk)

    async def embed(self, call: Call) -> Reply:
        """Turn texts into vectors of length one."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        texts = body.texts("input")
        if len(texts) > _MOST_TEXTS:
            raise Refused(f"input has {len(texts):,} texts; at most {_MOST_TEXTS:,} are taken")
        dimensions = ollama_requests.whole(body, "dimensions", 0, 1_000_000)
        request = EmbeddingRequest(
            texts=texts,
            truncates=body.flag("truncate", default=True),
            dimensions=dimensions or None,
        )
        wishes = self._wishes(model, call)
        keep_alive_s = ollama_requests.read_keep_alive(body)
        reply: dict[str, Any] = {"model": tagged(model.name), "embeddings": []}
        if not texts:
            load_s = await self._backend.load(model, wishes, keep_alive_s)
            counts = {"total_duration": nanoseconds(load_s), "prompt_eval_count": 0}
            return Reply(content={**reply, **counts, "load_duration": nanoseconds(load_s)})
        result, load_s = await self._backend.embed(model, request, wishes, keep_alive_s)
        reply["embeddings"] = [list(vector) for vector in result.vectors]
        reply["total_duration"] = nanoseconds(load_s + result.total_s)
        reply["load_duration"] = nanoseconds(load_s)
        reply["prompt_eval_count"] = result.prompt_tokens
        return Reply(content=reply)

    async def embeddings(self, call: Call) -> Reply:
        """Turn one text into a vector, in the older form: as long as the model makes it."""
        body = call.fields
        model = await self._backend.find(body.needed_text("model"))
        wishes = self._wishes(model, call)
        keep_alive_s = ollama_requests.read_keep_alive(body)
        prompt = body.text("prompt")
        if not prompt:
            await self._backend.load(model, wishes, keep_alive_s)
            return Reply(content={"embedding": []})
        request = EmbeddingRequest(texts=(prompt,), normalises=False)
        result, _ = await self._backend.embed(model, request, wishes, keep_alive_s)
        return Reply(content={"embedding": list(result.vectors[0])})

    async def tags(self, call: Call) -> Reply:
        """List every model, the newest first; one that cannot be read is left out."""
        return Reply(content={"models": await asyncio.to_thread(self._rows)})

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for model in self._backend.shelf.all():
            try:
                rows.append(self._row(model))
            except ModelError:
                continue  # `show` tells what is the matter with it
        return rows

    async def ps(self, call: Call) -> Reply:
        """List the models in memory, the one that stays longest first."""
        await self._backend.scheduler.measure()
        slots = self._backend.scheduler.loaded
        return Reply(content={"models": [self._running(slot) for slot in slots]})

    async def show(self, call: Call) -> Reply:
        """Tell all that is known of a model."""
        body = call.fields
        model = await self._backend.find(body.text("model") or body.needed_text("name"))
        is_verbose, system = body.flag("verbose", default=False), body.text("system")
        known = self._backend.facts_of(model)
        reply = await asyncio.to_thread(lambda: shown(model, known, is_verbose=is_verbose))
        if call.request.headers.get("user-agent", "").startswith("GitHubCopilot"):
            reply["model_info"]["general.basename"] = model.name.removesuffix(":latest")
        if system:
            reply["system"] = system
        return Reply(content=reply)

    def _row(self, model: ServedModel) -> dict[str, Any]:
        known = self._backend.facts_of(model)
        return {
            "name": model.name,
            "model": model.name,
            "modified_at": moment(model.modified_at_s),
            "size": known.size_bytes,
            "digest": model.digest or known.digest,
            "details": known.details,
            "capabilities": [capability.value for capability in known.capabilities],
        }

    def _running(self, slot: Slot) -> dict[str, Any]:
        row = self._row(slot.model)
        row.pop("modified_at")
        row.pop("capabilities")
        vram_bytes = sum(each.size_bytes for each in slot.held if each.device != HOST)
        return {
            **row,
            "size": sum(each.size_bytes for each in slot.held),
            "size_vram": vram_bytes,
            "expires_at": expiry(self._backend.now_s(), self._backend.scheduler.left_s(slot)),
            "context_length": slot.loaded.context_tokens,
            "pid": slot.loaded.pid,
        }

    def _wishes(self, model: ServedModel, call: Call) -> LoadWishes:
        options = ollama_requests.read_options(call.fields)
        wishes = ollama_requests.read_wishes(options)
        self._notes.tell(model.name, options)
        return wishes

    async def _load_or_unload(
        self, model: ServedModel, call: Call, content: dict[str, Any]
    ) -> Reply:
        """Load without an answer, or unload where nothing shall be kept."""
        keep_alive_s = ollama_requests.read_keep_alive(call.fields)
        wishes = self._wishes(model, call)
        reply = {**ollama_shapes.head(call.fields.text("model"), self._backend.now_s()), **content}
        reason = "load"
        if keep_alive_s == 0:
            await self._backend.scheduler.unload(model)
            reason = "unload"
        else:
            await self._backend.load(model, wishes, keep_alive_s)
        return Reply(content={**reply, "done": True, "done_reason": reason})

    async def _answer(
        self, model: ServedModel, request: GenerationRequest, call: Call, chunk_of: ChunkOf
    ) -> Reply | StreamReply:
        self._backend.require_thinking(model, request.think)
        order = Order(
            model=model,
            request=request,
            wishes=self._wishes(model, call),
            keep_alive_s=ollama_requests.read_keep_alive(call.fields),
        )
        name = call.fields.text("model")
        if call.fields.flag("stream", default=True):
            pieces = self._lines(name, order, chunk_of)
            return StreamReply(pieces=pieces, content_type=ollama_shapes.NDJSON)
        return await self._whole(name, order, chunk_of)

    async def _lines(
        self, name: str, order: Order, chunk_of: ChunkOf
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._backend.answer(order)) as events:
            async for event in events:
                now_s = self._backend.now_s()
                if isinstance(event, Answered):
                    last = {**chunk_of(name, AnswerPart(), now_s), **ollama_shapes.ending(event)}
                    yield ollama_shapes.line(last)
                else:
                    yield ollama_shapes.line(chunk_of(name, event, now_s))

    async def _whole(self, name: str, order: Order, chunk_of: ChunkOf) -> Reply:
        parts: list[AnswerPart] = []
        ending: dict[str, Any] = {}
        async with aclosing(self._backend.answer(order)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    ending = ollama_shapes.ending(event)
                else:
                    parts.append(event)
        whole = ollama_shapes.joined(parts)
        return Reply(content={**chunk_of(name, whole, self._backend.now_s()), **ending})
