"""Why the experts lie where they do, and how far that is from what was wished.

Knows: which experts found no room, and which a pin or a wish keeps from a device.
Does not know: how the placement was found, or the other lines of an explanation.
"""

from itertools import groupby
from typing import Final

from moerun.machine.description import HOST, SSD, DeviceId, is_gpu
from moerun.model.description import Model
from moerun.planning.candidate import Candidate
from moerun.planning.plan import Caution, ChargeKind, Decision, Plan
from moerun.planning.situation import Problem
from moerun.planning.strategy import Tier
from moerun.units import format_gib

_PAGE_BYTES: Final = 4096


def expert_decisions(problem: Problem, candidate: Candidate, plan: Plan) -> list[Decision]:
    """Return a line for each device that holds experts."""
    total = problem.cargo.expert_bytes
    lines = []
    for device in (*plan.devices, HOST, SSD):
        size = plan.ledger.kind_bytes(device, ChargeKind.EXPERT_WEIGHTS)
        if not size:
            continue
        lines.append(
            Decision(
                step="experts",
                subject=f"{size * 100 / total:.1f}% of the experts",
                chosen=f"{format_gib(size)} on {problem.machine.label(device)}",
                because="; ".join(_reasons(problem, candidate, plan, device)),
            )
        )
    return lines


def share_cautions(problem: Problem, plan: Plan) -> list[Caution]:
    """Return what share of the experts is there where another was wanted, and why."""
    residency = problem.strategy.expert_residency
    total = problem.cargo.expert_bytes
    if not total:
        return _wishes_without_experts(problem)
    if residency is None:
        return []
    in_vram = sum(
        plan.ledger.kind_bytes(device, kind)
        for device in plan.devices
        for kind in (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_SLOTS)
    )
    in_ram = sum(
        plan.ledger.kind_bytes(HOST, kind)
        for kind in (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_CACHE)
    )
    step = _step_bytes(problem)
    found = []
    for name, wanted, size in (
        ("VRAM", residency.vram_fraction, in_vram),
        ("RAM", residency.ram_fraction, in_ram),
    ):
        missing = 0 if wanted is None else int(total * wanted) - size
        if wanted is None or missing <= 0:
            continue
        if name == "RAM" and plan.streaming is not None:
            if missing < _PAGE_BYTES:
                continue  # a cache is cut to whole pages
            step = 0
        unit = "matrices" if problem.strategy.split_layers else "layers"
        if name == "VRAM" and problem.slots is not None:
            step, unit = problem.slots.slot_bytes, "slots"
        is_rounded = missing < step
        why = f"rounded down to whole {unit}" if is_rounded else "there is not room for more"
        if name == "VRAM" and not plan.devices:
            why = "no GPU is used"
        found.append(
            Caution(
                code="expert-share",
                message=f"{wanted * 100:g}% of the experts were wanted in {name}, "
                f"{size * 100 / total:.1f}% ({format_gib(size)}) are there: {why}",
            )
        )
    return found


def _wishes_without_experts(problem: Problem) -> list[Caution]:
    """Return that wishes for experts change nothing where there are none."""
    names = []
    if problem.strategy.expert_residency is not None:
        names.append("expert_residency")
    if problem.strategy.cpu_expert_layers:
        names.append("cpu_expert_layers")
    if not names:
        return []
    verb = "changes" if len(names) == 1 else "change"
    return [
        Caution(
            code="no-experts",
            message=f"{' and '.join(names)} {verb} nothing: {problem.model.name} has no experts",
        )
    ]


def _step_bytes(problem: Problem) -> int:
    """Return the largest piece that moves as one: a layer's experts, or one part of them."""
    layers = [
        [size for _, size in (*free, *held)]
        for free, held in zip(problem.cargo.vram_parts, problem.cargo.host_parts, strict=True)
    ]
    if problem.strategy.split_layers:
        return max((size for parts in layers for size in parts), default=0)
    return max(map(sum, layers), default=0)


def _reasons(problem: Problem, candidate: Candidate, plan: Plan, device: DeviceId) -> list[str]:
    if is_gpu(device):
        held = _told_layers(plan, problem.model, device)
        run = candidate.runs[plan.devices.index(device)]
        if run.strange_layers:
            held += f", of {run.strange_layers} of them another device computes the rest"
        if problem.cargo.pinned_expert_bytes.get(device, 0):
            return [f"{held}: pins, and what is left after dense weights and KV cache"]
        return [f"{held}: what is left after dense weights and KV cache"]
    found = _host_reasons(problem, candidate, plan) if device == HOST else []
    if device == SSD and candidate.ssd_expert_bytes:
        found.append(_ssd_reason(problem, candidate))
    if problem.cargo.pinned_expert_bytes.get(device, 0):
        found.append("pins put them there")
    if device == SSD:
        streamed = plan.streaming is not None
        found.append(
            "they stream through a cache in RAM" if streamed else "they are read as they are needed"
        )
    return found


def _host_reasons(problem: Problem, candidate: Candidate, plan: Plan) -> list[str]:
    """Return why experts that could be on a GPU are in RAM."""
    if not candidate.ram_expert_bytes:
        return []
    if not plan.devices:
        return ["no GPU is used"]
    cargo, strategy = problem.cargo, problem.strategy
    if plan.slots is not None:
        return ["slots are filled from here, and prompts are read with these"]
    found = []
    in_ram = [dict(parts) for parts in candidate.ram_parts]
    if any(
        part in kept
        for free, kept in zip(cargo.vram_parts, in_ram, strict=True)
        for part, _ in free
    ):
        found.append("there is no more room in VRAM for them")
    if any(
        part in kept
        for held, kept in zip(cargo.host_parts, in_ram, strict=True)
        for part, _ in held
    ):
        names = []
        if strategy.cpu_expert_layers:
            names.append("cpu_expert_layers")
        if strategy.expert_residency is not None:
            names.append("expert_residency")
        found.append(f"{' and '.join(names)} kept them off the GPUs")
    return found


def _ssd_reason(problem: Problem, candidate: Candidate) -> str:
    if Tier.RAM not in problem.strategy.hierarchy:
        return "the hierarchy has no ram"
    limit = problem.cargo.ram_expert_limit_bytes
    if limit is not None:
        pinned = problem.cargo.pinned_expert_bytes.get(HOST, 0)
        if limit - pinned < candidate.room_bytes - candidate.need.total_bytes:
            return "expert_residency allows no more in RAM"
    return "there is no more room in RAM for them"


def _told_layers(plan: Plan, model: Model, device: DeviceId) -> str:
    """Return the layers whose experts a device holds: `layers 24 to 47 and up of layer 23`."""
    devices = plan.devices_by_tensor(model)
    whole: list[int] = []
    some: list[str] = []
    for layer in model.layers:
        here = [tensor for tensor in layer.expert_tensors if devices.get(tensor.name) == device]
        if not here:
            continue
        if all(devices.get(tensor.name, device) == device for tensor in layer.expert_tensors):
            whole.append(layer.index)
            continue
        parts = dict.fromkeys(str(tensor.part) for tensor in here if tensor.part)
        some.append(f"{' and '.join(parts)} of layer {layer.index}")
    runs = []
    for _, run in groupby(enumerate(whole), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        runs.append(f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    told = [f"all experts of the layers {', '.join(runs)}"] if runs else []
    return " and ".join([*told, ", ".join(some)] if some else told)
