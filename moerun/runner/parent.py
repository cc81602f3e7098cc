"""The parent's side of a runner: it starts the process, asks, waits, and buries it.

One thread reads the events and hands each to the call whose number it carries, so that several
calls may wait at once. A runner that dies wakes every waiting call with `EngineCrashed`.

Knows: how the process is started and ended on each system.
Does not know: what an engine is, which model suits, or what anybody prints.
"""

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar, cast

import moerun
from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import (
    AnswerPart,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
    LoadReport,
)
from moerun.errors import EngineCrashed, EngineRefused, MoerunError, UsageError, WorkerLost
from moerun.experts.counters import StreamingSample
from moerun.experts.order import StreamingOrder
from moerun.planning.plan import Measurements
from moerun.runner import endings, logs, model_files, protocol
from moerun.runner.protocol import Event, Request
from moerun.runner.statistics import MemorySample
from moerun.worker.connections import PATIENCE_S, SILENT
from moerun.worker.watch import Loss, WorkerWatch

Answer = TypeVar("Answer", bound=Event)

_START_TIMEOUT_S: Final = 120.0  # Python on a cold, slow disk; loading has no limit at all
_SAMPLE_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 10.0
_NOTICE_S: Final = 3.0  # until the watch of workers knows, too, what ended the runner
# How the engine ends when a worker's connection breaks: ggml-rpc.cpp:35 @ 0.3.36, checked by
# tests/engine/test_workers_lost.py
_BROKEN_CONNECTION: Final = "Remote RPC server crashed or returned malformed response"
_POLL_S: Final = 0.5  # Windows lets Ctrl-C through only between waits


class _Ended:
    """Put into every queue when the channel closes."""


class _CancelWish:
    """Put into a queue by `cancel`; a SimpleQueue may be fed from within a signal handler."""


class Runner:
    """One child process with one engine. A context manager; the exit ends the process."""

    def __init__(
        self,
        *,
        log_folder: Path,
        engine: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Prepare; `engine` names another one than llama.cpp (`module:Class`), for tests.

        `patience_s` is how long a worker without a side channel may send nothing.
        """
        self._patience_s = patience_s
        self._log_folder = log_folder
        self._engine = engine
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[object]] = {}
        self._generating: set[int] = set()
        self._greeting: int | None = None
        self._write_lock = threading.Lock()
        self._greeting_lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._has_ended = threading.Event()
        self._unreadable: str | None = None
        self._memory_kills = 0
        self._files: tuple[model_files.KnownFile, ...] = ()
        self._watch: WorkerWatch | None = None
        self.log_path: Path | None = None
        self.model_defaults: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process: politely when all went well, at once otherwise."""
        self.close(at_once=error is not None)

    @property
    def pid(self) -> int:
        """The process to observe."""
        assert self._process is not None, "the runner is not started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, and can still be heard."""
        process = self._process
        return process is not None and not self._has_ended.is_set() and process.poll() is None

    def start(self) -> None:
        """Start the process and greet it, without waiting for its answer.

        It takes a third of a second to come up, in which its parent has other things to do. The
        first request waits for it, and raises what went wrong.
        """
        self.log_path, log = logs.open_log(self._log_folder)
        self._memory_kills = endings.memory_kills()
        self._has_ended.clear()
        self._unreadable = None
        try:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                **_own_group(),
            )
        except OSError as error:
            raise EngineRefused(
                f"The runner cannot be started: {error.strerror or error}."
            ) from error
        finally:
            os.close(log)
        self._reader = threading.Thread(
            target=self._read_events, args=(self._process.stdout,), daemon=True
        )
        self._greeting, hello = next(self._numbers), protocol.Hello(protocol=protocol.PROTOCOL)
        self._waiting[self._greeting] = queue.SimpleQueue()
        self._reader.start()
        self._write(self._greeting, hello)

    def restart(self) -> None:
        """Start again with a fresh process, as after a load that ran out of memory."""
        self.close(at_once=True)
        self.start()

    def measure(self, args: EngineArgs) -> Measurements:
        """Ask the engine what the arguments would allocate."""
        self._watch_workers(args.workers)
        doing = f"measured {_name(args)}"
        return self._ask(protocol.Measure(args=args), protocol.Measured, doing=doing).measurements

    def load(
        self,
        args: EngineArgs,
        *,
        streaming: StreamingOrder | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> LoadReport:
        """Load a model; a model loaded before is freed first."""

        self._watch_workers(args.workers)

        def receive(event: Event) -> None:
            if isinstance(event, protocol.Progress) and on_progress is not None:
                on_progress(event.done_fraction)

        named = streaming.layout.files if streaming is not None else ()
        self._files = model_files.remember([file.path for file in named] or [args.model_path])
        loaded = self._ask(
            protocol.Load(args=args, streaming=streaming),
            protocol.Loaded,
            doing=f"loaded {_name(args)}",
            on_event=receive,
        )
        self.model_defaults = dict(loaded.model_defaults)
        return loaded.report

    def reserve_number(self) -> int:
        """Return a number for one `generate`, by which that answer can be cancelled."""
        return next(self._numbers)

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_part: Callable[[AnswerPart], None] | None = None,
        number: int | None = None,
    ) -> GenerationResult:
        """Answer, handing over what comes; returns early, with a result, when cancelled.

        `on_text` gets the content alone, `on_part` everything. Several threads may ask at once:
        each has its own answer, and its callbacks run in its own thread. An exception of a
        callback cancels the answer and passes on. What ends the whole program does not: a runner
        that reads nothing more would hold it back.
        """

        def receive(event: Event) -> None:
            match event:
                case protocol.Text(text=text):
                    part = AnswerPart(text=text)
                case protocol.Part(part=part):
                    text = part.text
                case _:
                    return
            if on_text is not None and text:
                on_text(text)
            if on_part is not None:
                on_part(part)

        number = self.reserve_number() if number is None else number
        self._generating.add(number)
        try:
            generated = self._ask(
                protocol.Generate(request=request),
                protocol.Generated,
                doing="answered",
                on_event=receive,
                number=number,
            )
        except Exception:
            self._send_cancel(number)
            raise
        finally:
            self._generating.discard(number)
        return generated.result

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return the vectors of texts."""
        return self._ask(
            protocol.Embed(request=request), protocol.Embedded, doing="made vectors"
        ).result

    def cancel(self, number: int | None = None) -> None:
        """End the answer of that number, or every one; callable from threads and signal handlers.

        A number whose answer has ended, or has not begun, is passed over.
        """
        for each in tuple(self._generating) if number is None else (number,):
            waiting = self._waiting.get(each)
            if waiting is not None:
                waiting.put(_CancelWish())

    def sample_statistics(self, model_paths: tuple[str, ...] = ()) -> MemorySample:
        """Ask what memory the runner uses now; possible while it answers."""
        sample = self._sample(protocol.Statistics(model_paths=model_paths)).sample
        assert sample is not None, "a runner that was asked for its memory tells it or fails"
        return sample

    def sample_streaming(self) -> StreamingSample | None:
        """Ask what its experts do now, None when none stream; possible while it answers."""
        return self._sample(protocol.Statistics(wants_memory=False)).streaming

    def _sample(self, request: protocol.Statistics) -> protocol.Sampled:
        return self._ask(
            request, protocol.Sampled, doing="looked at itself", timeout_s=_SAMPLE_TIMEOUT_S
        )

    def close(self, *, at_once: bool = False) -> None:
        """End the process for sure; nothing happens when it has ended before."""
        process, self._process = self._process, None
        if process is None:
            self._watch_workers(())
            return
        if self._greeting is not None:  # nobody asked it anything
            del self._waiting[self._greeting]
            self._greeting, at_once = None, True
        if not at_once and process.poll() is None:
            with contextlib.suppress(MoerunError):
                self._process = process
                self._ask(
                    protocol.Close(), protocol.Closed, doing="ended", timeout_s=_END_TIMEOUT_S
                )
            self._process = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_TIMEOUT_S)
        self._watch_workers(())
        _end_group(process)
        if self._reader is not None:
            self._reader.join(timeout=_END_TIMEOUT_S)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not flushed has no reader any more
                    stream.close()
        if self.log_path is not None:
            logs.drop_empty(self.log_path)

    def _watch_workers(self, addresses: tuple[str, ...]) -> None:
        """Watch these workers from now on, and no others."""
        before, self._watch = self._watch, None
        if before is not None:
            before.stop()
        if addresses:
            self._watch = WorkerWatch(addresses, self._end_without)
            self._watch.start()

    def _end_without(self, loss: Loss) -> None:
        """End a process whose worker is lost: nothing else ends the native call that waits."""
        process = self._process
        if process is not None:
            _kill_group(process)

    def _command(self) -> list[str]:
        # -P: the working folder may be anybody's, and must not provide modules.
        command = [sys.executable, "-P", "-m", "moerun.runner.process"]
        if self._engine is not None:
            command += ["--engine", self._engine]
        if self._patience_s != PATIENCE_S:
            command.append(f"--patience={self._patience_s}")
        # The kernel's signal follows the thread that starts the child, not the whole parent.
        if threading.current_thread() is threading.main_thread():
            command += ["--parent", str(os.getpid())]
        return command

    def _ask(
        self,
        request: Request,
        expected: type[Answer],
        *,
        doing: str,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        number: int | None = None,
    ) -> Answer:
        """Send a request and wait for its answer; raises what the runner reports."""
        self._await_greeting()
        number = next(self._numbers) if number is None else number
        self._waiting[number] = queue.SimpleQueue()
        try:
            self._write(number, request)
        except BaseException:
            del self._waiting[number]
            raise
        return self._await(number, expected, doing=doing, on_event=on_event, timeout_s=timeout_s)

    def _await_greeting(self) -> None:
        """Wait until a runner that was started is there; one that fails to come is ended."""
        with self._greeting_lock:  # whoever comes second waits for it, too
            greeting, self._greeting = self._greeting, None
            if greeting is None:
                return
            try:
                self._await(greeting, protocol.Ready, doing="started", timeout_s=_START_TIMEOUT_S)
            except BaseException:
                self.close(at_once=True)
                raise

    def _await(
        self,
        number: int,
        expected: type[Answer],
        *,
        doing: str,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Wait for the answer to a request that was sent."""
        events = self._waiting[number]
        waited_s = 0.0
        try:
            while True:
                try:
                    event = events.get(timeout=_POLL_S)
                except queue.Empty:
                    if self._has_ended.is_set():
                        raise self._crash(doing) from None
                    waited_s += _POLL_S
                    if timeout_s is not None and waited_s >= timeout_s:
                        raise self._silence(doing, timeout_s) from None
                    continue
                if isinstance(event, expected):
                    return event
                if isinstance(event, protocol.Failed):
                    raise protocol.error_of(event)
                if isinstance(event, _Ended):
                    raise self._crash(doing)
                if isinstance(event, _CancelWish):
                    self._send_cancel(number)
                elif on_event is not None:
                    on_event(cast(Event, event))
        finally:
            del self._waiting[number]

    def _write(self, number: int, request: Request) -> None:
        """Send a request; a runner that is gone is told by the end of its events."""
        process = self._process
        if process is None or process.stdin is None:
            raise EngineRefused("The runner is not running.")
        line = protocol.encode(number, request)
        if len(line) > protocol.LONGEST_LINE_BYTES:
            raise UsageError(
                f"The request takes {len(line):,} bytes and a runner reads "
                f"{protocol.LONGEST_LINE_BYTES:,} at once; shorten the prompt."
            )
        with contextlib.suppress(OSError), self._write_lock:
            process.stdin.write(line)
            process.stdin.flush()

    def _send_cancel(self, number: int) -> None:
        if self._process is not None:
            self._write(next(self._numbers), protocol.Cancel(target=number))

    def _read_events(self, stream: IO[bytes]) -> None:
        """Hand every event to the call that waits for it, until the channel closes."""
        try:
            while line := protocol.read_line(cast(Any, stream)):
                number, event = protocol.decode_event(line)
                if number is None:
                    for waiting in tuple(self._waiting.values()):
                        waiting.put(event)
                elif (known := self._waiting.get(number)) is not None:
                    known.put(event)
        except ValueError as error:
            self._unreadable = str(error)
        finally:
            self._has_ended.set()
            for waiting in tuple(self._waiting.values()):
                waiting.put(_Ended())

    def _crash(self, doing: str) -> EngineCrashed:
        """Return how the runner ended; one that only lost its voice is ended first."""
        loss = None
        if self._watch is not None:
            tail = self.log_tail()
            is_broken = _BROKEN_CONNECTION in tail or SILENT in tail
            loss = self._watch.loss(within_s=_NOTICE_S, is_broken=is_broken)
        if loss is not None:
            return WorkerLost(
                f"The worker at {loss.address} was lost while the runner {doing}: {loss.why}.",
                hint="ask again: the model is then placed without that worker, unless it is back",
            )
        process = self._process
        if process is None:
            return EngineCrashed(f"The runner was closed while it {doing}.")
        if self._unreadable is not None:
            _end_group(process)
            return EngineCrashed(
                f"The runner said something unreadable while it {doing}: {self._unreadable}.",
                log_tail=self.log_tail(),
                hint=f"the whole log is {self.log_path}",
            )
        returncode: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            returncode = process.wait(timeout=_END_TIMEOUT_S)
        kills = endings.memory_kills() - self._memory_kills
        return endings.crash_of(
            endings.Ending(
                returncode=returncode,
                doing=doing,
                log_path=self.log_path,
                log_tail=self.log_tail(),
                memory_kills=kills,
                model_path=self._files[0].path if self._files else None,
                file_change=model_files.change_since(self._files),
            )
        )

    def _silence(self, doing: str, timeout_s: float) -> EngineCrashed:
        return EngineCrashed(
            f"The runner gave no sign for {timeout_s:g} s while it {doing}.",
            log_tail=self.log_tail(),
            hint=f"the whole log is {self.log_path}",
        )

    def log_tail(self) -> str:
        """Return the last lines of the runner's log."""
        return endings.tail_of(logs.read_tail(self.log_path)) if self.log_path else ""


def _name(args: EngineArgs) -> str:
    return Path(args.model_path).name


def _environment() -> dict[str, str]:
    """Return an environment in which the child finds this very package, installed or not."""
    root = Path(moerun.__file__).resolve().parents[1]
    environment = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(root), *([inherited] if inherited else [])]
        )
    return environment


def _own_group() -> dict[str, Any]:
    """Return what gives a child a group of its own, which Ctrl-C at a terminal does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever it started, and wait until it is gone."""
    _kill_group(process)
    process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever it started; callable from any thread."""
    if process.returncode is not None:
        return  # its number may be somebody else's by now
    if sys.platform == "win32":
        process.kill()
    else:
        # Its own session, so the group's number is the child's; a group that is gone is well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
