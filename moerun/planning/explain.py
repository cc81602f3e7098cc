"""Why a plan is as it is, and what to know before running it: values that `--explain` prints.

Knows: the sentences, and the numbers in them.
Does not know: how the choices were found, or how they are shown.
"""

from moerun.machine.description import HOST
from moerun.planning.candidate import Candidate
from moerun.planning.choices import COPY_FITS_TIMES, has_experts_on_ssd, host_charge_bytes
from moerun.planning.contexts import Choice
from moerun.planning.expert_reasons import expert_decisions, share_cautions
from moerun.planning.plan import Caution, ChargeKind, Decision, Plan
from moerun.planning.situation import Problem
from moerun.planning.slot_reasons import slot_cautions, slot_decisions
from moerun.planning.slot_trial import SlotTrial
from moerun.planning.strategy import LoadMode, Tier, Toggle
from moerun.planning.streaming_reasons import ssd_cautions, streaming_decisions
from moerun.planning.value import Standing, standing, worker_rates
from moerun.units import format_gib


def decisions(
    problem: Problem, choice: Choice, plan: Plan, trial: SlotTrial
) -> tuple[Decision, ...]:
    """Return one line for each choice, in the order of the steps."""
    candidate = choice.candidate
    assert candidate is not None
    found = [
        *_budget_lines(problem, plan),
        *_pin_lines(problem, plan),
        _device_line(problem, plan),
        _dense_line(problem, candidate, plan),
        *expert_decisions(problem, candidate, plan),
        *slot_decisions(problem, plan, trial),
        _context_line(choice, plan),
        _load_line(problem, candidate, plan),
        _repack_line(problem, candidate, plan),
        _thread_line(problem, plan),
        *streaming_decisions(problem, candidate, plan),
    ]
    return tuple(found)


def cautions(problem: Problem, choice: Choice, plan: Plan) -> tuple[Caution, ...]:
    """Return what the user should know, with numbers."""
    candidate = choice.candidate
    assert candidate is not None
    found = [Caution(code="model", message=text) for text in problem.model.cautions]
    found += ssd_cautions(problem, candidate, plan)
    found += slot_cautions(problem, plan)
    found += _context_cautions(problem, choice)
    found += _device_cautions(problem, plan)
    found += share_cautions(problem, plan)
    return tuple(found)


def _budget_lines(problem: Problem, plan: Plan) -> list[Decision]:
    rooms = (*problem.rooms.gpus, problem.rooms.host)
    lines = [
        Decision(
            step="budgets",
            subject=problem.machine.label(room.device),
            chosen=f"{format_gib(room.usable_bytes)} may be used",
            because=f"{room.budget.because}; {format_gib(room.margin_bytes)} of that stay free",
        )
        for room in rooms
    ]
    if problem.rooms.pool_bytes is not None:
        lines.append(
            Decision(
                step="budgets",
                subject="shared memory",
                chosen=f"{format_gib(problem.rooms.pool_bytes)} for GPU and host together",
                because="the GPU works in the host's memory, within the driver's limit",
            )
        )
    return lines


def _pin_lines(problem: Problem, plan: Plan) -> list[Decision]:
    lines = []
    for pin in problem.strategy.pins:
        count = sum(used is pin or used == pin for used in problem.pinning.pins.values())
        lines.append(
            Decision(
                step="pins",
                subject=pin.pattern,
                chosen=f"{count} tensors on {pin.device}",
                because=f"pinned by {pin.origin}; the rest is planned around them",
            )
        )
    if problem.strategy.cpu_expert_layers:
        count = min(problem.strategy.cpu_expert_layers, len(plan.layers))
        lines.append(
            Decision(
                step="pins",
                subject=f"experts of the first {count} of {len(plan.layers)} layers",
                chosen="off the GPUs",
                because="cpu_expert_layers says so",
            )
        )
    return lines


def _device_line(problem: Problem, plan: Plan) -> Decision:
    labels = [problem.machine.label(device) for device in plan.devices]
    unused = [
        problem.machine.label(gpu.id) for gpu in problem.machine.gpus if gpu.id not in plan.devices
    ]
    if not problem.machine.gpus:
        because = "there is no GPU"
    elif Tier.VRAM not in problem.strategy.hierarchy:
        because = "the hierarchy has no vram"
    elif not plan.devices:
        because = "no GPU has room for a layer or the output beside its driver and compute buffers"
    elif unused:
        because = f"least stays off the GPUs with the fewest devices; not used: {', '.join(unused)}"
    else:
        because = "least stays off the GPUs this way"
    return Decision(
        step="devices",
        subject="GPUs",
        chosen=" then ".join(labels) or "none",
        because=because + _worker_rank(problem),
    )


def _worker_rank(problem: Problem) -> str:
    """Return where workers stand among the tiers; nothing where there are none."""
    machine = problem.machine
    workers = [gpu for gpu in machine.gpus if gpu.is_remote]
    if not workers:
        return ""
    slow = [g for g in workers if standing(g, machine.host) is Standing.SLOW]
    told = "; workers come after cards of this machine and before RAM"
    if slow:
        labels = ", ".join(machine.label(gpu.id) for gpu in slow)
        told += f", but {labels} after RAM: slower memory was measured there"
    return told + worker_rates(tuple(workers), machine.host)


def _dense_line(problem: Problem, candidate: Candidate, plan: Plan) -> Decision:
    count = len(plan.layers)
    dense = sum(
        plan.ledger.kind_bytes(device, kind)
        for device in plan.devices
        for kind in (ChargeKind.DENSE_WEIGHTS, ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE)
    )
    if not plan.devices:
        return Decision(
            step="dense",
            subject=f"all {count} layers",
            chosen="on the CPU",
            because="no GPU is used",
        )
    if candidate.host_layers == 0:
        return Decision(
            step="dense",
            subject=f"{_dense_parts(problem)} and KV cache of all {count} layers, the output",
            chosen=f"{format_gib(dense)} in VRAM",
            because="every token needs them, and KV outside VRAM costs more speed than weights",
        )
    return Decision(
        step="dense",
        subject=f"the last {count - candidate.host_layers} of {count} layers and the output",
        chosen=f"{format_gib(dense)} in VRAM",
        because=f"the first {candidate.host_layers} with their KV cache find no room there",
        instead_of="all layers",
    )


def _dense_parts(problem: Problem) -> str:
    return "attention, norms, routers" if problem.model.is_sparse else "weights"


def _context_line(choice: Choice, plan: Plan) -> Decision:
    return Decision(
        step="context",
        subject="context",
        chosen=f"{plan.context_tokens:,} tokens",
        because=choice.because,
    )


def _load_line(problem: Problem, candidate: Candidate, plan: Plan) -> Decision:
    size = format_gib(host_charge_bytes(candidate))
    budget = format_gib(problem.rooms.host.budget.budget_bytes)
    if plan.streaming is not None:
        because = "experts lie on SSD: nothing is read before it is needed"
    elif problem.strategy.load_mode not in (None, LoadMode.STREAM):
        because = "it was asked for"
    elif has_experts_on_ssd(problem, candidate):
        because = "experts lie on SSD: the system reads them from the mapped file"
    elif problem.rooms.pool_bytes is not None:
        because = "the GPU reads the mapped file in place"
    elif plan.load_mode is LoadMode.COPY:
        because = f"the host part of {size} fits {COPY_FITS_TIMES:g} times into {budget}"
    else:
        because = f"the host part of {size} does not fit {COPY_FITS_TIMES:g} times into {budget}"
    return Decision(
        step="loading", subject="load mode", chosen=str(plan.load_mode), because=because
    )


def _repack_line(problem: Problem, candidate: Candidate, plan: Plan) -> Decision:
    dense = plan.ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS)
    if has_experts_on_ssd(problem, candidate):
        because = (
            "it is one switch for the whole model, and repacked experts could not stay on SSD; "
            f"{format_gib(dense)} of dense host weights lose it"
        )
    elif plan.slots is not None:
        because = (
            "slots take experts as the file has them; "
            f"{format_gib(dense)} of dense host weights lose it"
        )
    elif problem.strategy.extra_buffers is not Toggle.AUTO:
        because = "it was asked for"
    elif plan.extra_buffers:
        because = "host weights are copied anyway, as llama.cpp does by default"
    else:
        because = (
            "a repacked weight would be a copy beside the mapped file; "
            f"{format_gib(dense)} of dense host weights lose it"
        )
    return Decision(
        step="loading",
        subject="repacking for the processor",
        chosen="on" if plan.extra_buffers else "off",
        because=because,
    )


def _thread_line(problem: Problem, plan: Plan) -> Decision:
    asked = problem.strategy.threads is not None
    return Decision(
        step="loading",
        subject="threads",
        chosen=str(plan.threads),
        because="it was asked for" if asked else "one for each physical core",
    )


def _context_cautions(problem: Problem, choice: Choice) -> list[Caution]:
    found = []
    if choice.is_reduced:
        found.append(
            Caution(
                code="context-reduced",
                message=f"the context is {choice.at.context_tokens:,} tokens: the default does not "
                "fit beside the dense weights",
            )
        )
    trained = problem.model.train_context_tokens
    if trained and choice.at.context_tokens > trained:
        found.append(
            Caution(
                code="context-beyond-training",
                message=f"the model was trained on {trained:,} tokens; answers beyond that length "
                "may be poor",
            )
        )
    return found


def _device_cautions(problem: Problem, plan: Plan) -> list[Caution]:
    found = [
        Caution(
            code="slow-worker",
            message=f"{problem.machine.label(gpu.id)} ({gpu.name}) is not used: it was measured to "
            f"be slower than the RAM that is free here{worker_rates((gpu,), problem.machine.host)}",
        )
        for gpu in problem.machine.gpus
        if gpu.id not in plan.devices and standing(gpu, problem.machine.host) is Standing.SLOW
    ]
    for device in plan.devices:
        gpu = problem.machine.gpu(device)
        label = problem.machine.label(device)
        if gpu.is_remote:
            found.append(
                Caution(
                    code="remote-device",
                    message=f"{label} is reached over the network ({gpu.name}); each token crosses "
                    "it, unencrypted",
                )
            )
        if gpu.compute_threads not in (None, plan.threads):
            found.append(
                Caution(
                    code="worker-threads",
                    message=f"the threads of {label} are {gpu.compute_threads} and of this machine "
                    f"{plan.threads}, so that long answers may differ in their last bits from "
                    "those of one machine; give --threads the same number on both for equal ones",
                )
            )
        if gpu.is_hypothetical:
            found.append(
                Caution(
                    code="hypothetical-gpu",
                    message=f"{label} is a {gpu.name} that this machine does not have; the plan "
                    "cannot be run here",
                )
            )
    return found
