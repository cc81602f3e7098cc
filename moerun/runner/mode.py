"""In one line how a model is placed, and in another what would make it faster.

Knows: how a plan reads in short.
Does not know: how it was made, or where the lines go.
"""

from collections import Counter
from typing import assert_never

from moerun.machine.description import HOST, SSD, DeviceId, Machine
from moerun.model.description import Model
from moerun.planning.plan import Plan
from moerun.planning.strategy import LoadMode
from moerun.units import format_gib


def describe_mode(plan: Plan, model: Model, machine: Machine) -> str:
    """Return the line: layers, where experts lie, load mode, context."""
    parts = [f"{len(plan.layers)} layers, {_places(plan, model, machine)}"]
    parts += [_load_mode(plan), f"context {plan.context_tokens:,}"]
    return f"{plan.model_name}: {'; '.join(parts)}"


def describe_faster(plan: Plan, model: Model, machine: Machine) -> str | None:
    """Return what would make the plan faster, None when all of it lies on GPUs."""
    on_ssd_bytes = plan.expert_bytes(model, SSD)
    in_ram_bytes = plan.expert_bytes(model, HOST)
    streaming = plan.streaming
    if streaming is not None and streaming.held_fraction < 1:
        return (
            f"{format_gib(streaming.expert_bytes - streaming.cache_bytes)} of the experts find no "
            "room in the cache; that much more RAM or VRAM would hold them"
        )
    if on_ssd_bytes and streaming is None:
        return (
            f"{format_gib(on_ssd_bytes)} of the experts are read from SSD; "
            f"that much more RAM or VRAM would hold them"
        )
    if plan.devices and in_ram_bytes:
        return (
            f"{format_gib(in_ram_bytes)} of the experts are computed in RAM; that much more VRAM "
            "would hold them, and a smaller --ctx makes room"
        )
    off_gpu = len(plan.layers) - plan.gpu_layer_count
    if machine.gpus and off_gpu:
        return f"{off_gpu} layers are computed by the processor; more VRAM would hold them"
    if not machine.gpus:
        return f"no GPU is used; one with {format_gib(_memory_bytes(plan))} free would hold it all"
    return None


def _places(plan: Plan, model: Model, machine: Machine) -> str:
    if not model.is_sparse:
        dense = Counter(layer.dense for layer in plan.layers)
        return ", ".join(f"{dense[device]} {_place(device, machine)}" for device in _order(dense))
    whole: Counter[DeviceId] = Counter()
    split = 0
    for layer in plan.layers:
        devices = {device for _, device in layer.experts}
        if len(devices) == 1:
            whole[devices.pop()] += 1
        elif devices:
            split += 1
    shown = [*plan.devices, HOST, SSD]
    places = [f"{whole[device]} {_place(device, machine)}" for device in shown]
    if split:
        places.append(f"{split} over several")
    return f"experts: {', '.join(places)}"


def _order(counts: Counter[DeviceId]) -> list[DeviceId]:
    return sorted(counts, key=lambda device: (device == HOST, device))


def _place(device: DeviceId, machine: Machine) -> str:
    if device == HOST:
        return "in RAM"
    return "on SSD" if device == SSD else f"on {machine.label(device)}"


def _load_mode(plan: Plan) -> str:
    match plan.load_mode:
        case LoadMode.MMAP:
            return "mmap"
        case LoadMode.COPY:
            return "copied to RAM"
        case LoadMode.LOCK:
            return "mmap, locked in RAM"
        case LoadMode.DIRECT:
            return "read past the page cache"
        case LoadMode.STREAM:
            held = plan.streaming
            if held is None:
                return "mapped without being read"
            return (
                f"streamed through a cache of {format_gib(held.cache_bytes)} "
                f"({held.held_fraction:.0%} of those on SSD)"
            )
        case _:
            assert_never(plan.load_mode)


def _memory_bytes(plan: Plan) -> int:
    return plan.ledger.used_bytes(HOST) + plan.ledger.used_bytes(SSD)
