"""A runner and a loader without processes, and a server of them on a real socket."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
    StopReason,
    Tool,
    ToolCall,
    ToolUse,
)
from moerun.errors import DoesNotFit, EngineCrashed, UsageError
from moerun.experts.counters import StreamingSample
from moerun.machine.description import HOST, DeviceId
from moerun.server.app import make_app
from moerun.server.backend import Backend
from moerun.server.facts import FactsReader, ModelFacts
from moerun.server.listening import Address, open_socket, url_of
from moerun.server.management import Fetch, ManagementApi, fetch_by_name
from moerun.server.refusals import NOT_FOUND, Refused
from moerun.server.runners import Holding, LoadWishes, ServedModel
from moerun.server.scheduler import SchedulePolicy, Scheduler
from moerun.server.security import Access, Guard
from moerun.server.serving import make_server
from moerun.server.shelf import Shelf, checked_name, tagged
from moerun.store.installed import InstalledModel
from moerun.store.own_store import OwnStore

MODELS = ("alpha", "beta", "gamma")


class FakeRunner:
    """Answers by the last word of its prompt.

    `echo TEXT` gives the text word by word, `forever` ticks until it is cancelled, `crash` dies,
    `think` thinks first, `call` calls the first tool.
    """

    def __init__(self, name: str, context_tokens: int, sequences: int, size_bytes: int) -> None:
        self.name = name
        self.context_tokens = context_tokens
        self.sequences = sequences
        self.load_s = 0.01
        self.capabilities = tuple(Capability)
        self.mode = "nowhere"
        self.pid = 1
        self.is_alive = True
        self.is_closed = False
        self.size_bytes = size_bytes
        self.most_at_once = 0
        self.now_at_once = 0
        self.cancelled: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.requests: list[GenerationRequest] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def holdings(self) -> tuple[Holding, ...]:
        return (Holding(device=HOST, size_bytes=self.size_bytes),)

    def streaming(self) -> StreamingSample | None:
        return None

    def reserve_number(self) -> int:
        return next(self._numbers)

    def generate(
        self, request: GenerationRequest, *, on_part: Callable[[AnswerPart], None], number: int
    ) -> GenerationResult:
        with self._lock:
            self.now_at_once += 1
            self.most_at_once = max(self.most_at_once, self.now_at_once)
            self.requests.append(request)
        self.begun.release()
        try:
            return self._answer(request, on_part, number)
        finally:
            with self._lock:
                self.now_at_once -= 1

    def _answer(
        self, request: GenerationRequest, on_part: Callable[[AnswerPart], None], number: int
    ) -> GenerationResult:
        prompt = request.messages[-1].content if request.messages else request.prompt
        command, _, rest = prompt.partition(" ")
        words = 0
        match command:
            case "crash":
                self.is_alive = False
                raise EngineCrashed("The runner died.", log_tail="")
            case "late":
                on_part(AnswerPart(text="before "))
                self.is_alive = False
                raise EngineCrashed("The runner died.", log_tail="")
            case "bug":
                raise ZeroDivisionError("a secret of the inside")
            case "bad":
                raise UsageError("The schema cannot be had.")
            case "forever":
                while number not in self.cancelled and not self.is_closed:
                    on_part(AnswerPart(text="tick "))
                    words += 1
                    time.sleep(0.001)
                return a_result(words, StopReason.CANCELLED)
            case "silent":  # as in a long prompt: nothing comes that a send could fail on
                while number not in self.cancelled and not self.is_closed:
                    time.sleep(0.001)
                return a_result(words, StopReason.CANCELLED)
            case "think":
                on_part(AnswerPart(thinking="hm "))
            case "call" if request.tools and request.tool_choice.use is not ToolUse.NONE:
                on_part(AnswerPart(tool_calls=(a_call(request.tools[0]),)))
        for word in rest.split():
            on_part(AnswerPart(text=word + " "))
            words += 1
        return a_result(words, StopReason.END)

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        last = 0.5 if request.normalises else 0.25
        vectors = tuple((float(len(text)), last) for text in request.texts)
        return EmbeddingResult(vectors=vectors, prompt_tokens=3, total_s=0.25)

    def cancel(self, number: int) -> None:
        self.cancelled.add(number)

    def close(self) -> None:
        self.is_closed = True
        self.is_alive = False


class FakeLoader:
    """Loads without memory: models have the sizes in `sizes_bytes`, the machine `total_bytes`."""

    runner: type[FakeRunner] = FakeRunner

    def __init__(
        self, *, total_bytes: int = 1000, sizes: Mapping[str, int] | None = None, sequences: int = 2
    ) -> None:
        self.total_bytes = total_bytes
        self.sizes = dict.fromkeys(MODELS, 100) if sizes is None else sizes
        self.sequences = sequences
        self.loaded: list[FakeRunner] = []
        self.delay = threading.Event()
        self.delay.set()

    @property
    def alive(self) -> list[FakeRunner]:
        return [runner for runner in self.loaded if not runner.is_closed]

    def room(self) -> Mapping[DeviceId, int]:
        return {HOST: self.total_bytes - sum(runner.size_bytes for runner in self.alive)}

    def needs(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> Mapping[DeviceId, int]:
        size_bytes = self.sizes[model.path]
        if size_bytes > room[HOST]:
            raise DoesNotFit(f"{model.name} takes {size_bytes} and {room[HOST]} are free.")
        return {HOST: size_bytes}

    def load(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> FakeRunner:
        self.delay.wait(10)
        assert self.sizes[model.path] <= room[HOST], "loaded where there is no room"
        context_tokens = min(wishes.context_tokens or 100, 4096)
        runner = self.runner(model.path, context_tokens, self.sequences, self.sizes[model.path])
        self.loaded.append(runner)
        return runner


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeShelf:
    """Models by name alone."""

    names: tuple[str, ...] = MODELS

    def find(self, name: str) -> ServedModel:
        bare = checked_name(name).removesuffix(":latest")
        if bare not in self.names:
            raise Refused(f"model '{name}' not found", status=NOT_FOUND)
        return ServedModel(name=tagged(bare), path=bare, modified_at_s=1_000_000.0)

    def installed(self, name: str) -> InstalledModel:
        raise Refused(f"model '{name}' is none of files", status=NOT_FOUND)

    def all(self) -> tuple[ServedModel, ...]:
        return tuple(self.find(name) for name in self.names)


class FakeFacts(FactsReader):
    """Every model can do everything, but gamma, which only makes vectors."""

    def facts_of(self, path: str) -> ModelFacts:
        capabilities = (Capability.EMBEDDING,) if path == "gamma" else tuple(Capability)
        if path == "beta":
            capabilities = (Capability.COMPLETION,)
        return ModelFacts(
            digest="d" * 64,
            size_bytes=123,
            architecture="fake",
            parameter_count=6_510_000,
            quantization="Q8_0",
            train_context_tokens=4096,
            embedding_length=2,
            template="{{ messages }}",
            license="",
            capabilities=capabilities,
            metadata=(("general.architecture", "fake"), ("fake.context_length", 4096)),
        )


def a_result(words: int, reason: StopReason) -> GenerationResult:
    return GenerationResult(
        stop_reason=reason,
        prompt_tokens=7,
        reused_tokens=2,
        answer_tokens=words,
        prompt_s=0.5,
        answer_s=1.5,
        seed=7,
    )


def a_call(tool: Tool) -> ToolCall:
    return ToolCall(name=tool.name, arguments='{"city": "Bern"}', id="call_1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeServer:
    """A server that listens, and what is behind it."""

    url: str
    loader: FakeLoader
    host: str
    port: int


@contextlib.contextmanager
def serving(
    *,
    loader: FakeLoader | None = None,
    access: Access | None = None,
    policy: SchedulePolicy | None = None,
    fetch: Fetch = fetch_by_name,
    store: OwnStore | None = None,
    shelf: Shelf | None = None,
) -> Iterator[FakeServer]:
    """Serve fakes on a free port of the loopback, in a thread; all is over at the end."""
    loader = FakeLoader() if loader is None else loader
    with open_socket(Address(host="127.0.0.1", port=0)) as listening:
        ready, loops = threading.Event(), []

        async def run() -> None:
            scheduler = Scheduler(loader, policy)
            backend = Backend(shelf=shelf or FakeShelf(), scheduler=scheduler, facts=FakeFacts())
            management = ManagementApi(backend, store=store, fetch=fetch)
            server = make_server(Guard(make_app(backend, management), access or Access()))
            loops.append((asyncio.get_running_loop(), server))
            ready.set()
            await server.serve(sockets=[listening])

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="server")
        thread.start()
        assert ready.wait(10)
        loop, server = loops[0]
        host, port = listening.getsockname()[:2]
        try:
            yield FakeServer(url=url_of(listening), loader=loader, host=host, port=port)
        finally:
            loop.call_soon_threadsafe(setattr, server, "should_exit", True)
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"
            assert not loader.alive, "a runner was left behind"
