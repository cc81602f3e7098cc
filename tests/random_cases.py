"""Random models, machines and strategies for properties, drawn from a seed.

Knows: which shapes real models, machines and wishes have.
Does not know: what must hold for them.
"""

from dataclasses import dataclass, replace
from random import Random

from moerun.machine.description import GpuBackend, Machine
from moerun.model.description import (
    AttentionSpec,
    ExpertPart,
    LatentSpec,
    Layer,
    Model,
    RecurrentSpec,
    Tensor,
    TensorRole,
    TensorUse,
)
from moerun.planning.strategy import (
    AllocationPolicy,
    ExpertResidency,
    Limit,
    LoadMode,
    Pin,
    Strategy,
    StreamingMode,
    Tier,
    Toggle,
)
from tests.builders import (
    GIB,
    MIB,
    PARTS,
    a_gpu,
    a_layer,
    a_machine,
    a_model,
    a_tensor,
    with_offsets,
)

MERGED = (ExpertPart.GATE_UP, ExpertPart.DOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One random problem."""

    seed: int
    model: Model
    machine: Machine
    strategy: Strategy


def a_case(seed: int) -> Case:
    """Return the problem of a seed."""
    draw = Random(seed)
    model = _a_model(draw)
    machine = _a_machine(draw, model)
    return Case(seed=seed, model=model, machine=machine, strategy=_a_strategy(draw, model, machine))


def a_case_of_devices(seed: int) -> Case:
    """Return a problem with one to four devices of different sizes and kinds."""
    draw = Random(f"devices {seed}")
    model = _a_model(draw)
    machine = _a_machine_of_devices(draw, model)
    return Case(seed=seed, model=model, machine=machine, strategy=_a_strategy(draw, model, machine))


def _a_machine_of_devices(draw: Random, model: Model) -> Machine:
    size = model.weight_bytes
    ram = int(size * draw.choice((0.1, 0.3, 0.7, 1.2, 2.5))) + draw.randrange(1, 8) * GIB
    backends = (GpuBackend.CUDA, GpuBackend.CUDA, GpuBackend.ROCM, GpuBackend.VULKAN)
    devices = []
    for index in range(draw.choice((1, 2, 3, 4))):
        backend = GpuBackend.RPC if draw.random() < 0.25 else draw.choice(backends)
        free = int(size * draw.choice((0.03, 0.1, 0.25, 0.5))) + draw.randrange(GIB, 2 * GIB)
        rate = draw.choice((None, 20e9, 900e9))
        card = a_gpu(index, free=free, total=free + GIB, backend=backend)
        devices.append(replace(card, memory_bandwidth_bytes_per_s=rate))
    machine = a_machine(gpus=devices, ram=ram, available=int(ram * draw.uniform(0.5, 1.0)))
    rate = draw.choice((None, 60e9))
    return replace(machine, host=replace(machine.host, memory_bandwidth_bytes_per_s=rate))


def _a_model(draw: Random) -> Model:
    count = draw.choice((1, 2, 3, 5, 8, 12, 13))
    is_dense = draw.random() < 0.15
    first_sparse = draw.choice((0, 0, 1, 3))
    dense = draw.randrange(1, 200) * MIB
    expert = draw.randrange(1, 400) * MIB
    parts = draw.choice((PARTS, MERGED))
    kind = draw.choice(("plain", "plain", "latent", "windowed", "hybrid"))
    has_biases = draw.random() < 0.2
    layers = []
    for index in range(count):
        # mixed quantizations: some layers are larger than their neighbours
        weight = draw.choice((4, 4, 4, 5, 6))
        sizes = [expert * weight // 4 + draw.randrange(7) for _ in parts]
        is_sparse = not is_dense and index >= first_sparse
        layer = a_layer(
            index,
            dense=dense + draw.randrange(MIB),
            experts=sizes if is_sparse else (),
            parts=parts,
            kv_values=draw.choice((256, 512, 2048)),
            has_biases=has_biases,
        )
        layers.append(_with_state(layer, kind, index))
    if draw.random() < 0.15:
        layers[-1] = replace(
            layers[-1],
            attention=None,
            tensors=tuple(replace(t, use=TensorUse.SKIPPED) for t in layers[-1].tensors),
        )
    if draw.random() < 0.3:
        factors = _rotary_factors()
        layers[0] = replace(layers[0], tensors=(*layers[0].tensors, factors))
    model = a_model(
        layers=layers,
        input_bytes=draw.randrange(1, 500) * MIB,
        output_bytes=draw.randrange(1, 500) * MIB,
        is_tied=draw.random() < 0.3,
        train_context_tokens=draw.choice((0, 512, 4096, 8192, 32768, 131072)),
        vocabulary_size=draw.choice((1000, 32000, 150000)),
    )
    return with_offsets(model)


def _rotary_factors() -> Tensor:
    return a_tensor(
        "rope_freqs.weight",
        256,
        role=TensorRole.OTHER,
        layer=0,
        use=TensorUse.REPEATED,
        shape=(64,),
    )


def _with_state(layer: Layer, kind: str, index: int) -> Layer:
    match kind:
        case "latent":
            return replace(layer, attention=LatentSpec(latent_length=512, rope_length=64))
        case "windowed" if index % 2:
            spec = AttentionSpec(kv_heads=8, key_length=64, value_length=64, window_tokens=128)
            return replace(layer, attention=spec)
        case "hybrid" if index % 4:
            state = RecurrentSpec(convolution_values=3 * 4096, state_values=128 * 4096)
            return replace(layer, attention=None, recurrent=state)
        case _:
            return layer


def _a_machine(draw: Random, model: Model) -> Machine:
    size = model.weight_bytes
    ram = int(size * draw.choice((0.1, 0.3, 0.7, 1.2, 2.5))) + draw.randrange(1, 8) * GIB
    available = int(ram * draw.uniform(0.5, 1.0))
    system = draw.choice(("Linux", "Linux", "Windows", "Darwin"))
    if draw.random() < 0.15:
        limit = int(ram * 0.7)
        shared = a_gpu(
            free=limit,
            total=ram,
            backend=GpuBackend.METAL,
            shares_host_memory=True,
            working_set_limit=limit,
        )
        worker = a_gpu(1, free=int(size * draw.uniform(0.02, 0.5)), backend=GpuBackend.RPC)
        gpus = (shared, worker) if draw.random() < 0.3 else (shared,)
        return a_machine(gpus=gpus, ram=ram, available=available, system=system)
    cards = []
    for index in range(draw.choice((0, 1, 1, 1, 2, 2, 2, 3, 5))):
        free = int(size * draw.uniform(0.02, 0.8)) + draw.randrange(2 * GIB)
        backend = draw.choice((GpuBackend.CUDA, GpuBackend.CUDA, GpuBackend.VULKAN, GpuBackend.RPC))
        cards.append(a_gpu(index, free=free, total=free + GIB, backend=backend))
    return a_machine(gpus=cards, ram=ram, available=available, system=system)


def _a_strategy(draw: Random, model: Model, machine: Machine) -> Strategy:
    strategy = Strategy(
        split_layers=draw.random() < 0.8,
        context_tokens=draw.choice((None, None, 512, 4096, 16384)),
        extra_buffers=draw.choice((Toggle.AUTO, Toggle.AUTO, Toggle.OFF, Toggle.ON)),
        flash_attention=draw.choice((Toggle.AUTO, Toggle.ON, Toggle.OFF)),
        ubatch_tokens=draw.choice((128, 512, 2048)),
    )
    if draw.random() < 0.1:
        strategy = replace(strategy, context_tokens=None, context_is_largest=True)
    if draw.random() < 0.2:
        strategy = replace(strategy, hierarchy=draw.choice(_HIERARCHIES))
    if draw.random() < 0.2:
        limits = tuple(
            draw.choice(
                (Limit(limit_bytes=draw.randrange(1, 16) * GIB), Limit(of_total_fraction=0.5))
            )
            for _ in range(draw.choice((1, max(1, len(machine.gpus)))))
        )
        strategy = replace(strategy, vram_limit=limits)
    if draw.random() < 0.2:
        limit = draw.choice(
            (Limit(limit_bytes=draw.randrange(2, 32) * GIB), Limit(of_total_fraction=0.8))
        )
        strategy = replace(strategy, ram_limit=limit)
    if draw.random() < 0.15:
        strategy = replace(strategy, cpu_expert_layers=draw.randrange(len(model.layers) + 2))
    if draw.random() < 0.15:
        shares = (None, 0.0, 0.3, 0.5, 0.8)
        residency = ExpertResidency(
            vram_fraction=draw.choice(shares), ram_fraction=draw.choice(shares)
        )
        strategy = replace(strategy, expert_residency=residency)
    if draw.random() < 0.1:
        modes = (LoadMode.COPY, LoadMode.MMAP, LoadMode.LOCK)
        strategy = replace(strategy, load_mode=draw.choice(modes))
    if draw.random() < 0.25:
        strategy = replace(strategy, pins=_pins(draw, model, machine))
    if draw.random() < 0.35:
        strategy = replace(
            strategy,
            streaming=draw.choice(tuple(StreamingMode)),
            allocation_policy=draw.choice(tuple(AllocationPolicy)),
            preload_experts=draw.choice((None, 0, 4)),
            expert_slots=draw.choice((None, None, 0, 7)),
        )
    if draw.random() < 0.05:
        strategy = replace(strategy, load_mode=LoadMode.STREAM)
    return strategy


_HIERARCHIES = (
    (Tier.VRAM, Tier.RAM),
    (Tier.RAM, Tier.SSD),
    (Tier.VRAM, Tier.SSD),
    (Tier.RAM,),
    (Tier.SSD,),
)


def _pins(draw: Random, model: Model, machine: Machine) -> tuple[Pin, ...]:
    layer = draw.randrange(len(model.layers))
    patterns = (
        f"blk.{layer}.*",
        f"blk.{layer}.ffn_down_exps.weight",
        "*.ffn_up_exps.*",
        f"blk.{layer}.attn_q.weight",
        "output.weight",
        "token_embd.weight",
        "blk.*.ffn_*_exps.*",
    )
    devices = ("cpu", "ssd", *(f"gpu{index}" for index in range(max(1, len(machine.gpus)))))
    return tuple(
        Pin(pattern=draw.choice(patterns), device=draw.choice(devices), origin="--pin")
        for _ in range(draw.choice((1, 1, 2)))
    )
