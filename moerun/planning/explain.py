"""A plan in sentences: what was chosen, instead of what, and why.

Knows: how a decision reads as a line.
Does not know: colours, widths, or where the lines go.
"""

from moerun.machine.description import SSD, Machine
from moerun.model.description import Model
from moerun.planning.cost import memory_saved, token_traffic
from moerun.planning.plan import Decision, Plan
from moerun.units import format_gib


def explain(plan: Plan, model: Model, machine: Machine) -> tuple[str, ...]:
    """Return one sentence for each decision, then what a token reads and what is saved."""
    return (
        *(_sentence(decision) for decision in plan.decisions),
        *_traffic(plan, model, machine),
        _saving(plan, model),
        *_next_rung(plan),
    )


def _sentence(decision: Decision) -> str:
    instead = f" instead of {decision.instead_of}" if decision.instead_of else ""
    return (
        f"{decision.step}: {decision.subject}: {decision.chosen}{instead}, because "
        f"{decision.because}."
    )


def _traffic(plan: Plan, model: Model, machine: Machine) -> tuple[str, ...]:
    lines = []
    for traffic in token_traffic(plan, model):
        read = f"{format_gib(traffic.dense_bytes)} of dense weights"
        if traffic.expert_bytes:
            experts = f"{format_gib(traffic.expert_bytes)} of experts"
            read = f"{read} and {experts}" if traffic.dense_bytes else experts
        where = machine.label(traffic.device)
        what = "may have to read" if traffic.device == SSD else "reads"
        lines.append(f"per token: {where}: each token {what} {read} there.")
    return tuple(lines)


def _saving(plan: Plan, model: Model) -> str:
    saving = memory_saved(plan, model)
    kept = [f"{format_gib(saving.ram_bytes)} of RAM"]
    if plan.devices:
        kept.insert(0, f"{format_gib(saving.vram_bytes)} of VRAM")
    text = (
        f"memory: full loading would take {format_gib(saving.full_bytes)}; this plan takes "
        f"{' and '.join(kept)}"
    )
    if saving.ssd_bytes:
        text += f", and leaves {format_gib(saving.ssd_bytes)} on SSD"
    return text + "."


def _next_rung(plan: Plan) -> tuple[str, ...]:
    rung = plan.next_rung
    if rung is None:
        return ()
    costs = []
    if rung.layers_moved:
        costs.append(f"move {rung.layers_moved} layers with their KV cache off the GPUs")
    if rung.expert_bytes_moved:
        costs.append(f"push {format_gib(rung.expert_bytes_moved)} of experts to a slower tier")
    if rung.ends_copy:
        costs.append("leave too little RAM for a copy of the host weights")
    cost = "would " + " and ".join(costs) if costs else "would cost nothing"
    if not rung.fits:
        cost = "do not fit"
    return (f"context: {rung.context_tokens:,} tokens {cost}.",)
