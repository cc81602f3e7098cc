"""Arguments and models for tests that load the real engine in this very process."""

from pathlib import Path
from typing import Any

from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.devices import list_devices
from moerun.engine.interface import GenerationRequest, GenerationResult
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.machine.description import EngineDeviceKind
from moerun.machine.gpus import device_id_of
from tests.builders import some_arguments

ENGINE = LlamaEngine(log_sink=None)


def arguments(path: Path, **changes: Any) -> EngineArgs:
    """Return arguments for the processor alone, changed as asked."""
    return some_arguments(model_path=str(path), **changes)


def device_references(workers: tuple[str, ...]) -> tuple[EngineDeviceRef, ...]:
    """Return the devices of the workers, in their order, as this process names them."""
    found = [d for d in list_devices(workers) if d.kind is EngineDeviceKind.GPU]
    return tuple(
        EngineDeviceRef(id=device_id_of(device), engine_name=device.name)
        for worker in workers
        for device in found
        if device.description == worker
    )


def answer(session: LlamaSession, request: GenerationRequest) -> tuple[str, GenerationResult]:
    """Return the whole text and how it went."""
    parts: list[str] = []
    result = session.generate(request, on_text=parts.append, is_cancelled=lambda: False)
    return "".join(parts), result
