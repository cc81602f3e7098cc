"""Models and machines with small round numbers that a person can add up.

Sizes are in bytes unless said otherwise; `MIB` keeps them apart from the constants that the
planner charges for drivers and compute buffers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moerun.engine.arguments import EngineArgs
from moerun.machine.description import (
    DeviceId,
    Gpu,
    GpuBackend,
    Host,
    Machine,
    Storage,
    StorageKind,
)
from moerun.model.description import (
    AttentionSpec,
    ExpertPart,
    Layer,
    Model,
    ModelFile,
    Tensor,
    TensorRole,
    TensorUse,
)
from moerun.planning.strategy import LoadMode, Strategy, Toggle

MIB = 1 << 20
GIB = 1 << 30
PARTS = (ExpertPart.GATE, ExpertPart.UP, ExpertPart.DOWN)


def a_tensor(
    name: str,
    size_bytes: int,
    *,
    role: TensorRole = TensorRole.ATTENTION,
    layer: int | None = None,
    part: ExpertPart | None = None,
    use: TensorUse = TensorUse.LOADED,
    encoding: str = "F32",
    shape: tuple[int, ...] = (512, 512),
) -> Tensor:
    return Tensor(
        name=name,
        role=role,
        layer=layer,
        part=part,
        shape=shape,
        encoding=encoding,
        size_bytes=size_bytes,
        offset_bytes=0,
        file_index=0,
        use=use,
    )


def a_layer(
    index: int,
    *,
    dense: int,
    experts: Sequence[int] = (),
    parts: Sequence[ExpertPart] = PARTS,
    kv_values: int = 0,
    has_biases: bool = False,
    expert_count: int = 8,
) -> Layer:
    """Return a layer: `experts` are the bytes of its parts, a token keeps `kv_values` in F16."""
    tensors = [a_tensor(f"blk.{index}.attn_q.weight", dense, layer=index)]
    for part, size in zip(parts, experts, strict=False):
        bias = size // 10 if has_biases else 0
        tensors.append(
            a_tensor(
                f"blk.{index}.ffn_{part.value}_exps.weight",
                size - bias,
                role=TensorRole.EXPERT,
                layer=index,
                part=part,
                shape=(512, 512, expert_count),
            )
        )
        if bias:
            tensors.append(
                a_tensor(
                    f"blk.{index}.ffn_{part.value}_exps.bias",
                    bias,
                    role=TensorRole.EXPERT,
                    layer=index,
                    part=part,
                    shape=(512, expert_count),
                )
            )
    spec = AttentionSpec(kv_heads=1, key_length=kv_values // 2, value_length=kv_values // 2)
    return Layer(index=index, tensors=tuple(tensors), attention=spec if kv_values else None)


def a_model(
    *,
    layers: Sequence[Layer] | int = 4,
    dense: int = 10 * MIB,
    expert: int = 100 * MIB,
    kv_values: int = 512,
    input_bytes: int = 50 * MIB,
    output_bytes: int = 50 * MIB,
    is_tied: bool = False,
    experts_used: int = 2,
    expert_count: int = 8,
    train_context_tokens: int = 8192,
    vocabulary_size: int = 1000,
) -> Model:
    """Return a model; with a number of layers, each has `dense` bytes and three parts `expert`."""
    if isinstance(layers, int):
        layers = tuple(
            a_layer(
                index,
                dense=dense,
                experts=(expert,) * 3 if expert else (),
                kv_values=kv_values,
                expert_count=expert_count,
            )
            for index in range(layers)
        )
    shared = [
        a_tensor(
            "token_embd.weight",
            input_bytes,
            role=TensorRole.INPUT,
            use=TensorUse.DUPLICATED if is_tied else TensorUse.LOADED,
        ),
        a_tensor("output_norm.weight", MIB, role=TensorRole.NORM, shape=(512,)),
    ]
    if not is_tied:
        shared.append(a_tensor("output.weight", output_bytes, role=TensorRole.OUTPUT))
    model = Model(
        name="test model",
        architecture="qwen3moe",
        files=(ModelFile(path="/models/test.gguf", size_bytes=0, data_offset_bytes=0),),
        layers=tuple(layers),
        shared=tuple(shared),
        expert_count=expert_count if any(layer.is_sparse for layer in layers) else 0,
        experts_used=experts_used if any(layer.is_sparse for layer in layers) else 0,
        train_context_tokens=train_context_tokens,
        embedding_length=512,
        vocabulary_size=vocabulary_size,
        parameter_count=0,
        has_tied_output=is_tied,
        quantization="F32",
        digest="d1",
    )
    return with_offsets(model)


def with_offsets(model: Model) -> Model:
    """Return the model with its tensors one after another in one file."""
    end = 4096
    placed: dict[str, int] = {}
    for tensor in model.tensors:
        placed[tensor.name] = end
        end += -(-tensor.size_bytes // 32) * 32

    def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, offset_bytes=placed[t.name]) for t in tensors)

    return replace(
        model,
        layers=tuple(replace(layer, tensors=moved(layer.tensors)) for layer in model.layers),
        shared=moved(model.shared),
        files=(ModelFile(path="/models/test.gguf", size_bytes=end, data_offset_bytes=4096),),
    )


def a_gpu(
    index: int = 0,
    *,
    free: int = 8 * GIB,
    total: int | None = None,
    backend: GpuBackend = GpuBackend.CUDA,
    shares_host_memory: bool = False,
    working_set_limit: int | None = None,
) -> Gpu:
    names = {GpuBackend.RPC: f"RPC0[10.0.0.{index}:50052]", GpuBackend.METAL: f"MTL{index}"}
    return Gpu(
        id=DeviceId("gpu:" + names.get(backend, f"0000:0{index}:00.0")),
        name=f"card {index}",
        total_bytes=free if total is None else total,
        free_bytes=free,
        backend=backend,
        engine_name=f"RPC{index}"
        if backend is GpuBackend.RPC
        else names.get(backend, f"CUDA{index}"),
        shares_host_memory=shares_host_memory,
        working_set_limit_bytes=working_set_limit,
    )


def a_machine(
    *,
    gpus: Sequence[Gpu | int] = (),
    ram: int = 64 * GIB,
    available: int | None = None,
    cores: int = 8,
    system: str = "Linux",
) -> Machine:
    """Return a machine; a number among `gpus` is the free memory of a card."""
    return Machine(
        gpus=tuple(
            gpu if isinstance(gpu, Gpu) else a_gpu(index, free=gpu)
            for index, gpu in enumerate(gpus)
        ),
        host=Host(
            total_bytes=ram,
            available_bytes=ram if available is None else available,
            swap_free_bytes=0,
            physical_cores=cores,
            system=system,
        ),
        storage=Storage(path="/models", kind=StorageKind.NVME, free_bytes=1000 * GIB),
    )


def without_margins(strategy: Strategy | None = None) -> Strategy:
    return replace(strategy or Strategy(), gpu_margin_bytes=0, host_margin_bytes=0)


def some_arguments(**changes: Any) -> EngineArgs:
    """Return engine arguments for the processor alone, changed as asked."""
    values: dict[str, Any] = {
        "model_path": "/models/model.gguf",
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
        "threads": 1,  # more only wait for one another on models this small
    }
    return EngineArgs(**values | changes)
