"""What a runner asks of an engine, as values and a protocol; a fake in the tests implements it too.

Knows: requests, answers and their counters.
Does not know: llama.cpp, processes, or how an answer is shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from moerun.engine.arguments import BufferReport, EngineArgs
from moerun.planning.plan import Measurements

if TYPE_CHECKING:  # values of this file are read by commands that must start fast
    import numpy
    import numpy.typing


class StopReason(StrEnum):
    """Why an answer ended."""

    END = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; None takes the model's own default, else llama.cpp's.

    `temperature` 0 is greedy. `seed` None draws a fresh one, which the result reports.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation to go on with, or a raw prompt when `messages` is empty.

    `maximum_tokens` None means until the context is full.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = Sampling()
    maximum_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """How an answer went. `reused_tokens` of the prompt were still in the KV cache.

    `notes` say in what the conversation was changed to fit the model's template.
    """

    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int
    prompt_s: float
    answer_s: float
    seed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What loading gave: the buffers of the engine's log, the real context, the time it took.

    `notes` are sentences on what the engine did otherwise than it was asked. `flash_attention`
    says whether it is on, where the log tells; left to the engine it depends on the placement.
    """

    buffers: tuple[BufferReport, ...]
    context_tokens: int
    load_s: float
    engine_version: str
    notes: tuple[str, ...] = ()
    flash_attention: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFile:
    """A part of a model's file that the engine mapped: `size_bytes` at `address`."""

    path: str
    address: int
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The router's choice in one layer: a row of expert numbers for each token, in its order.

    `experts` are the different ones. `rows` and `hidden` are arrays that live only during the
    call: int32 of shape (tokens, experts used), and float32 of shape (tokens, width), the hidden
    state that the router saw, where it was asked for.
    """

    layer: int
    experts: tuple[int, ...]
    rows: "numpy.typing.NDArray[numpy.int32]"
    hidden: "numpy.typing.NDArray[numpy.float32] | None" = None
    weights: "numpy.typing.NDArray[numpy.float32] | None" = None


class ExpertSupplier(Protocol):
    """What the engine asks while it runs a model whose experts are not all in memory.

    Everything is called on the thread that runs the engine. An exception ends the answer: the
    engine raises it again after the batch, and none of the batch's tokens leaves.
    """

    @property
    def streamed(self) -> Mapping[str, int]:
        """The tensors that the engine may read only after `supply`, with their layers."""
        ...

    @property
    def wants_hidden(self) -> bool:
        """Whether `Routing.hidden` is wanted."""
        ...

    @property
    def wants_weights(self) -> bool:
        """Whether `Routing.weights` is wanted."""
        ...

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        """Take over the mappings, once after loading and before the first token."""
        ...

    def supply(self, routing: Routing) -> None:
        """Return when the engine may read the chosen experts of the layer."""
        ...

    def supply_layer(self, layer: int) -> None:
        """Return when the engine may read every expert of a layer whose choice it did not see."""
        ...

    def check(self) -> None:
        """Raise when what was computed since the last call must not leave."""
        ...

    def close(self) -> None:
        """The model is about to be freed."""
        ...


class EngineSession(Protocol):
    """One loaded model. Not thread-safe; `is_cancelled` is polled between tokens and batches."""

    @property
    def report(self) -> LoadReport:
        """Return what loading gave."""
        ...

    @property
    def model_defaults(self) -> Mapping[str, float]:
        """Return the sampling defaults that the model's file names."""
        ...

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> GenerationResult:
        """Answer, handing over text as it comes; raises EngineRefused, UsageError (too long)."""
        ...

    def close(self) -> None:
        """Free the model and its memory."""
        ...


class Engine(Protocol):
    """The doors of the engine room."""

    def measure(self, args: EngineArgs) -> Measurements:
        """Ask the engine what the arguments would allocate; reads no weights."""
        ...

    def load(
        self,
        args: EngineArgs,
        *,
        on_progress: Callable[[float], None] | None = None,
        supplier: ExpertSupplier | None = None,
    ) -> EngineSession:
        """Load; raises EngineOutOfMemory or EngineRefused with the end of the log.

        A supplier is needed by, and only heard with, the load mode `stream` or a trace.
        """
        ...
