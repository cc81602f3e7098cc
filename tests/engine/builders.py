"""Arguments and models for tests that load the real engine in this very process."""

from pathlib import Path
from typing import Any

from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.devices import list_devices
from moerun.engine.interface import GenerationRequest, GenerationResult
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.machine.description import EngineDeviceKind
from moerun.machine.gpus import device_id_of
from moerun.planning.strategy import LoadMode, Toggle

ENGINE = LlamaEngine(log_sink=None)


def arguments(path: Path, **changes: Any) -> EngineArgs:
    """Return arguments for the processor alone, changed as asked."""
    values: dict[str, Any] = {
        "model_path": str(path),
        "devices": (),
        "n_gpu_layers": 0,
        "tensor_split": (),
        "overrides": (),
        "context_tokens": 512,
        "batch_tokens": 64,
        "ubatch_tokens": 32,
        "kv_encoding_k": "F16",
        "kv_encoding_v": "F16",
        "flash_attention": Toggle.AUTO,
        "extra_buffers": False,
        "load_mode": LoadMode.MMAP,
        "threads": 2,
    }
    return EngineArgs(**values | changes)


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
