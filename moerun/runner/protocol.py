"""What a runner and its parent say to each other: one JSON object in one line, both ways.

A request carries a number, which every event it causes repeats; an event without a number answers
a line that could not be read. `Cancel` names the request that is to end, so that one which comes
late cannot end the next.

Knows: the messages, their spelling, and how an error travels.
Does not know: pipes, processes, or what an engine is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, BinaryIO, Final, TypeAlias

from moerun import errors
from moerun.codec import from_plain, to_plain
from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import (
    AnswerPart,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
    LoadReport,
)
from moerun.errors import MoerunError
from moerun.experts.counters import StreamingSample
from moerun.experts.order import StreamingOrder
from moerun.planning.plan import Measurements
from moerun.runner.statistics import MemorySample

PROTOCOL: Final = 3
LONGEST_LINE_BYTES: Final = 64 << 20
_FAULT: Final = "fault"
_NUMBER: Final = "number"
_TYPE: Final = "type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first request; both sides must speak the same protocol."""

    protocol: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Ask what the arguments would allocate."""

    args: EngineArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load the model; a model loaded before is freed first. `streaming` goes with the load mode."""

    args: EngineArgs
    streaming: StreamingOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Answer; several may be asked for at once, and share the engine where it can be shared."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Turn texts into vectors."""

    request: EmbeddingRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the answer of the request with that number; no event answers this."""

    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Ask what memory the runner uses now; answered while it generates, too.

    Without `wants_memory` only the experts are asked for, which takes no walk over all pages.
    """

    model_paths: tuple[str, ...] = ()
    wants_memory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Free everything and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The runner listens; its process id is the one to observe."""

    protocol: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The answer to `Measure`."""

    measurements: Measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of the weights is read, from 0 to 1."""

    done_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The answer to `Load`, with the sampling defaults that the model's file names."""

    report: LoadReport
    model_defaults: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The next piece of an answer, where it is content and nothing else."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The next piece of an answer, where it is more than content."""

    part: AnswerPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The answer to `Embed`."""

    result: EmbeddingResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The end of an answer."""

    result: GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The answer to `Statistics`; `streaming` is None where no experts stream."""

    sample: MemorySample | None
    streaming: StreamingSample | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The answer to `Close`, the last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request failed. `kind` is the name of the error's class, `fault` for a bug.

    `details` are the further fields of the error, such as `log_tail` or `requested_bytes`.
    """

    kind: str
    message: str
    hint: str | None = None
    details: tuple[tuple[str, str | int | float | None], ...] = ()


Request: TypeAlias = Hello | Measure | Load | Generate | Embed | Cancel | Statistics | Close
Event: TypeAlias = (
    Ready
    | Measured
    | Progress
    | Loaded
    | Text
    | Part
    | Generated
    | Embedded
    | Sampled
    | Closed
    | Failed
)
Message: TypeAlias = Request | Event

_REQUESTS: Final[dict[str, type[Request]]] = {
    kind.__name__.lower(): kind
    for kind in (Hello, Measure, Load, Generate, Embed, Cancel, Statistics, Close)
}
_EVENTS: Final[dict[str, type[Event]]] = {
    kind.__name__.lower(): kind
    for kind in (
        Ready,
        Measured,
        Progress,
        Loaded,
        Text,
        Part,
        Generated,
        Embedded,
        Sampled,
        Closed,
        Failed,
    )
}


class RunnerFault(Exception):
    """Something unexpected in the runner: a bug; its note is the traceback of the child."""


def encode(number: int | None, message: Message) -> bytes:
    """Return the line that says `message`, with its newline."""
    body = {field.name: to_plain(getattr(message, field.name)) for field in fields(message)}
    named = {_NUMBER: number, _TYPE: type(message).__name__.lower(), **body}
    return json.dumps(named, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> tuple[int, Request]:
    """Read a line of the parent; ValueError with a sentence when it is not a request."""
    number, kind, body = _open(line)
    if number is None:
        raise ValueError("the request has no number")
    if kind not in _REQUESTS:
        raise ValueError(f"no request is called '{kind}'")
    request: Request = from_plain(_REQUESTS[kind], body)
    return number, request


def decode_event(line: bytes) -> tuple[int | None, Event]:
    """Read a line of the runner; ValueError with a sentence when it is not an event."""
    number, kind, body = _open(line)
    text = body.get("text")
    if kind == "text" and isinstance(text, str):
        return number, Text(text=text)  # for each token: the checks below take longer
    if kind not in _EVENTS:
        raise ValueError(f"no event is called '{kind}'")
    event: Event = from_plain(_EVENTS[kind], body)
    return number, event


def read_line(stream: BinaryIO) -> bytes:
    """Return the next line, empty at the end; ValueError when it is too long or cut off."""
    line = stream.readline(LONGEST_LINE_BYTES)
    if line and not line.endswith(b"\n"):
        raise ValueError(f"the line breaks off after {len(line):,} bytes")
    return line


def failure_of(error: MoerunError) -> Failed:
    """Return an error as an event; fields that are not plain values stay behind."""
    details = tuple(
        (name, value)
        for name, value in sorted(vars(error).items())
        if name not in ("message", "hint") and (value is None or isinstance(value, str | int))
    )
    return Failed(
        kind=type(error).__name__, message=error.message, hint=error.hint, details=details
    )


def fault_of(traceback: str) -> Failed:
    """Return a bug as an event."""
    return Failed(kind=_FAULT, message=traceback)


def error_of(failed: Failed) -> MoerunError | RunnerFault:
    """Rebuild the error that an event tells of."""
    if failed.kind == _FAULT:
        fault = RunnerFault(failed.message.rstrip().rpartition("\n")[2])
        fault.add_note(failed.message)
        return fault
    kind = getattr(errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, MoerunError)):
        return RunnerFault(f"{failed.kind}: {failed.message}")
    try:
        return kind(failed.message, hint=failed.hint, **dict(failed.details))
    except TypeError:
        return MoerunError(failed.message, hint=failed.hint)


def _open(line: bytes) -> tuple[int | None, str, Mapping[str, Any]]:
    """Split a line into its number, its type and the fields of the message."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    number, kind = document.pop(_NUMBER, None), document.pop(_TYPE, None)
    if isinstance(number, bool) or not (number is None or isinstance(number, int)):
        raise ValueError("its number is not an integer")
    if not isinstance(kind, str):
        raise ValueError("it has no type")
    return number, kind, document
