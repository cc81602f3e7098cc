"""What a device is charged before any weight: driver context, compute buffers, staging.

Beliefs about llama-cpp-python 0.3.36, held to the engine's own log by
tests/engine/test_predicted_buffers.py: logits are computed for a whole micro-batch -
`graph_reserve` in src/llama-context.cpp; large batches copy one weight matrix at a time from host
memory to a GPU - `ggml_backend_sched_split_graph` in ggml/src/ggml-backend.cpp.

Knows: constants of drivers, and formulas over the shapes of a model.
Does not know: budgets, or which layer goes where.
"""

from dataclasses import dataclass
from typing import Final

from moerun.machine.description import Gpu, GpuBackend
from moerun.model.description import AttentionSpec, Model, Tensor, TensorRole, TensorUse
from moerun.planning.plan import ChargeKind, Confidence, Measurements
from moerun.planning.strategy import Strategy, Toggle
from moerun.units import MIB

# What a driver takes on the device before the first tensor. Assumed: round figures from use.
RUNTIME_BYTES: Final[dict[GpuBackend, int]] = {
    GpuBackend.CUDA: 384 * MIB,
    GpuBackend.ROCM: 384 * MIB,
    GpuBackend.VULKAN: 128 * MIB,
    GpuBackend.SYCL: 256 * MIB,
    GpuBackend.METAL: 64 * MIB,
    GpuBackend.RPC: 0,  # the worker's own context is there before its free memory is asked
    GpuBackend.OTHER: 256 * MIB,
}
HOST_RUNTIME_BYTES: Final = 256 * MIB  # Python, the engine's libraries, the vocabulary
HOST_RUNTIME_WITH_GPU_BYTES: Final = 512 * MIB  # and the driver's share of the process

# Backends whose `offload_op` takes large batches of host weights to the device.
OFFLOADING: Final = frozenset(
    {GpuBackend.CUDA, GpuBackend.ROCM, GpuBackend.VULKAN, GpuBackend.SYCL, GpuBackend.METAL}
)
_VALUE_BYTES: Final = 4  # activations are F32
_MASK_BYTES: Final = 6  # F32 and, for flash attention, F16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """Bytes and how they are known."""

    size_bytes: int
    confidence: Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The widths of a model that decide its compute buffers, read from its tensors' shapes."""

    layer_values: int  # values that one token keeps alive in the widest layer
    query_heads: int
    embedding_length: int
    vocabulary_size: int
    largest_matrix_bytes: int


def shapes(model: Model) -> Shapes:
    """Return the widths of a model; one pass over its tensors."""
    feed_forward = attention = recurrent = expert = largest = 0
    heads = 1
    for layer in model.layers:
        for tensor in layer.tensors:
            if tensor.use is TensorUse.SKIPPED or len(tensor.shape) < 2:
                continue
            largest = max(largest, tensor.size_bytes)
            rows = tensor.shape[1]
            match tensor.role:
                case TensorRole.EXPERT:
                    expert = max(expert, _expert_values(tensor, model))
                case TensorRole.DENSE_FFN | TensorRole.SHARED_EXPERT:
                    feed_forward = max(feed_forward, rows)
                case TensorRole.ATTENTION:
                    attention = max(attention, rows)
                case TensorRole.RECURRENT:
                    recurrent = max(recurrent, rows)
                case _:
                    pass
        if isinstance(layer.attention, AttentionSpec) and layer.attention.key_length:
            heads = max(heads, attention // layer.attention.key_length)
        elif layer.attention is not None:
            heads = max(heads, attention // 192)  # MLA: 128 values and 64 with rotary positions
    embedding = model.embedding_length
    widest = max(2 * attention, 2 * recurrent, 3 * feed_forward + expert)
    return Shapes(
        layer_values=4 * embedding + widest,
        query_heads=heads,
        embedding_length=embedding,
        vocabulary_size=model.vocabulary_size,
        largest_matrix_bytes=largest,
    )


def runtime(gpu: Gpu) -> Sized:
    """Return what the driver takes on a GPU."""
    return Sized(size_bytes=RUNTIME_BYTES[gpu.backend], confidence=Confidence.ASSUMED)


def host_runtime(*, with_gpu: bool) -> Sized:
    """Return what the process itself takes."""
    size = HOST_RUNTIME_WITH_GPU_BYTES if with_gpu else HOST_RUNTIME_BYTES
    return Sized(size_bytes=size, confidence=Confidence.ASSUMED)


def compute(
    shape: Shapes, strategy: Strategy, *, context_tokens: int, has_layers: bool, has_output: bool
) -> Sized:
    """Return the compute buffer of a device, for the layers and the output that it may have."""
    batch = max(1, min(strategy.ubatch_tokens, context_tokens))
    values = shape.embedding_length
    if has_layers:
        values = max(values, shape.layer_values)
    if has_output:
        values = max(values, shape.vocabulary_size + 2 * shape.embedding_length)
    size = values * batch * _VALUE_BYTES
    if has_layers:
        size += context_tokens * batch * _MASK_BYTES
        if strategy.flash_attention is Toggle.OFF:
            size += context_tokens * batch * shape.query_heads * _VALUE_BYTES
    return Sized(size_bytes=size, confidence=Confidence.DERIVED)


def measured_or(
    derived: Sized, measured: Measurements | None, *, device: str, context_tokens: int
) -> Sized:
    """Return what the engine measured for that device and context, else the formula's answer."""
    if measured is None or measured.context_tokens != context_tokens:
        return derived
    for buffer in measured.buffers:
        if buffer.device == device and buffer.kind is ChargeKind.COMPUTE:
            total = sum(
                other.size_bytes
                for other in measured.buffers
                if other.device == device and other.kind is ChargeKind.COMPUTE
            )
            return Sized(size_bytes=total, confidence=Confidence.MEASURED)
    return derived


def staging(gpu: Gpu, shape: Shapes) -> Sized:
    """Return the room in which a GPU receives host weights for large batches."""
    size = shape.largest_matrix_bytes if gpu.backend in OFFLOADING else 0
    return Sized(size_bytes=size, confidence=Confidence.DERIVED)


def _expert_values(tensor: Tensor, model: Model) -> int:
    """Return the values of one token in the experts it uses: inputs, gates, ups and downs."""
    inner = max(tensor.shape[0], tensor.shape[1])
    return max(1, model.experts_used) * (2 * inner + model.embedding_length)
