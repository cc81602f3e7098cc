"""The engine's arguments as values, and what they will do, without touching the engine.

Knows: how llama.cpp turns layer counts, splits and overrides into placements.
Does not know: ctypes, the library, or how a plan was found.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from moerun.engine.tensor_patterns import patterns_for
from moerun.errors import EngineRefused
from moerun.machine.description import HOST, DeviceId, Machine, is_gpu
from moerun.model.adapters import matrix_of
from moerun.model.description import Model, Tensor, TensorRole, TensorUse
from moerun.model.encodings import BY_NAME, row_bytes
from moerun.planning.plan import Plan
from moerun.planning.strategy import LoadMode, Toggle

MAX_OVERRIDES: Final = 4096  # llama_max_tensor_buft_overrides - src/llama.cpp @ 0.3.36

# CUDA pads quantized rows that are no multiple of this - ggml/src/ggml-cuda/common.cuh @ 0.3.36
MATRIX_ROW_PADDING: Final = 512
_ROW_PADDING_DEVICES: Final = ("CUDA", "ROCm", "MUSA")
DEVICE_ALIGNMENT_BYTES: Final = 128
HOST_ALIGNMENT_BYTES: Final = 32
_MAPPED_MODES: Final = frozenset({LoadMode.MMAP, LoadMode.LOCK, LoadMode.STREAM})


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
class LayerSlots:
    """Room for so many experts of a layer in the memory of a device; the rest stay on the host."""

    layer: int
    device: DeviceId
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """Everything the engine is told. `devices` in order; empty means the CPU alone.

    `workers` are the addresses of RPC servers to register before loading. `sequences` is how many
    answers may be made at once; they share the cells of one context of `context_tokens`.
    `expert_slots` are made after loading, of layers whose experts lie on the host. `adapters` are
    files of LoRA adapters, all applied in full.
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
    sequences: int = 1
    expert_slots: tuple[LayerSlots, ...] = ()
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferReport:
    """A buffer that the engine's load log names. `device` is None when no device matches."""

    component: str
    buffer: str
    device: DeviceId | None
    kind: str
    size_bytes: int


def engine_args(
    plan: Plan, model: Model, machine: Machine, *, model_path: str | None = None
) -> EngineArgs:
    """Return the arguments that make the engine place the model as planned.

    Layers on GPUs are told by count and split, everything that lies elsewhere than its layer by
    overrides. Raises EngineRefused in the unheard-of case that the engine takes fewer overrides.
    """
    references = tuple(_reference(machine, device) for device in plan.devices)
    counts = _positions_by_device(plan)
    bare = EngineArgs(
        model_path=model.files[0].path if model_path is None else model_path,
        devices=references,
        n_gpu_layers=sum(counts),
        tensor_split=tuple(float(count) for count in counts),
        overrides=(),
        context_tokens=plan.context_tokens,
        batch_tokens=plan.batch_tokens,
        ubatch_tokens=plan.ubatch_tokens,
        kv_encoding_k=plan.kv_encoding_k,
        kv_encoding_v=plan.kv_encoding_v,
        flash_attention=plan.flash_attention,
        extra_buffers=plan.extra_buffers,
        load_mode=plan.load_mode,
        threads=plan.threads,
        workers=_workers(machine, plan.devices),
        expert_slots=_expert_slots(plan),
        adapters=tuple(file.path for file in model.adapters),
    )
    overrides = _overrides(plan, model, simulate(bare, model))
    if len(overrides) >= MAX_OVERRIDES:
        raise EngineRefused(
            f"the plan needs {len(overrides)} tensor overrides and the engine takes "
            f"{MAX_OVERRIDES - 1}; pin fewer tensors one by one"
        )
    return replace(bare, overrides=overrides)


def _expert_slots(plan: Plan) -> tuple[LayerSlots, ...]:
    if plan.slots is None:
        return ()
    return tuple(
        LayerSlots(layer=layer.layer, device=layer.device, slots=layer.slots)
        for layer in plan.slots.layers
    )


def simulate(args: EngineArgs, model: Model) -> Mapping[str, DeviceId]:
    """Return where the engine will put each loaded tensor, from the arguments alone.

    A tied embedding is answered for its input copy; `output_device` tells of the other. What lies
    on SSD is mapped into host memory, so the answer there is the host.

    Belief: an override wins over the layer's device; the input layer is on the CPU; layers are
    split by float comparison - `load_tensors` in src/llama-model.cpp and `create_tensor` in
    src/llama-model-loader.cpp @ llama-cpp-python 0.3.36 - checked by
    tests/engine/test_planned_bytes.py.
    """
    by_position = _layer_devices(args, len(model.layers))
    overrides = [(re.compile(override.pattern), override.device) for override in args.overrides]
    found = {
        tensor.name: _first_match(tensor.name, overrides) or _default_device(tensor, by_position)
        for tensor in model.loaded_tensors
        if tensor.use is not TensorUse.ADAPTER
    }
    beside = (t.name for t in model.loaded_tensors if t.use is TensorUse.ADAPTER)
    return found | {name: found[matrix_of(name)] for name in beside}


def output_device(args: EngineArgs, model: Model) -> DeviceId:
    """Return where the output layer goes, and with it the second copy of a tied embedding."""
    return _layer_devices(args, len(model.layers))[-1]


def predicted_buffers(args: EngineArgs, model: Model) -> tuple[BufferReport, ...]:
    """Return the model buffers that the engine's log will report.

    Mapped weights are reported as the span of the file from the first to the last of them, one
    for each file, whatever lies between; allocated ones as the padded sum of their tensors.
    """
    devices = simulate(args, model)
    copies = _tensors_by_device(args, model, devices)
    names = {reference.id: reference.engine_name for reference in args.devices}
    found: list[BufferReport] = []
    for device, placed in copies.items():
        name = names.get(device, "CPU")
        found += _adapter_buffers(placed, device, name)
        tensors = [tensor for tensor in placed if tensor.use is not TensorUse.ADAPTER]
        if args.load_mode in _MAPPED_MODES and (device == HOST or name.startswith("MTL")):
            found += [
                _model_buffer(device, f"{name}_Mapped", span) for span in _mapped_spans(tensors)
            ]
        else:
            size = sum(_allocated_bytes(tensor, device, name) for tensor in tensors)
            found.append(_model_buffer(device, name, size))
    return tuple(found)


def _reference(machine: Machine, device: DeviceId) -> EngineDeviceRef:
    gpu = machine.gpu(device)
    return EngineDeviceRef(id=device, engine_name=gpu.engine_name or machine.label(device))


def _workers(machine: Machine, devices: tuple[DeviceId, ...]) -> tuple[str, ...]:
    """Return the addresses of the RPC workers among the devices, once each."""
    addresses = [
        device.partition("[")[2].rstrip("]") for device in devices if machine.gpu(device).is_remote
    ]
    return tuple(dict.fromkeys(address for address in addresses if address))


def _positions_by_device(plan: Plan) -> tuple[int, ...]:
    """Return how many layers each device takes; the output counts as one more of the last."""
    layers = [placement.dense for placement in plan.layers]
    counts = [layers.count(device) for device in plan.devices]
    if counts:
        counts[-1] += 1
    return tuple(counts)


def _overrides(
    plan: Plan, model: Model, by_default: Mapping[str, DeviceId]
) -> tuple[Override, ...]:
    """Return overrides for every tensor that would not go where the plan wants it."""
    wanted = {
        name: device if is_gpu(device) else HOST
        for name, device in plan.devices_by_tensor(model).items()
    }
    away: dict[DeviceId, list[str]] = {}
    for tensor in model.loaded_tensors:
        if tensor.use is TensorUse.ADAPTER:
            continue  # no override names it
        is_pinned_pair = tensor.use is TensorUse.DUPLICATED and any(
            exception.tensor == tensor.name for exception in plan.exceptions
        )
        if wanted[tensor.name] != by_default[tensor.name] or is_pinned_pair:
            away.setdefault(wanted[tensor.name], []).append(tensor.name)
    return tuple(
        Override(pattern=pattern, device=device)
        for device, names in away.items()
        for pattern in patterns_for(names)
    )


def _layer_devices(args: EngineArgs, layer_count: int) -> list[DeviceId]:
    """Return the device of each layer, and of the output after them."""
    positions = layer_count + 1
    on_gpu = min(args.n_gpu_layers, positions) if args.devices else 0
    first = max(positions - args.n_gpu_layers, 0)
    limits = _split_limits(args)
    devices = []
    for position in range(positions):
        if position < first or position - first >= on_gpu:
            devices.append(HOST)
            continue
        share = _as_float32(_as_float32(position - first) / on_gpu)
        chosen = sum(limit <= share for limit in limits)  # std::upper_bound
        devices.append(args.devices[chosen].id)
    return devices


def _split_limits(args: EngineArgs) -> list[float]:
    """Return the upper ends of the devices' shares, computed as the engine does: in float32."""
    running = 0.0
    limits = []
    for share in args.tensor_split or (1.0,) * len(args.devices):
        running = _as_float32(running + _as_float32(share))
        limits.append(running)
    return [_as_float32(limit / running) for limit in limits]


def _as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _first_match(name: str, overrides: list[tuple[re.Pattern[str], DeviceId]]) -> DeviceId | None:
    for pattern, device in overrides:
        if pattern.search(name):
            return device
    return None


def _default_device(tensor: Tensor, by_position: list[DeviceId]) -> DeviceId:
    if tensor.layer is not None:
        return by_position[tensor.layer]
    return HOST if tensor.role is TensorRole.INPUT else by_position[-1]


def _tensors_by_device(
    args: EngineArgs, model: Model, devices: Mapping[str, DeviceId]
) -> dict[DeviceId, list[Tensor]]:
    """Return the tensors of each device, second copies included."""
    by_position = _layer_devices(args, len(model.layers))
    overridden = [(re.compile(override.pattern), override.device) for override in args.overrides]
    found: dict[DeviceId, list[Tensor]] = {}
    for tensor in model.loaded_tensors:
        places = [devices[tensor.name]]
        if _first_match(tensor.name, overridden) is None:
            if tensor.use is TensorUse.DUPLICATED:
                places.append(by_position[-1])
            elif tensor.use is TensorUse.REPEATED:
                places += by_position[:-1]
        for place in dict.fromkeys(places):
            found.setdefault(place, []).append(tensor)
    return found


def _mapped_spans(tensors: list[Tensor]) -> list[int]:
    spans: dict[int, tuple[int, int]] = {}
    for tensor in tensors:
        end = tensor.offset_bytes + tensor.size_bytes
        first, last = spans.get(tensor.file_index, (tensor.offset_bytes, end))
        spans[tensor.file_index] = (min(first, tensor.offset_bytes), max(last, end))
    return [last - first for _, (first, last) in sorted(spans.items())]


def _allocated_bytes(tensor: Tensor, device: DeviceId, engine_name: str) -> int:
    size = tensor.size_bytes
    excess = tensor.shape[0] % MATRIX_ROW_PADDING
    is_padded = engine_name.startswith(_ROW_PADDING_DEVICES) and excess
    if is_padded and BY_NAME[tensor.encoding].is_block_quantized:
        size += row_bytes(tensor.encoding, MATRIX_ROW_PADDING - excess)
    alignment = DEVICE_ALIGNMENT_BYTES if is_gpu(device) else HOST_ALIGNMENT_BYTES
    return -(-size // alignment) * alignment


def _adapter_buffers(placed: list[Tensor], device: DeviceId, name: str) -> list[BufferReport]:
    """Return the buffer that each adapter takes on a device."""
    sums: dict[int, int] = {}
    for tensor in placed:
        if tensor.use is TensorUse.ADAPTER:
            size_bytes = _allocated_bytes(tensor, device, name)
            sums[tensor.file_index] = sums.get(tensor.file_index, 0) + size_bytes
    return [
        BufferReport(
            component="llama_adapter_lora_init_impl",
            buffer=name,
            device=device,
            kind="adapter",
            size_bytes=size_bytes,
        )
        for _, size_bytes in sorted(sums.items())
    ]


def _model_buffer(device: DeviceId, buffer: str, size_bytes: int) -> BufferReport:
    return BufferReport(
        component="load_tensors",
        buffer=buffer,
        device=device,
        kind="model",
        size_bytes=size_bytes,
    )
