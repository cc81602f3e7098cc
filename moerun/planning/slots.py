"""Which layers may have slots for experts in VRAM, how many slots are asked for, what they take.

A layer's slots hold the experts that are likely next; what misses is uploaded from the host, which
has all of them. Fewer slots than three times the experts of a token hardly hit: each expert is
driven out before it is used again. Published sweeps agree (kekzl/imp, its check of slots for each
layer: 0.0 to 0.4 % below that). Since the experts of a layer are one choice of the router, every
layer of a device gets the same number.

Beliefs: the matrices, biases and per-expert scales of a layer all follow the choice, so all of
them need slots - `build_moe_ffn` in src/llama-graph.cpp @ 0.3.36 - checked by
tests/engine/test_device_slots.py.

Knows: what one slot takes in each layer, what forbids slots, and the bounds on their number.
Does not know: where layers go, or what slots gain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moerun.errors import PinConflict
from moerun.machine.description import Machine, is_gpu
from moerun.model.description import Layer, Model, Tensor
from moerun.planning.budgets import usable_gpus
from moerun.planning.pins import NO_PINS, Pinning
from moerun.planning.strategy import Strategy, StreamingMode, Tier

LEAST_TIMES_USED: Final = 3
# What a backend aligns tensors in a buffer to, at most: CUDA's, the largest of those that are met -
# ggml_backend_cuda_buffer_type_get_alignment in ggml/src/ggml-cuda/ggml-cuda.cu @ 0.3.36
ALIGNMENT_BYTES: Final = 128
# Experts that are on their way from pinned memory at a time: engine/device_slots.py
_STAGED_EXPERTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSlotBytes:
    """What one slot of a layer takes, and the tensors that it is a slot of."""

    slot_bytes: int
    tensors: tuple[Tensor, ...] = ()

    def size_bytes(self, slots: int) -> int:
        """Return what so many slots take, each tensor aligned."""
        return sum(
            -(-tensor.size_bytes * slots // tensor.shape[-1] // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            for tensor in self.tensors
        )

    @property
    def alignment_bytes(self) -> int:
        """Return what alignment may take beyond the slots themselves, at most."""
        return ALIGNMENT_BYTES * len(self.tensors)


NO_SLOTS: Final = LayerSlotBytes(slot_bytes=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWish:
    """Slots as one problem wants them; `layers` has an entry for each layer of the model.

    A device gets at least `least_slots` for each layer that it computes, or nothing fits.
    `is_share` says that a wanted share of the experts bounds their number, not memory.
    """

    layers: tuple[LayerSlotBytes, ...]
    least_slots: int
    most_slots: int
    expert_count: int
    is_share: bool = False

    @property
    def slot_bytes(self) -> int:
        """Return what one slot in every layer takes."""
        return sum(layer.slot_bytes for layer in self.layers)

    @property
    def staged_bytes(self) -> int:
        """Return the host memory through which experts go to one device."""
        return _STAGED_EXPERTS * max(layer.slot_bytes for layer in self.layers)


def is_asked(strategy: Strategy) -> bool:
    """Whether slots were asked for by name or number, rather than left to the plan."""
    if strategy.streaming is StreamingMode.SLOTS:
        return True
    return strategy.streaming is StreamingMode.AUTO and bool(strategy.expert_slots)


def least_slots(model: Model) -> int:
    """Return the fewest slots of a layer that are worth having."""
    return LEAST_TIMES_USED * model.experts_used


def obstacle(model: Model, machine: Machine, strategy: Strategy, pinning: Pinning) -> str | None:
    """Return in a sentence why no layer can have slots, whatever the memory; None if one may."""
    if not model.is_sparse:
        return f"{model.name} has no experts"
    if Tier.VRAM not in strategy.hierarchy:
        return "the hierarchy has no vram"
    gpus = usable_gpus(machine, strategy)
    if not gpus:
        return "there is no GPU"
    if any(gpu.shares_host_memory for gpu in gpus):
        return "the GPU works in the host's memory, where the experts are already"
    if least_slots(model) > model.expert_count:
        return (
            f"a token uses {model.experts_used} of the {model.expert_count} experts of a layer, "
            f"and fewer slots than {LEAST_TIMES_USED} times that hardly hit"
        )
    if not any(layer.slot_bytes for layer in _layers(model, strategy, pinning)):
        return "no layer has all its experts free to be on the host, side by side"
    return None


def slot_wish(model: Model, strategy: Strategy, pinning: Pinning) -> SlotWish:
    """Return what is wanted; PinConflict where numbers or shares contradict one another."""
    layers = tuple(_layers(model, strategy, pinning))
    least, most = least_slots(model), model.expert_count
    share = _share_slots(model, strategy, pinning, sum(layer.slot_bytes for layer in layers))
    asked = min(strategy.expert_slots or 0, most) or None
    if asked is not None and asked < least:
        raise PinConflict(
            f"expert_slots is {asked} and a token uses {model.experts_used} experts of each layer "
            f"of {model.name}: below {least} slots each is driven out before it is used again; ask "
            f"for {least} or more, or pass --expert-slots auto"
        )
    if share is not None and share < (asked or least):
        needed = -(-100 * (asked or least) // model.expert_count)
        raise PinConflict(
            f"expert_residency leaves room in VRAM for {share} of the {model.expert_count} experts "
            f"of each layer of {model.name}, and {_whose(asked)} {asked or least} slots; raise the "
            f"share to about {needed}%, or pass {'--expert-slots' if asked else '--streaming'} auto"
        )
    return SlotWish(
        layers=layers,
        least_slots=asked or least,
        most_slots=min(asked or most, most if share is None else share),
        expert_count=model.expert_count,
        is_share=share is not None and share < (asked or most),
    )


def slot_bytes_of(model: Model) -> dict[int, int]:
    """Return what one slot takes in each layer that may have any, biases and scales included."""
    layers = _layers(model, Strategy(), NO_PINS)
    return {index: layer.slot_bytes for index, layer in enumerate(layers) if layer.slot_bytes}


def _whose(asked: int | None) -> str:
    return "expert_slots asks for" if asked else "they hardly hit with fewer than"


def _layers(model: Model, strategy: Strategy, pinning: Pinning) -> Iterator[LayerSlotBytes]:
    """Yield what a slot takes in each layer; nothing where its experts must not be in VRAM."""
    kept_off = strategy.cpu_expert_layers or 0
    for layer in model.layers:
        tensors = layer.expert_tensors
        is_free = layer.index >= kept_off and not any(
            is_gpu(pinning.devices[t.name]) for t in tensors if t.name in pinning.devices
        )
        if tensors and is_free and _is_of_slices(layer, model.expert_count):
            size_bytes = sum(tensor.size_bytes for tensor in tensors)
            yield LayerSlotBytes(
                slot_bytes=-(-size_bytes // model.expert_count), tensors=tuple(tensors)
            )
        else:
            yield NO_SLOTS


def _is_of_slices(layer: Layer, expert_count: int) -> bool:
    """Whether every tensor of the experts has one slice for each, so that K of them are a slot."""
    has_matrices = bool(layer.routed_matrices(expert_count))
    return has_matrices and all(t.shape[-1] == expert_count for t in layer.expert_tensors)


def _share_slots(model: Model, strategy: Strategy, pinning: Pinning, slot_bytes: int) -> int | None:
    """Return how many slots of each layer the wanted share in VRAM allows; None for no bound."""
    residency = strategy.expert_residency
    if residency is None or residency.vram_fraction is None:
        return None
    pinned_bytes = sum(
        tensor.size_bytes
        for layer in model.layers
        for tensor in layer.expert_tensors
        if tensor.name in pinning.devices and is_gpu(pinning.devices[tensor.name])
    )
    share_bytes = int(model.expert_bytes * residency.vram_fraction) - pinned_bytes
    return max(0, share_bytes) // max(1, slot_bytes)
