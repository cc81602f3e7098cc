"""What every endpoint works with: models, facts, the scheduler, the wall clock.

Knows: how an asked-for answer becomes a lease, and which capabilities it needs.
Does not know: the shape of any request.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
    Thinking,
)
from moerun.runner.carried import carried_by
from moerun.server.facts import FactsReader, ModelFacts
from moerun.server.refusals import Refused
from moerun.server.runners import LoadWishes, ServedModel
from moerun.server.scheduler import Scheduler
from moerun.server.shelf import Shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An answer that is asked for, whatever API asks."""

    model: ServedModel
    request: GenerationRequest
    wishes: LoadWishes
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The end of an answer: its result, and how long its model was loaded and waited for."""

    result: GenerationResult
    load_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The rooms behind the endpoints. `now_s` is the wall clock."""

    shelf: Shelf
    scheduler: Scheduler
    facts: FactsReader = field(default_factory=FactsReader)
    now_s: Callable[[], float] = time.time

    async def find(self, name: str) -> ServedModel:
        """Return the model of a name, its header read; Refused with 404 when there is none.

        Disks may be slow, so all of that happens in a thread.
        """

        def look() -> ServedModel:
            model = self.shelf.find(name)
            self.facts_of(model)
            return model

        return await asyncio.to_thread(look)

    def facts_of(self, model: ServedModel) -> ModelFacts:
        """Return what a model's header says."""
        return self.facts.facts_of(model.path)

    async def answer(self, order: Order) -> AsyncGenerator[AnswerPart | Answered, None]:
        """Yield the parts of an answer and its end; closing it early cancels the answer.

        What the model carries goes with it here, since models of the same weights share one load.
        """
        begun_s = time.monotonic()
        request = carried_by(order.model.profile).applied_to(order.request)
        lease = await self.scheduler.acquire(order.model, order.wishes, order.keep_alive_s)
        try:
            async with aclosing(lease.generate(request)) as events:
                async for event in events:
                    if isinstance(event, GenerationResult):
                        total_s = time.monotonic() - begun_s
                        yield Answered(result=event, load_s=lease.load_s, total_s=total_s)
                    else:
                        yield event
        finally:
            lease.release()

    async def load(
        self, model: ServedModel, wishes: LoadWishes, keep_alive_s: float | None
    ) -> float:
        """Bring a model into memory and return how long that took."""
        lease = await self.scheduler.acquire(model, wishes, keep_alive_s)
        lease.release()
        return lease.load_s

    async def embed(
        self,
        model: ServedModel,
        request: EmbeddingRequest,
        wishes: LoadWishes,
        keep_alive_s: float | None,
    ) -> tuple[EmbeddingResult, float]:
        """Return vectors, and how long loading took."""
        lease = await self.scheduler.acquire(model, wishes, keep_alive_s)
        try:
            return await lease.embed(request), lease.load_s
        finally:
            lease.release()

    def require(self, model: ServedModel, capability: Capability, *, verb: str) -> None:
        """Refuse what a model cannot do, in ollama's words."""
        if capability not in self.facts_of(model).capabilities:
            raise Refused(f'"{model.name}" does not support {verb}')

    def require_thinking(self, model: ServedModel, think: Thinking | None) -> None:
        """Refuse to have a model think that cannot."""
        if think is not None and think is not Thinking.OFF:
            self.require(model, Capability.THINKING, verb="thinking")
