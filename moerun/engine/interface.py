"""What a runner asks of an engine, as values and a protocol; a fake in the tests implements it too.

Knows: requests, answers and their counters.
Does not know: llama.cpp, processes, or how an answer is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from moerun.engine.arguments import BufferReport, EngineArgs
from moerun.machine.description import DeviceId
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
class ToolCall:
    """A wish of the model to have a function called; the arguments are a JSON object as text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask for; `parameters` is its JSON schema as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class ToolUse(StrEnum):
    """Whether the model may, must not or must call tools; NAMED is one of them and no other."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """How tools are to be used; `name` goes with NAMED."""

    use: ToolUse = ToolUse.AUTO
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    `thinking` and `tool_calls` are of an assistant's turn, the last two of a tool's answer.
    """

    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; None takes the model's own default, else llama.cpp's.

    `temperature` 0 is greedy. `seed` None draws a fresh one, which the result reports.
    `repeat_last_tokens` -1 is the whole context. `mirostat` is 0 (off), 1 or 2. `logit_bias` adds
    to the scores of tokens, by their numbers; minus infinity is spelled -100 or less.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


class FormatKind(StrEnum):
    """What an answer has to look like: any text, any JSON object, a JSON schema, a grammar."""

    TEXT = "text"
    JSON = "json"
    SCHEMA = "schema"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """The form of the content; `source` is the JSON schema as text, or the grammar in GBNF.

    It holds for the content alone: the model may think before it.
    """

    kind: FormatKind = FormatKind.TEXT
    source: str = ""


class Thinking(StrEnum):
    """How much a model that can think is to think before it answers."""

    OFF = "off"
    ON = "on"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    MAX = "max"


class Overflow(StrEnum):
    """What happens at a full context: the answer ends, or the oldest half is forgotten."""

    END = "end"
    SHIFT = "shift"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation to go on with; without `messages` raw `tokens` and then a raw `prompt`.

    `suffix` is what follows the answer (for models that can fill in the middle). `maximum_tokens`
    None means until the context is full. `think` None leaves it to the model: it thinks when it
    can. `keep_tokens` of the prompt's head survive a shift, all of it for -1 and the first one for
    None. `truncates` lets the oldest messages, or the middle of a raw prompt, be left out when the
    prompt does not fit; otherwise that is a UsageError. `top_logprobs` None asks for no
    logarithms of probabilities, 0 for those of the chosen tokens, N for the N likeliest as well.
    `wants_tokens` fills `GenerationResult.tokens`. `template_prompt` is what a template beside the
    model's file makes of the messages: it `replaces_template` of the file, or stands in for none.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    tokens: tuple[int, ...] = ()
    suffix: str = ""
    sampling: Sampling = Sampling()
    maximum_tokens: int | None = None
    stop: tuple[str, ...] = ()
    format: AnswerFormat = AnswerFormat()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    think: Thinking | None = None
    overflow: Overflow = Overflow.END
    keep_tokens: int | None = None
    truncates: bool = False
    top_logprobs: int | None = None
    wants_tokens: bool = False
    template_prompt: str = ""
    replaces_template: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A chosen token, its text, the logarithm of its probability, and the likeliest ones.

    `token_bytes` are its bytes, which may be a part of a character; `text` replaces what is none.
    """

    token: int
    text: str
    token_bytes: tuple[int, ...]
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPart:
    """What came next of an answer. Tool calls come whole; one part may hold several things."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """How an answer went. `reused_tokens` of the prompt were still in the KV cache.

    `notes` say in what the conversation was changed to fit the model's template or the context.
    `wait_s` went by before the prompt began, in which other answers were made. `tokens` are those
    of prompt and answer, where they were asked for. `stop_string` is what ended the answer, None
    when none of the request's did. `shifted_tokens` were forgotten to make room.
    """

    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int
    prompt_s: float
    answer_s: float
    seed: int
    notes: tuple[str, ...] = ()
    wait_s: float = 0.0
    tool_calls: tuple[ToolCall, ...] = ()
    stop_string: str | None = None
    shifted_tokens: int = 0
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to turn into vectors. A text that is too long is cut when `truncates`, else refused.

    `dimensions` cuts the vectors, which are then of length one again; without `normalises` they
    are as long as the model made them.
    """

    texts: tuple[str, ...]
    truncates: bool = True
    dimensions: int | None = None
    normalises: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """One vector for each text, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    total_s: float


class Capability(StrEnum):
    """What a loaded model can do, by ollama's words."""

    COMPLETION = "completion"
    EMBEDDING = "embedding"
    INSERT = "insert"
    THINKING = "thinking"
    TOOLS = "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What loading gave: the buffers of the engine's log, the real context, the time it took.

    `notes` are sentences on what was done otherwise than it was asked. `flash_attention`
    says whether it is on, where the log tells; left to the engine it depends on the placement.
    `sequences` is how many answers may share the engine at once.
    """

    buffers: tuple[BufferReport, ...]
    context_tokens: int
    load_s: float
    engine_version: str
    notes: tuple[str, ...] = ()
    flash_attention: bool | None = None
    sequences: int = 1
    capabilities: tuple[Capability, ...] = ()


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


class ExpertSlots(Protocol):
    """Room for some experts of each layer in the memory of devices, as the engine offers it."""

    @property
    def counts(self) -> Mapping[int, int]:
        """How many slots each layer has that has any."""
        ...

    @property
    def device_bytes(self) -> Mapping[DeviceId, int]:
        """What the slots take of each device."""
        ...

    @property
    def most_tokens(self) -> int:
        """How many tokens a batch may have whose experts find slots, whatever they choose."""
        ...

    @property
    def is_queued(self) -> bool:
        """Whether an upload goes on while the next one is prepared."""
        ...

    def upload(self, layer: int, moves: Sequence[tuple[int, int]]) -> int:
        """Copy experts of a layer into slots, given as pairs; return how many bytes that were.

        They must be readable on the host. When it returns the device has them.
        """
        ...


class SlotSupplier(Protocol):
    """What the engine asks about slots; it is asked beside an `ExpertSupplier`, and after it.

    In an evaluation that reads slots, `ExpertSupplier.supply` has to leave every chosen expert of
    a layer with slots in one of them.
    """

    @property
    def wants_slots(self) -> bool:
        """Whether the next evaluation is to read slots, if its experts are few enough."""
        ...

    @property
    def hears_all(self) -> bool:
        """Whether `ExpertSupplier.supply` is to be asked in evaluations that read no slots, too.

        Where all experts are in memory nothing has to be heard then, and nothing is waited for.
        """
        ...

    def attach_slots(self, slots: ExpertSlots, refused: tuple[str, ...]) -> None:
        """Take the slots over, once and before anything else; `refused` says where there are none.

        None of them holds anything.
        """
        ...

    def begin(self, tokens: int, *, uses_slots: bool) -> None:
        """An evaluation of so many tokens begins, which reads slots or not."""
        ...

    def slots_of(self, layer: int, experts: Sequence[int]) -> Sequence[int]:
        """Return the slot of each of these experts, which were just supplied."""
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


class AnswerReceiver(Protocol):
    """Whoever asked: told of every part of an answer, and at last of its end or its failure."""

    def receive(self, part: AnswerPart) -> None:
        """Take the next part."""
        ...

    def finish(self, result: GenerationResult) -> None:
        """Take note that the answer ended."""
        ...

    def fail(self, error: Exception) -> None:
        """Take note that the answer cannot be made or gone on with."""
        ...

    def is_cancelled(self) -> bool:
        """Whether nobody wants the rest."""
        ...


@runtime_checkable
class SharedSession(EngineSession, Protocol):
    """A session in which several answers are made at once; all is called on one thread."""

    @property
    def is_busy(self) -> bool:
        """Whether answers are being made or wait for their turn."""
        ...

    def begin(self, request: GenerationRequest, receiver: AnswerReceiver) -> None:
        """Take a request in; what becomes of it is told to the receiver alone."""
        ...

    def step(self) -> None:
        """Run one batch: a token of each answer, or a piece of the prompts."""
        ...

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return the vectors of texts; UsageError for a model that has none or a text too long."""
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
        slots: SlotSupplier | None = None,
    ) -> EngineSession:
        """Load; raises EngineOutOfMemory or EngineRefused with the end of the log.

        A supplier is needed by, and only heard with, the load mode `stream`, slots or a trace.
        """
        ...
