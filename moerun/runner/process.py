"""The runner: a process of its own that loads one model and does what its parent asks.

Native code may print, crash or be killed; here that ends one process, and the parent lives to tell
it. Requests come on standard input, events leave by a private copy of standard output, and both
standard streams are turned away before the engine is imported, so that nothing it prints or reads
can reach the channel. A thread of its own reads the requests, since `Cancel` and `Statistics` come
while an answer is being made, and since the end of the input means that the parent is gone.

`--engine module:Class` names what to run. The default is llama.cpp; tests name a fake.

Knows: the order of requests, and how this process ends.
Does not know: who its parent is, or anything of a terminal.
"""

import argparse
import contextlib
import faulthandler
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final, assert_never, cast

from moerun.engine.interface import (
    AnswerPart,
    Engine,
    EngineSession,
    ExpertSupplier,
    FormatKind,
    GenerationResult,
    SharedSession,
    SlotSupplier,
)
from moerun.errors import EngineMismatch, EngineOutOfMemory, EngineRefused, MoerunError, UsageError
from moerun.experts.order import StreamingOrder
from moerun.runner import protocol
from moerun.runner.logs import bound_stderr
from moerun.runner.protocol import Event, Request
from moerun.runner.statistics import sample_process
from moerun.worker.connections import PATIENCE_S, SILENT, ConnectionWatch

if TYPE_CHECKING:
    from moerun.experts.streamer import Streamer

DEFAULT_ENGINE: Final = "moerun.engine.llama:LlamaEngine"
_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG of linux/prctl.h


class Channel:
    """The way to the parent; whole lines, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, number: int | None, event: Event) -> None:
        """Send one event at once; a parent that is gone ends this process."""
        line = protocol.encode(number, event)
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
        except OSError:
            os._exit(0)  # nobody is left to tell


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suppliers:
    """Whom the engine asks for experts, and about slots."""

    experts: ExpertSupplier | None = None
    slots: SlotSupplier | None = None


class RunnerProcess:
    """One engine with at most one model, and the loop that serves its parent."""

    def __init__(self, engine: Engine, channel: Channel, *, patience_s: float = PATIENCE_S) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._connections: ConnectionWatch | None = None
        self._is_at_work = False
        self._channel = channel
        self._session: EngineSession | None = None
        self._shared: SharedSession | None = None
        self._streamer: Streamer | None = None
        self._requests: queue.SimpleQueue[tuple[int, Request]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def read_requests(self, stream: BinaryIO) -> None:
        """Take in requests until the parent is gone, which ends this process at once."""
        while True:
            try:
                line = protocol.read_line(stream)
                if not line:
                    break
                number, request = protocol.decode_request(line)
            except ValueError as error:
                refused = EngineRefused(f"The runner cannot read what it was asked: {error}.")
                self._channel.send(None, protocol.failure_of(refused))
                continue
            match request:
                case protocol.Cancel():
                    self._cancelled.add(request.target)
                case protocol.Statistics():
                    self._answer(number, request)
                case protocol.Generate() if request.request.format.kind is FormatKind.GRAMMAR:
                    check = threading.Thread(
                        target=self._check_grammar, args=(number, request), daemon=True
                    )
                    check.start()
                case _:
                    self._requests.put((number, request))
        # The main thread may be deep in native code, which only the end of the process stops.
        os._exit(0)

    def _check_grammar(self, number: int, request: protocol.Generate) -> None:
        """Have a stranger's grammar tried before the engine sees it.

        That takes a third of a second in a process of its own, in which other answers go on.
        """
        from moerun.engine.grammar import check_grammar

        try:
            if request.request.format.source.strip():  # what is empty is refused by the engine
                check_grammar(request.request.format.source)
        except Exception as error:
            self._cancelled.discard(number)
            self._channel.send(number, _failure(error))
            return
        self._requests.put((number, request))

    def serve(self) -> None:
        """Do what is asked until `Close`.

        While answers are made together, requests are taken in between two batches. Whatever but
        a further answer waits until all have ended, as it would after a single one.
        """
        waiting: deque[tuple[int, Request]] = deque()
        while True:
            self._take_in(waiting)
            while waiting:
                number, request = waiting.popleft()
                if isinstance(request, protocol.Generate) and self._begin(number, request):
                    continue
                self._finish_answers()
                self._answer(number, request)
                self._cancelled.discard(number)
                if isinstance(request, protocol.Close):
                    return
            self._step()

    def _take_in(self, waiting: "deque[tuple[int, Request]]") -> None:
        """Take the requests that have come; wait for one when there is nothing else to do."""
        if self._shared is None or not self._shared.is_busy:
            self._is_at_work = False
            waiting.append(self._requests.get())
            self._is_at_work = True
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._requests.get_nowait())

    def _begin(self, number: int, request: protocol.Generate) -> bool:
        """Hand an answer to a session that makes several at once; False when there is none."""
        if self._shared is None:
            return False
        self._shared.begin(request.request, _Answer(number, self._channel, self._cancelled))
        return True

    def _step(self) -> None:
        if self._shared is not None and self._shared.is_busy:
            self._shared.step()

    def _finish_answers(self) -> None:
        while self._shared is not None and self._shared.is_busy:
            self._shared.step()

    def _answer(self, number: int, request: Request) -> None:
        """Send what a request gives, or the error that it met."""
        try:
            event = self._do(number, request)
        except Exception as error:
            event = _failure(error)
        if event is not None:
            self._channel.send(number, event)

    def _do(self, number: int, request: Request) -> Event | None:
        match request:
            case protocol.Hello():
                if request.protocol != protocol.PROTOCOL:
                    raise EngineMismatch(
                        f"The runner speaks protocol {protocol.PROTOCOL}, "
                        f"its parent {request.protocol}; restart moerun after an update."
                    )
                return protocol.Ready(protocol=protocol.PROTOCOL, pid=os.getpid())
            case protocol.Measure():
                self._watch_connections(request.args.workers)
                return protocol.Measured(measurements=self._engine.measure(request.args))
            case protocol.Load():
                return self._load(number, request)
            case protocol.Generate():
                return self._generate(number, request)
            case protocol.Embed():
                return self._embed(request)
            case protocol.Statistics():
                return self._sample(request)
            case protocol.Close():
                self._free()
                return protocol.Closed()
            case protocol.Cancel():
                return None
            case _:
                assert_never(request)

    def _watch_connections(self, workers: tuple[str, ...]) -> None:
        """Watch the engine's connections to these workers, and no others."""
        if self._connections is not None:
            self._connections.stop()
        self._connections = ConnectionWatch(
            workers,
            is_at_work=lambda: self._is_at_work,
            on_silence=_end_for_silence,
            patience_s=self._patience_s,
        )
        self._connections.start()

    def _load(self, number: int, request: protocol.Load) -> Event:
        self._free()
        self._watch_connections(request.args.workers)

        def tell(done_fraction: float) -> None:
            self._channel.send(number, protocol.Progress(done_fraction=done_fraction))

        suppliers = _Suppliers()
        if request.streaming is not None:
            suppliers = self._open_suppliers(request.streaming)
        try:
            self._session = self._engine.load(
                request.args, on_progress=tell, supplier=suppliers.experts, slots=suppliers.slots
            )
        except BaseException:
            self._streamer = None
            if suppliers.experts is not None:
                suppliers.experts.close()
            raise
        # Asked once: the check reads every property of the session, the whole report among them.
        self._shared = self._session if isinstance(self._session, SharedSession) else None
        report = self._session.report
        if self._streamer is not None:
            report = replace(report, notes=(*report.notes, *self._streamer.shortfalls))
        return protocol.Loaded(
            report=report,
            model_defaults=tuple(sorted(self._session.model_defaults.items())),
        )

    def _generate(self, number: int, request: protocol.Generate) -> Event:
        if self._session is None:
            raise UsageError("No model is loaded, so nothing can answer.")
        result = self._session.generate(
            request.request,
            on_text=lambda text: self._channel.send(number, protocol.Text(text=text)),
            is_cancelled=lambda: number in self._cancelled,
        )
        return protocol.Generated(result=result)

    def _embed(self, request: protocol.Embed) -> Event:
        if self._session is None:
            raise UsageError("No model is loaded, so nothing can make vectors.")
        if self._shared is None:
            raise UsageError("This engine makes no vectors.")
        return protocol.Embedded(result=self._shared.embed(request.request))

    def _open_suppliers(self, order: StreamingOrder) -> "_Suppliers":
        """Return what the engine asks for experts: a streamer, a recorder of routing, or both."""
        from moerun.engine.abi import installed_version
        from moerun.experts.assembly import open_order  # with numpy, which not every load needs

        opened = open_order(order, engine_version=installed_version() or "")
        self._streamer = opened.streamer
        return _Suppliers(experts=opened.supplier, slots=opened.slots)

    def _sample(self, request: protocol.Statistics) -> Event:
        streamer, sample = self._streamer, None
        if request.wants_memory:
            sample = sample_process(model_paths=request.model_paths)
            if sample is None:
                raise EngineRefused("The system does not say what memory this process uses.")
        streaming = streamer.sample() if streamer is not None else None
        return protocol.Sampled(sample=sample, streaming=streaming)

    def _free(self) -> None:
        """Free the model; the session closes what supplied it, before its addresses are gone."""
        session, self._session, self._shared = self._session, None, None
        if session is not None:
            session.close()
        self._streamer = None


class _Answer:
    """One answer among several: what becomes of it goes to the parent under its number."""

    def __init__(self, number: int, channel: Channel, cancelled: set[int]) -> None:
        self._number = number
        self._channel = channel
        self._cancelled = cancelled

    def receive(self, part: AnswerPart) -> None:
        """Send the next part, content by the short way."""
        if part.thinking or part.tool_calls or part.logprobs:
            self._channel.send(self._number, protocol.Part(part=part))
        else:
            self._channel.send(self._number, protocol.Text(text=part.text))

    def finish(self, result: GenerationResult) -> None:
        """Send the end."""
        self._cancelled.discard(self._number)
        self._channel.send(self._number, protocol.Generated(result=result))

    def fail(self, error: Exception) -> None:
        """Send the failure."""
        self._cancelled.discard(self._number)
        self._channel.send(self._number, _failure(error))

    def is_cancelled(self) -> bool:
        """Whether the parent has cancelled it."""
        return self._number in self._cancelled


def _end_for_silence(endpoint: str, waited_s: float) -> None:
    """End: nothing else ends the native call that waits. The parent finds out who was silent."""
    sys.stderr.write(f"The worker at {endpoint} {SILENT} {waited_s:.0f} s.\n")
    sys.stderr.flush()
    os._exit(1)


def _failure(error: Exception) -> protocol.Failed:
    """Return an exception as an event: a sentence, the end of memory, or a bug."""
    if isinstance(error, MoerunError):
        return protocol.failure_of(error)
    if isinstance(error, MemoryError):
        return protocol.failure_of(
            EngineOutOfMemory("The host's memory ran out in the runner.", device="host")
        )
    return protocol.fault_of("".join(traceback.format_exception(error)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the parent at the other end of the standard streams, then end."""
    requests, events = _take_streams()
    options = _read_options(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    faulthandler.enable()
    if options.parent is not None:
        _die_with(options.parent)
    channel = Channel(events)
    try:
        engine = _make_engine(options.engine)
        runner = RunnerProcess(engine, channel, patience_s=options.patience)
    except MoerunError as error:
        channel.send(None, protocol.failure_of(error))
        sys.exit(error.exit_code)
    except Exception:
        channel.send(None, protocol.fault_of(traceback.format_exc()))
        sys.exit(1)
    reader = threading.Thread(target=runner.read_requests, args=(requests,), daemon=True)
    reader.start()
    runner.serve()
    # Daemon threads and native destructors at a normal exit have nothing left to do but harm.
    sys.stderr.flush()
    os._exit(0)


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return private copies of standard input and output, and turn the real ones away."""
    requests = cast(BinaryIO, os.fdopen(os.dup(0), "rb"))
    events = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    bound_stderr()
    sys.stdout = sys.stderr
    return requests, events


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m moerun.runner.process")
    parser.add_argument("--engine", default=DEFAULT_ENGINE, metavar="MODULE:CLASS")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process does")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, metavar="SECONDS")
    return parser.parse_args(arguments)


def _make_engine(spelled: str) -> Engine:
    module, _, name = spelled.partition(":")
    return cast(Engine, getattr(importlib.import_module(module), name)())


def _die_with(parent: int) -> None:
    """Have Linux kill this process when the parent's thread that started it ends.

    The end of standard input tells the same everywhere, but not while native code holds on.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # no C library to ask: the input is left
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it ended before the line above


if __name__ == "__main__":
    main()
