"""The engine's arguments as values, and what they will do, without touching the engine.

Knows: how llama.cpp turns layer counts, splits and overrides into placements.
Does not know: ctypes, the library, or how a plan was found.
"""

from dataclasses import dataclass

from moerun.machine.description import DeviceId
from moerun.planning.strategy import LoadMode, Toggle


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Tensors whose name the regular expression finds go to the buffer type of the device.

    Spelling follows llama.cpp: std::regex_search, ECMAScript grammar, first match wins.
    """

    pattern: str
    device: DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDeviceRef:
    """A device as the plan names it and as ggml names it."""

    id: DeviceId
    engine_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """Everything the engine is told. `devices` in order; empty means the CPU alone.

    `workers` are the addresses of RPC servers to register before loading.
    """

    model_path: str
    devices: tuple[EngineDeviceRef, ...]
    n_gpu_layers: int
    tensor_split: tuple[float, ...]
    overrides: tuple[Override, ...]
    context_tokens: int
    batch_tokens: int
    ubatch_tokens: int
    kv_encoding_k: str
    kv_encoding_v: str
    flash_attention: Toggle
    extra_buffers: bool
    load_mode: LoadMode
    threads: int
    swa_full: bool = False
    workers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferReport:
    """A buffer that the engine's load log names. `device` is None when no device matches."""

    component: str
    buffer: str
    device: DeviceId | None
    kind: str
    size_bytes: int
