"""Proof of a plan: everything it must satisfy, computed anew from the model and the machine.

Knows: the rules, and how to recompute sums without the planner's own steps.
Does not know: how the plan was found, or the engine's arguments.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from moerun.errors import PinConflict
from moerun.machine.description import HOST, SSD, DeviceId, Machine, is_gpu
from moerun.model.description import Model, TensorRole, TensorUse
from moerun.model.state import kv_bytes, recurrent_bytes
from moerun.planning.budgets import rooms
from moerun.planning.pins import resolve_pins
from moerun.planning.plan import ChargeKind, Plan
from moerun.planning.slots import ALIGNMENT_BYTES, LEAST_TIMES_USED
from moerun.planning.strategy import LoadMode, Tier, Toggle
from moerun.units import format_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One rule that the plan breaks; `rule` is stable, the message has the numbers."""

    rule: str
    message: str


def audit(plan: Plan, model: Model, machine: Machine) -> tuple[Violation, ...]:
    """Return what is wrong with a plan; empty when it is sound."""
    shape = tuple(_shape(plan, model, machine))
    if shape:
        return shape  # sums over layers that do not exist would only confuse
    return (
        *_weights(plan, model),
        *_state(plan, model),
        *_budgets(plan, machine),
        *_storage(plan, model),
        *_slots(plan, model),
        *_wishes(plan, model, machine),
    )


def _shape(plan: Plan, model: Model, machine: Machine) -> Iterator[Violation]:
    """Whether every layer and part is placed once, on devices that are there, in runs."""
    indices = [placement.layer for placement in plan.layers]
    if indices != list(range(len(model.layers))):
        yield Violation(
            rule="layers", message=f"{len(indices)} placements for {len(model.layers)} layers"
        )
        return
    known = {*plan.devices, HOST, SSD}
    unknown = [device for device in plan.devices if device not in {g.id for g in machine.gpus}]
    if unknown:
        yield Violation(rule="devices", message=f"{unknown[0]} is not on this machine")
    for placement, layer in zip(plan.layers, model.layers, strict=True):
        if tuple(part for part, _ in placement.experts) != layer.expert_parts:
            yield Violation(
                rule="parts", message=f"layer {layer.index} does not place each part once"
            )
        for device in (placement.dense, *(device for _, device in placement.experts)):
            if device not in known:
                yield Violation(
                    rule="devices", message=f"layer {layer.index} is on {device}, which is unused"
                )
    runs = [device for device, _ in groupby(placement.dense for placement in plan.layers)]
    order = [device for device in (HOST, *plan.devices) if device in runs]
    if runs != order:
        yield Violation(
            rule="runs", message=f"layers run over {runs}, the engine can only do {order}"
        )
    if plan.output_device != (plan.devices[-1] if plan.devices else HOST):
        yield Violation(
            rule="output", message=f"the output is on {plan.output_device}, not after the layers"
        )


def _weights(plan: Plan, model: Model) -> Iterator[Violation]:
    """Whether the weight charges of each device are what its tensors take."""
    expected: Counter[tuple[DeviceId, ChargeKind]] = Counter()
    devices = plan.devices_by_tensor(model)
    pinned = {exception.tensor for exception in plan.exceptions}
    holders = {placement.dense for placement in plan.layers}
    for tensor in model.loaded_tensors:
        is_expert = tensor.role is TensorRole.EXPERT and tensor.part is not None
        kind = ChargeKind.EXPERT_WEIGHTS if is_expert else ChargeKind.DENSE_WEIGHTS
        places = {devices[tensor.name]}
        if tensor.use is TensorUse.REPEATED and tensor.name not in pinned:
            places = holders
        if tensor.use is TensorUse.DUPLICATED and tensor.name not in pinned:
            places = places | {plan.output_device}
        for place in places:
            expected[place, kind] += tensor.size_bytes
    for device in (*plan.devices, HOST, SSD):
        for kind in (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS):
            charged, due = plan.ledger.kind_bytes(device, kind), expected[device, kind]
            spare = _repacked_copy_bytes(plan, model) if device == HOST else 0
            if not due <= charged <= due + spare:
                yield Violation(
                    rule="weights",
                    message=f"{device} is charged {charged} bytes of {kind}, tensors take {due}",
                )


def _repacked_copy_bytes(plan: Plan, model: Model) -> int:
    """Return what a tied output on the host may take once more when weights are repacked."""
    if not plan.extra_buffers or is_gpu(plan.output_device):
        return 0
    return sum(t.size_bytes for t in model.loaded_tensors if t.use is TensorUse.DUPLICATED)


def _state(plan: Plan, model: Model) -> Iterator[Violation]:
    """Whether every layer's KV cache and state is charged where the layer is."""
    expected: Counter[tuple[DeviceId, ChargeKind]] = Counter()
    for placement, layer in zip(plan.layers, model.layers, strict=True):
        expected[placement.dense, ChargeKind.KV_CACHE] += kv_bytes(
            layer,
            context_tokens=plan.context_tokens,
            ubatch_tokens=plan.ubatch_tokens,
            key_encoding=plan.kv_encoding_k,
            value_encoding=plan.kv_encoding_v,
            flash_attention=plan.flash_attention is not Toggle.OFF,
        )
        expected[placement.dense, ChargeKind.RECURRENT_STATE] += recurrent_bytes(layer)
    for device in (*plan.devices, HOST, SSD):
        for kind in (ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE):
            charged, due = plan.ledger.kind_bytes(device, kind), expected[device, kind]
            if charged != due:
                yield Violation(
                    rule="state",
                    message=f"{device} is charged {charged} bytes of {kind}, its layers take {due}",
                )


def _budgets(plan: Plan, machine: Machine) -> Iterator[Violation]:
    """Whether no device is charged more than free memory and limits allow, margins included."""
    allowed = rooms(machine, plan.strategy)
    total = 0
    for room in (*allowed.gpus, allowed.host):
        charged = plan.ledger.total_bytes(room.device)
        if room.device == HOST or machine.gpu(room.device).shares_host_memory:
            total += charged
        if charged > room.budget.budget_bytes:
            yield Violation(
                rule="budget",
                message=f"{machine.label(room.device)} is charged {format_gib(charged)} of "
                f"{format_gib(room.budget.budget_bytes)}",
            )
        kept = plan.ledger.kind_bytes(room.device, ChargeKind.MARGIN)
        if room.device in (*plan.devices, HOST) and kept != room.margin_bytes:
            yield Violation(
                rule="margin",
                message=f"{machine.label(room.device)} keeps {kept} bytes free, not "
                f"{room.margin_bytes}",
            )
    if allowed.pool_bytes is not None and total > allowed.pool_bytes:
        yield Violation(
            rule="pool",
            message=f"GPU and host take {format_gib(total)} of {format_gib(allowed.pool_bytes)}",
        )
    usable = {room.device for room in allowed.gpus}
    for device in plan.devices:
        if device not in usable:
            yield Violation(rule="hierarchy", message=f"{machine.label(device)} may not be used")


def _storage(plan: Plan, model: Model) -> Iterator[Violation]:
    """Whether only experts lie on SSD, and only where they can be read from there."""
    devices = plan.devices_by_tensor(model)
    on_ssd = [tensor for tensor in model.loaded_tensors if devices[tensor.name] == SSD]
    for tensor in on_ssd:
        if tensor.role is not TensorRole.EXPERT:
            yield Violation(rule="ssd", message=f"{tensor.name} is on SSD and every token needs it")
    if on_ssd and plan.load_mode not in (LoadMode.MMAP, LoadMode.STREAM):
        yield Violation(rule="ssd", message=f"load mode {plan.load_mode} reads what is on SSD")
    yield from _streaming(plan, model)
    if on_ssd and plan.extra_buffers:
        yield Violation(rule="ssd", message="repacking copies what is on SSD into memory")
    if on_ssd and Tier.SSD not in plan.strategy.hierarchy:
        yield Violation(rule="hierarchy", message="experts lie on SSD, which may not be used")


def _streaming(plan: Plan, model: Model) -> Iterator[Violation]:
    """Whether the cache of a plan that streams is charged, and worth having."""
    charged = plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_CACHE)
    streaming = plan.streaming
    if (plan.load_mode is LoadMode.STREAM) != (streaming is not None):
        yield Violation(rule="streaming", message=f"load mode {plan.load_mode} and a stream differ")
    if streaming is None:
        if charged:
            yield Violation(rule="streaming", message=f"{charged} bytes of cache hold nothing")
        return
    if charged != streaming.cache_bytes:
        yield Violation(
            rule="streaming",
            message=f"the host is charged {charged} bytes of cache, the stream wants "
            f"{streaming.cache_bytes}",
        )
    matrices = [
        tensor
        for layer in model.layers
        for tensor in layer.routed_matrices(model.expert_count)
        if plan.device_of(tensor) == SSD
    ]
    expert_bytes = sum(matrix.size_bytes for matrix in matrices)
    if streaming.expert_bytes != expert_bytes:
        yield Violation(
            rule="streaming",
            message=f"{streaming.expert_bytes} bytes are to stream, and {expert_bytes} lie on SSD",
        )
    cycle_bytes = sum(m.size_bytes * model.experts_used // m.shape[-1] for m in matrices)
    if streaming.minimum_bytes < min(expert_bytes, cycle_bytes * 3 // 2):
        yield Violation(
            rule="streaming",
            message=f"a least cache of {format_gib(streaming.minimum_bytes)} hits nothing: a token "
            f"uses {format_gib(cycle_bytes)}",
        )
    if streaming.cache_bytes < streaming.minimum_bytes:
        yield Violation(
            rule="streaming",
            message=f"a cache of {format_gib(streaming.cache_bytes)} is below the least of "
            f"{format_gib(streaming.minimum_bytes)}",
        )
    if plan.ledger.used_bytes(HOST) > streaming.limit_bytes:
        yield Violation(
            rule="streaming",
            message=f"the host holds {format_gib(plan.ledger.used_bytes(HOST))}, beyond the limit "
            f"of {format_gib(streaming.limit_bytes)}",
        )


def _slots(plan: Plan, model: Model) -> Iterator[Violation]:
    """Whether slots are charged, worth having, and of experts that the host has."""
    planned = plan.slots.layers if plan.slots is not None else ()
    for device in (*plan.devices, HOST, SSD):
        charged = plan.ledger.kind_bytes(device, ChargeKind.EXPERT_SLOTS)
        due = sum(layer.size_bytes for layer in planned if layer.device == device)
        if charged != due:
            yield Violation(
                rule="slots", message=f"{device} is charged {charged} bytes of slots, not {due}"
            )
    if planned and plan.extra_buffers:
        yield Violation(rule="slots", message="repacked experts cannot be copied to slots")
    devices = plan.devices_by_tensor(model)
    for slots in planned:
        where = f"slots of layer {slots.layer}"
        if not is_gpu(slots.device) or slots.device != plan.layers[slots.layer].dense:
            yield Violation(
                rule="slots", message=f"{where} are on {slots.device}, which does not compute it"
            )
        tensors = model.layers[slots.layer].expert_tensors
        away = [tensor.name for tensor in tensors if is_gpu(devices[tensor.name])]
        if away:
            yield Violation(
                rule="slots", message=f"{where} hold {away[0]}, which is not on the host"
            )
        least = LEAST_TIMES_USED * model.experts_used
        if not least <= slots.slots <= model.expert_count:
            yield Violation(
                rule="slots",
                message=f"{where} are {slots.slots}, not {least} to {model.expert_count}",
            )
        least_bytes = sum(t.size_bytes * slots.slots // t.shape[-1] for t in tensors)
        if not least_bytes <= slots.size_bytes <= least_bytes + len(tensors) * ALIGNMENT_BYTES:
            yield Violation(
                rule="slots",
                message=f"{where} take {slots.size_bytes} bytes, their tensors {least_bytes}",
            )


def _wishes(plan: Plan, model: Model, machine: Machine) -> Iterator[Violation]:
    """Whether pins and the wanted shares of experts are kept."""
    try:
        pinning = resolve_pins(model, machine, plan.strategy)
    except PinConflict as error:
        yield Violation(rule="pins", message=error.message)
        return
    devices = plan.devices_by_tensor(model)
    for name, device in pinning.devices.items():
        if devices[name] != device:
            yield Violation(
                rule="pins", message=f"{name} is pinned to {device} and lies on {devices[name]}"
            )
    for placement in plan.layers[: plan.strategy.cpu_expert_layers or 0]:
        if any(is_gpu(device) for _, device in placement.experts) and not pinning.devices:
            yield Violation(
                rule="cpu_expert_layers", message=f"experts of layer {placement.layer} are on a GPU"
            )
    residency = plan.strategy.expert_residency
    if residency is None:
        return
    total = model.expert_bytes
    in_vram = sum(
        plan.ledger.kind_bytes(device, kind)
        for device in plan.devices
        for kind in (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_SLOTS)
    )
    in_ram = sum(
        plan.ledger.kind_bytes(HOST, kind)
        for kind in (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_CACHE)
    )
    for tier, share, size in (
        (Tier.VRAM, residency.vram_fraction, in_vram),
        (Tier.RAM, residency.ram_fraction, in_ram),
    ):
        if share is not None and size > int(total * share):
            yield Violation(
                rule="expert_residency",
                message=f"{format_gib(size)} of experts are in {tier}, {share * 100:g}% of "
                f"{format_gib(total)} were wanted",
            )
