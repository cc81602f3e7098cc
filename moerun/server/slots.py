"""One loaded model and its requests: turns, the running answers, when it may leave.

Answers are made in threads, since a runner's parent waits in one; parts cross to the event loop
one by one. A turn is given back when the runner has truly ended the answer, not when the client
left, so that there are never more answers in the engine than it has sequences.

Knows: how one answer crosses threads and is cancelled.
Does not know: other models, or HTTP.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from moerun.engine.interface import (
    AnswerPart,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
)
from moerun.errors import EngineCrashed, EngineRefused
from moerun.server.runners import Holding, LoadedModel, LoadWishes, ServedModel

_SPARE_THREADS: Final = 2  # for looks at memory while all turns are taken


class Slot:
    """A loaded model among others. All but the threads' work happens on the event loop."""

    def __init__(self, model: ServedModel, wishes: LoadWishes, loaded: LoadedModel) -> None:
        self.model = model
        self.wishes = wishes
        self.loaded = loaded
        self.users = 0
        self.last_used_s = 0.0
        self.keep_alive_s = 0.0
        self.expires_at_s: float | None = None  # of the loop's clock; None while it is used
        self.timer: asyncio.TimerHandle | None = None
        self.is_leaving = False
        self.has_failed = False
        self.held: tuple[Holding, ...] = ()
        self.turns = asyncio.Semaphore(max(1, loaded.sequences))
        self.threads = ThreadPoolExecutor(
            max_workers=max(1, loaded.sequences) + _SPARE_THREADS,
            thread_name_prefix=f"model-{loaded.pid}",
        )

    @property
    def is_usable(self) -> bool:
        """Whether it may be given to another request."""
        return not self.is_leaving and not self.has_failed and self.loaded.is_alive


class Lease:
    """The right of one request to one turn of a model; `release` gives it back, once."""

    def __init__(self, slot: Slot, *, on_release: Callable[[Slot], None], load_s: float) -> None:
        self._slot = slot
        self._on_release = on_release
        self._is_released = False
        self._is_working = False
        self.load_s = load_s

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self._slot.loaded

    def release(self) -> None:
        """Give the turn back, at the end of the work that was begun with it."""
        if not self._is_working:
            self._give_back()

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[AnswerPart | GenerationResult, None]:
        """Yield the parts of the answer and at last its result; closing it early cancels."""
        loop = asyncio.get_running_loop()
        loaded, gone = self._slot.loaded, threading.Event()
        number = loaded.reserve_number()
        events: asyncio.Queue[AnswerPart | GenerationResult | Exception] = asyncio.Queue()

        def put(event: AnswerPart | GenerationResult | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        def hand_over(part: AnswerPart) -> None:
            if gone.is_set():
                raise _NobodyListens
            put(part)

        def work() -> None:
            try:
                put(
                    _never_begun()
                    if gone.is_set()
                    else loaded.generate(request, on_part=hand_over, number=number)
                )
            except Exception as error:
                put(error)

        self._run(work)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    self._note_failure(event)
                    raise event
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            gone.set()
            loaded.cancel(number)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return vectors."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[EmbeddingResult] = loop.create_future()

        def settle(found: EmbeddingResult | Exception) -> None:
            if result.done():  # nobody waits any more
                return
            if isinstance(found, Exception):
                result.set_exception(found)
            else:
                result.set_result(found)

        def work() -> None:
            found: EmbeddingResult | Exception
            try:
                found = self._slot.loaded.embed(request)
            except Exception as error:
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, found)

        self._run(work)
        try:
            return await result
        except Exception as error:
            self._note_failure(error)
            raise

    def _run(self, work: Callable[[], None]) -> None:
        """Do the work in a thread; the turn comes back when it has ended."""
        assert not self._is_working, "a lease is for one answer"
        self._is_working = True
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._slot.threads, work)
        future.add_done_callback(lambda _: self._give_back())

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, EngineCrashed):
            self._slot.has_failed = True

    def _give_back(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._on_release(self._slot)


class _NobodyListens(Exception):
    """Raised into a runner's call whose client has gone; it ends the answer there."""


def _never_begun() -> EngineRefused:
    return EngineRefused("The client left before the answer was begun.")
