"""What a device is charged before any weight: driver context, compute buffers, staging.

Beliefs about llama-cpp-python 0.3.36, held to dry runs of the engine on headers of real models by
tests/engine/test_compute_buffers.py: the graph is reserved for a whole micro-batch, logits of all
its tokens included - `graph_reserve` in src/llama-context.cpp; memory is used again from phase to
phase, so that the largest phase counts - ggml/src/ggml-alloc.c; large batches copy one weight
matrix at a time from host memory to a GPU - `ggml_backend_sched_split_graph` in
ggml/src/ggml-backend.cpp.

Knows: constants of drivers, and formulas over the shapes of a model.
Does not know: budgets, or which layer goes where.
"""

from dataclasses import dataclass
from enum import Flag, auto
from typing import Final

from moerun.machine.description import Gpu, GpuBackend
from moerun.model.description import (
    AttentionSpec,
    ExpertPart,
    LatentSpec,
    Layer,
    Model,
    Tensor,
    TensorRole,
    TensorUse,
)
from moerun.planning.plan import ChargeKind, Confidence, Measurements
from moerun.planning.strategy import Strategy, Toggle
from moerun.units import KIB, MIB

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
# What a runner's process takes beside all buffers: Python, numpy, the engine and their code; the
# engine's tables of tokens and merges; its graphs and what is kept of each layer. It comes to 57 to
# 110 MiB, and is held by tests/engine/test_host_runtime.py.
HOST_PROGRAM_BYTES: Final = 64 * MIB
HOST_TOKEN_BYTES: Final = 320
HOST_LAYER_BYTES: Final = 256 * KIB
HOST_DRIVER_BYTES: Final = 384 * MIB  # a GPU driver's share of the process; assumed

# Where the formula for compute buffers came out, as shares of what dry runs of real headers said;
# tests/engine/test_compute_buffers.py fails outside of it.
FORMULA_FRACTIONS: Final = (0.94, 1.35)

# Backends whose `offload_op` takes large batches of host weights to the device.
OFFLOADING: Final = frozenset(
    {GpuBackend.CUDA, GpuBackend.ROCM, GpuBackend.VULKAN, GpuBackend.SYCL, GpuBackend.METAL}
)
_VALUE_BYTES: Final = 4  # activations are F32
_MASK_BYTES: Final = {Toggle.AUTO: 2, Toggle.ON: 2, Toggle.OFF: 4}  # F16 for flash attention
# Inputs are kept this often where several devices work on batches in turn:
# GGML_SCHED_MAX_COPIES - ggml/src/ggml-backend.cpp @ 0.3.36.
PIPELINE_COPIES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """Bytes and how they are known."""

    size_bytes: int
    confidence: Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The values that one token keeps alive in each phase of a layer, from the tensors' shapes."""

    expert_values: int
    attention_values: int
    feed_forward_values: int
    query_heads: int
    embedding_length: int
    output_values: int
    window_tokens: int
    largest_matrix_bytes: int


class Work(Flag):
    """What a device computes; it decides its buffer."""

    INPUTS = 0  # it only holds embeddings and masks for others
    EXPERTS = auto()
    LAYERS = auto()
    OUTPUT = auto()


def shapes(model: Model) -> Shapes:
    """Return the widths of a model; one pass over its tensors."""
    embedding = model.embedding_length
    expert = feed_forward = attention = recurrent = largest = 0
    for layer in model.layers:
        for tensor in layer.tensors:
            if tensor.use is TensorUse.SKIPPED or len(tensor.shape) < 2:
                continue
            largest = max(largest, tensor.size_bytes)
            rows = tensor.shape[1]
            match tensor.role:
                case TensorRole.EXPERT:
                    expert = max(expert, _expert_length(tensor))
                case TensorRole.DENSE_FFN | TensorRole.SHARED_EXPERT:
                    feed_forward = max(feed_forward, rows)
                case TensorRole.ATTENTION:
                    attention = max(attention, rows)
                case TensorRole.RECURRENT:
                    recurrent = max(recurrent, rows)
                case _:
                    pass
    used = max(1, model.experts_used)
    heads = max((_query_heads(layer, attention) for layer in model.layers), default=1)
    return Shapes(
        # gate, up and their product; or each expert's answer, plain and weighted
        expert_values=max(3 * used * expert, 2 * used * embedding) + 6 * embedding if expert else 0,
        attention_values=max(
            max((_attention_values(layer, attention, heads) for layer in model.layers), default=0),
            4 * recurrent,
        )
        + 6 * embedding,
        feed_forward_values=3 * feed_forward + 6 * embedding,
        query_heads=heads,
        embedding_length=embedding,
        output_values=_output_values(model),
        window_tokens=max(map(_window_tokens, model.layers), default=0),
        largest_matrix_bytes=largest,
    )


def runtime(gpu: Gpu) -> Sized:
    """Return what the driver takes on a GPU."""
    return Sized(size_bytes=RUNTIME_BYTES[gpu.backend], confidence=Confidence.ASSUMED)


def host_runtime(model: Model, devices: tuple[Gpu, ...]) -> Sized:
    """Return what the process itself takes; what a worker lends needs no driver here."""
    size = (
        HOST_PROGRAM_BYTES
        + model.vocabulary_size * HOST_TOKEN_BYTES
        + len(model.layers) * HOST_LAYER_BYTES
    )
    if any(not gpu.is_remote for gpu in devices):
        return Sized(size_bytes=size + HOST_DRIVER_BYTES, confidence=Confidence.ASSUMED)
    return Sized(size_bytes=size, confidence=Confidence.DERIVED)


def compute(
    shape: Shapes,
    strategy: Strategy,
    *,
    context_tokens: int,
    work: Work,
    is_pipelined: bool = False,
) -> Sized:
    """Return the compute buffer of a device for what it computes: its most demanding phase."""
    batch = max(1, min(strategy.ubatch_tokens, context_tokens))
    row = batch * _VALUE_BYTES
    embedding = 2 * shape.embedding_length * row
    cells = context_tokens
    if shape.window_tokens:
        cells += min(context_tokens, shape.window_tokens + batch)
    mask = cells * batch * _MASK_BYTES[strategy.flash_attention]
    copies = PIPELINE_COPIES if is_pipelined else 1
    phases = [mask + embedding + shape.output_values * _VALUE_BYTES]
    if Work.EXPERTS in work:
        phases.append(shape.expert_values * row + mask)
    if Work.LAYERS in work:
        scores = 0
        if strategy.flash_attention is Toggle.OFF:
            scores = context_tokens * batch * shape.query_heads * _VALUE_BYTES
        phases.append(shape.attention_values * row + scores + mask)
        phases.append(shape.feed_forward_values * row + mask)
    if Work.OUTPUT in work:
        phases.append(shape.output_values * row + 2 * embedding)
    # a host that only holds the inputs keeps the hidden state once in each copy, a device twice
    kept = mask + (embedding if Work.LAYERS in work else embedding // 2)
    size = max(phases) + (copies - 1) * kept
    return Sized(size_bytes=size, confidence=Confidence.DERIVED)


def measured_or(
    derived: Sized,
    measured: Measurements | None,
    *,
    device: str,
    context_tokens: int,
    ubatch_tokens: int,
) -> Sized:
    """Return what the engine measured for that device and context, else the formula's answer."""
    if measured is None or measured.context_tokens != context_tokens:
        return derived
    if measured.ubatch_tokens != ubatch_tokens:
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


def _expert_length(tensor: Tensor) -> int:
    """Return the inner length of one expert that a matrix of experts tells."""
    match tensor.part:
        case ExpertPart.DOWN:
            return tensor.shape[0]
        case ExpertPart.GATE_UP:
            return tensor.shape[1] // 2
        case _:
            return tensor.shape[1]


def _query_heads(layer: Layer, attention_rows: int) -> int:
    """Return at least how many heads ask: the widest attention matrix has a row for each value."""
    match layer.attention:
        case AttentionSpec(key_length=length) if length:
            return max(1, attention_rows // length)
        case LatentSpec(rope_length=rope):
            return max(1, attention_rows // (3 * rope or 1))  # 128 values beside 64 with positions
        case _:
            return 1


def _attention_values(layer: Layer, attention_rows: int, heads: int) -> int:
    """Return what attention keeps for a token: queries and answers, twice at most."""
    match layer.attention:
        case LatentSpec(latent_length=latent, rope_length=rope):
            return (3 * latent + rope) * heads
        case _:
            return 3 * attention_rows


def _window_tokens(layer: Layer) -> int:
    """Return the window of a layer that has one; such layers have a mask of their own."""
    spec = layer.attention
    return 0 if spec is None or spec.window_tokens is None else spec.window_tokens


def _output_values(model: Model) -> int:
    """Return the values of one token's logits: the rows of the output matrix."""
    rows = [
        tensor.shape[1]
        for tensor in model.shared
        if len(tensor.shape) > 1
        and (tensor.role is TensorRole.OUTPUT or tensor.use is TensorUse.DUPLICATED)
    ]
    return max([model.vocabulary_size, *rows])
