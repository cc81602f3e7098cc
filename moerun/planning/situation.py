"""One problem with one context: everything that is known before anything is placed.

Knows: how model, machine and strategy come together, and what devices are charged beforehand.
Does not know: which GPUs are tried, or which layer goes where.
"""

from dataclasses import dataclass, replace
from typing import Final

from moerun.errors import PinConflict
from moerun.machine.description import HOST, Gpu, Machine
from moerun.model.description import Model
from moerun.model.encodings import BY_NAME
from moerun.planning import fixed_charges, slots
from moerun.planning.budgets import Rooms, rooms
from moerun.planning.cargo import Cargo, cargo, state_bytes, sums
from moerun.planning.fixed_charges import Shapes, Sized, Work, shapes
from moerun.planning.packing import Freight
from moerun.planning.pins import Pinning, resolve_pins
from moerun.planning.plan import ChargeKind, Measurements
from moerun.planning.slots import SlotWish
from moerun.planning.strategy import LoadMode, Strategy, Tier, Toggle

# Encodings that `use_extra_bufts` packs anew for the processor, so that a tied output becomes a
# copy of its own - ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp @ 0.3.36.
REPACKED: Final = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that stays the same while contexts and sets of GPUs are tried.

    With `slots`, what dense weights and KV cache leave of VRAM is for slots, not for whole layers
    of experts.
    """

    model: Model
    machine: Machine
    strategy: Strategy
    measured: Measurements | None
    pinning: Pinning
    cargo: Cargo
    rooms: Rooms
    shapes: Shapes
    slots: SlotWish | None = None

    @property
    def may_use_ssd(self) -> bool:
        """Whether experts may stay on SSD: the tier is there, and host weights may be mapped."""
        return Tier.SSD in self.strategy.hierarchy and self.strategy.load_mode in (
            None,
            LoadMode.MMAP,
            LoadMode.STREAM,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A problem with one context: what each layer takes is known now."""

    problem: Problem
    context_tokens: int
    kv_bytes: tuple[int, ...]
    freight: Freight


def pose(
    model: Model,
    machine: Machine,
    strategy: Strategy,
    measured: Measurements | None,
    *,
    tries_slots: bool = False,
) -> Problem:
    """Return the problem; PinConflict when pins, shares or slots contradict one another.

    It is one with slots where they were asked for, or are to be tried, and nothing forbids them.
    """
    strategy = replace(
        strategy,
        flash_attention=flash_attention(model, machine, strategy),
        ubatch_tokens=min(strategy.ubatch_tokens, strategy.batch_tokens),
    )
    pinning = resolve_pins(model, machine, strategy)
    wish = None
    if (tries_slots or slots.is_asked(strategy)) and (
        slots.obstacle(model, machine, strategy, pinning) is None
    ):
        wish = slots.slot_wish(model, strategy, pinning)
    return Problem(
        model=model,
        machine=machine,
        strategy=strategy,
        measured=measured,
        pinning=pinning,
        cargo=cargo(model, strategy, pinning, has_slots=wish is not None),
        rooms=rooms(machine, strategy),
        shapes=shapes(model),
        slots=wish,
    )


def flash_attention(model: Model, machine: Machine, strategy: Strategy) -> Toggle:
    """Return the setting that the model and the KV encoding allow.

    Left to the engine it depends on the placement (a layer whose attention the scheduler moves
    turns it off for all), and with it the arithmetic. Processors compute it at every shape, so it
    is simply on where no GPU of this machine takes part; on GPUs the engine's own test decides.

    Beliefs: a quantized V cache needs flash attention, and grok cannot have it -
    `llama_init_from_model` in src/llama-context.cpp @ llama-cpp-python 0.3.36 - checked by
    tests/engine/test_planner_beliefs.py.
    """
    encoding = BY_NAME.get(strategy.kv_encoding_v)
    is_quantized = encoding is not None and encoding.is_block_quantized
    wanted = Toggle.OFF if model.architecture == "grok" else strategy.flash_attention
    has_local_gpu = any(not gpu.is_remote for gpu in machine.gpus)
    if wanted is Toggle.AUTO and not (has_local_gpu and Tier.VRAM in strategy.hierarchy):
        wanted = Toggle.ON
    if not is_quantized:
        return wanted
    if wanted is Toggle.OFF:
        raise PinConflict(
            f"KV values as {strategy.kv_encoding_v} need flash attention, which is off for "
            f"{model.name}; use F16 values"
        )
    return Toggle.ON


def situation(problem: Problem, context_tokens: int) -> Situation:
    """Return the problem with one context."""
    load = problem.cargo
    try:
        kv = state_bytes(problem.model, problem.strategy, context_tokens=context_tokens)
    except ValueError as error:
        keys, values = problem.strategy.kv_encoding_k, problem.strategy.kv_encoding_v
        raise PinConflict(
            f"a KV cache of {keys} keys and {values} values does not suit this model: {error}",
            hint="use F16 for both",
        ) from error
    dense = tuple(
        dense + cache + state
        for dense, cache, state in zip(load.dense_bytes, kv, load.recurrent_bytes, strict=True)
    )
    layers = tuple(sum(size for _, size in parts) for parts in load.vram_parts)
    return Situation(
        problem=problem,
        context_tokens=context_tokens,
        kv_bytes=kv,
        freight=Freight(
            dense_sums_bytes=sums(dense),
            expert_sums_bytes=sums(layers),
            parts=load.vram_parts,
            split_layers=problem.strategy.split_layers,
        ),
    )


def gpu_charges(
    at: Situation, gpu: Gpu, *, has_output: bool, has_staging: bool, is_pipelined: bool = False
) -> tuple[tuple[ChargeKind, Sized], ...]:
    """Return what a GPU is charged before any tensor that is free to move."""
    problem = at.problem
    work = Work.LAYERS | Work.EXPERTS | (Work.OUTPUT if has_output else Work.INPUTS)
    derived = fixed_charges.compute(
        problem.shapes,
        problem.strategy,
        context_tokens=at.context_tokens,
        work=work,
        is_pipelined=is_pipelined,
    )
    compute = fixed_charges.measured_or(
        derived,
        problem.measured,
        device=gpu.id,
        context_tokens=at.context_tokens,
        ubatch_tokens=problem.strategy.ubatch_tokens,
    )
    charges = [
        (ChargeKind.RUNTIME, fixed_charges.runtime(gpu)),
        (ChargeKind.COMPUTE, compute),
    ]
    if has_staging and compute == derived:  # a measured buffer holds it already
        charges.append((ChargeKind.STAGING, fixed_charges.staging(gpu, problem.shapes)))
    return tuple(charges)


def host_charges(
    at: Situation, devices: tuple[Gpu, ...], *, work: Work, is_pipelined: bool = False
) -> tuple[tuple[ChargeKind, Sized], ...]:
    """Return what the host is charged before any tensor, for what it computes."""
    problem = at.problem
    derived = fixed_charges.compute(
        problem.shapes,
        problem.strategy,
        context_tokens=at.context_tokens,
        work=work,
        is_pipelined=is_pipelined,
    )
    compute = fixed_charges.measured_or(
        derived,
        problem.measured,
        device=HOST,
        context_tokens=at.context_tokens,
        ubatch_tokens=problem.strategy.ubatch_tokens,
    )
    return (
        (ChargeKind.RUNTIME, fixed_charges.host_runtime(problem.model, devices)),
        (ChargeKind.COMPUTE, compute),
    )


def tied_copy_bytes(problem: Problem) -> int:
    """Return what a tied output on the host takes beside the input: a copy only if repacked."""
    tied = problem.cargo.tied_output
    if tied is None or problem.strategy.extra_buffers is Toggle.OFF:
        return 0
    return tied.size_bytes if tied.encoding in REPACKED else 0
