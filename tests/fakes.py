"""Stand-ins behind the protocols of the engine: scripted, and able to misbehave natively.

`FakeEngine` runs in a real runner process (`Runner(engine=FAKE_ENGINE)`); what it does is spelled
in the prompt, or in the name of the model file.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping

from moerun.engine.arguments import BufferReport, EngineArgs
from moerun.engine.interface import (
    ExpertSupplier,
    GenerationRequest,
    GenerationResult,
    LoadReport,
    SlotSupplier,
    StopReason,
)
from moerun.errors import EngineOutOfMemory, EngineRefused
from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind, MeasuredBuffer, Measurements

FAKE_ENGINE = "tests.fakes:FakeEngine"
FAILING_ENGINE = "tests.fakes:FailingEngine"
NO_ENGINE = "tests.fakes:NoSuchEngine"
FAKE_VERSION = "fake-1"


class FakeEngine:
    """An engine without weights: `crash`, `refuse` and `full` in a model's name make it fail."""

    def measure(self, args: EngineArgs) -> Measurements:
        return Measurements(
            context_tokens=args.context_tokens,
            ubatch_tokens=args.ubatch_tokens,
            buffers=(MeasuredBuffer(device=HOST, kind=ChargeKind.COMPUTE, size_bytes=77),),
            engine_version=FAKE_VERSION,
        )

    def load(
        self,
        args: EngineArgs,
        *,
        on_progress: Callable[[float], None] | None = None,
        supplier: ExpertSupplier | None = None,
        slots: SlotSupplier | None = None,
    ) -> "FakeSession":
        sys.stderr.write("fake: loading tensors\n")
        if "crash" in args.model_path:
            sys.stderr.write("fake: GGML_ASSERT(n > 0) failed\n")
            die(signal.SIGABRT)
        if "refuse" in args.model_path:
            raise EngineRefused("The engine refused.", log_tail="fake: bad tensor", hint="try x")
        if "full" in args.model_path:
            raise EngineOutOfMemory("No room.", device="gpu:0", requested_bytes=123)
        if on_progress is not None:
            on_progress(0.5)
            on_progress(1.0)
        return FakeSession(args)


class FakeSession:
    """Answers by the words of its prompt; see `generate`."""

    def __init__(self, args: EngineArgs) -> None:
        self._args = args

    @property
    def report(self) -> LoadReport:
        buffer = BufferReport(
            component="load_tensors", buffer="CPU", device=HOST, kind="model", size_bytes=1000
        )
        return LoadReport(
            buffers=(buffer,),
            context_tokens=self._args.context_tokens,
            load_s=0.25,
            engine_version=FAKE_VERSION,
        )

    @property
    def model_defaults(self) -> Mapping[str, float]:
        return {"temperature": 0.5}

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> GenerationResult:
        prompt = request.prompt or request.messages[-1].content
        command, _, rest = prompt.partition(" ")
        pieces = 0
        reason = StopReason.END
        match command:
            case "say":
                for piece in rest.split("|"):
                    on_text(piece)
                    pieces += 1
            case "forever":
                while not is_cancelled():
                    on_text("tick ")
                    pieces += 1
                    time.sleep(0.001)
                reason = StopReason.CANCELLED
            case "stubborn":  # deep in native code, where no cancel is looked at
                while True:
                    on_text("tick ")
                    time.sleep(0.001)
            case "signal":
                on_text("before ")
                sys.stderr.write("fake: about to die\n")
                die(signal.Signals[rest])
            case "exit":
                os._exit(int(rest))
            case "refuse":
                raise EngineRefused("The engine refused to decode.", log_tail="fake: no slot")
            case "bug":
                on_text(str(1 // int("0")))
            case "print":
                os.write(1, b"native noise\n")
                sys.stdout.write("noise of Python\n")
                on_text(f"stdin={sys.stdin.read()!r}")
            case "garble":
                garble(rest.encode())
                while not is_cancelled():
                    time.sleep(0.01)
            case "echo":
                on_text("/".join(f"{m.role}:{m.content}" for m in request.messages))
            case "threads":
                on_text(",".join(sorted(thread.name for thread in threading.enumerate())))
        return GenerationResult(
            stop_reason=reason,
            prompt_tokens=len(prompt.split()),
            reused_tokens=0,
            answer_tokens=pieces,
            prompt_s=0.5,
            answer_s=1.5,
            seed=7 if request.sampling.seed is None else request.sampling.seed,
        )

    def close(self) -> None:
        sys.stderr.write("fake: freed\n")


class FailingEngine:
    """An engine that cannot be made."""

    def __init__(self) -> None:
        raise EngineRefused("There is no such library here.", hint="install it")


def die(number: signal.Signals) -> None:
    """End as native code would: by the default action of the signal, now."""
    signal.signal(number, signal.SIG_DFL) if number is not signal.SIGKILL else None
    os.kill(os.getpid(), number)
    time.sleep(60)


def garble(line: bytes) -> None:
    """Write into the private channel, as no sound runner does: it is the pipe above stderr."""
    for descriptor in range(3, 20):
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
            if is_pipe:
                os.write(descriptor, line + b"\n")
        except OSError:
            continue
