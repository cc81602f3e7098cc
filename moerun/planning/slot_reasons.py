"""What a plan says of slots for experts in VRAM: how many, why, why not, and what was not met.

Knows: the sentences, and the numbers in them.
Does not know: how slots were packed or weighed, or the other lines of an explanation.
"""

from itertools import groupby

from moerun.planning import slots
from moerun.planning.plan import Caution, Decision, Plan, SlotPlan
from moerun.planning.situation import Problem
from moerun.planning.slot_trial import SlotTrial
from moerun.planning.strategy import StreamingMode, Toggle
from moerun.units import format_gib


def slot_decisions(problem: Problem, plan: Plan, trial: SlotTrial) -> list[Decision]:
    """Return the slots of every device and whose wish they are, or why there are none."""
    if plan.slots is None:
        return _left_out(trial)
    asked = "they were asked for"
    if plan.slots.is_trial:
        asked = (
            f"by the rates of this machine, {trial.because}; they stay only if the tokens of real "
            f"answers take at least {plan.slots.least_gain_fraction:.0%} less time with them"
        )
    return [
        *_device_lines(problem, plan, plan.slots),
        Decision(
            step="slots",
            subject="hits to expect",
            chosen=f"{plan.slots.expected_hit_fraction:.0%}",
            because=(
                f"recorded routing has it with {plan.slots.held_fraction:.0%} of the experts in "
                "slots; what misses is uploaded, none is computed on the host"
            ),
        ),
        _worth(problem, plan.slots),
        Decision(
            step="slots",
            subject="experts in slots",
            chosen="on trial" if plan.slots.is_trial else "yes",
            because=asked,
            instead_of="whole layers",
        ),
    ]


def slot_cautions(problem: Problem, plan: Plan) -> list[Caution]:
    """Return which wishes for slots are unmet, and what they cost elsewhere."""
    strategy = problem.strategy
    found = []
    if plan.slots is not None:
        if plan.slots.held_fraction == 1:
            found.append(
                Caution(
                    code="slots-for-all",
                    message="VRAM has room for all experts: as whole layers (--streaming auto) "
                    "they need no uploads, and no room in RAM",
                )
            )
        if strategy.extra_buffers is Toggle.ON:
            found.append(
                Caution(
                    code="repacking-off",
                    message="repacking was asked for and stays off: slots take experts as the file "
                    "has them",
                )
            )
        return found
    if slots.is_asked(strategy):
        reason = slots.obstacle(problem.model, problem.machine, strategy, problem.pinning)
        name = "expert_slots" if strategy.streaming is StreamingMode.AUTO else "streaming slots"
        found.append(
            Caution(
                code="slots-unmet",
                message=f"{name} was asked for and there are no slots: {reason}; experts are "
                "placed as without it",
            )
        )
    elif strategy.expert_slots and strategy.streaming is not StreamingMode.AUTO:
        found.append(
            Caution(
                code="slots-unmet",
                message=f"expert_slots is {strategy.expert_slots} and changes nothing: streaming "
                f"is {strategy.streaming}",
            )
        )
    return found


def _worth(problem: Problem, planned: SlotPlan) -> Decision:
    """Return what a byte of VRAM spares a token, by what it holds."""
    model = problem.model
    whole = model.experts_used / model.expert_count
    in_slots = whole * planned.expected_hit_fraction / planned.held_fraction
    return Decision(
        step="slots",
        subject="what a byte of VRAM spares each token",
        chosen=f"{in_slots:.3f} bytes in slots, {whole:.3f} in whole layers of experts",
        because="1 of dense weights, which come first; the KV cache is read whole, too",
    )


def _left_out(trial: SlotTrial) -> list[Decision]:
    if not trial.because:
        return []
    return [
        Decision(
            step="slots",
            subject="experts in slots",
            chosen="no",
            because=f"{trial.because}; --streaming slots takes them all the same",
        )
    ]


def _device_lines(problem: Problem, plan: Plan, planned: SlotPlan) -> list[Decision]:
    lines = []
    for device, group in groupby(planned.layers, key=lambda layer: layer.device):
        layers = tuple(group)
        count, of = layers[0].slots, problem.model.expert_count
        lines.append(
            Decision(
                step="slots",
                subject=f"{count} of {of} experts of each of {len(layers)} layers",
                chosen=f"{format_gib(plan.slots.device_bytes(device) if plan.slots else 0)} on "
                f"{problem.machine.label(device)}",
                because=_why_so_many(problem, count),
            )
        )
    return lines


def _why_so_many(problem: Problem, count: int) -> str:
    wish = problem.slots
    assert wish is not None, "there are slots"
    used = problem.model.experts_used
    if problem.strategy.expert_slots and count == wish.most_slots:
        return "expert_slots says so"
    if count == wish.expert_count:
        return "there is room for all of them"
    bound = "what is left after dense weights and KV cache"
    if wish.is_share and count == wish.most_slots:
        bound = "expert_residency allows no more in VRAM"
    return f"{bound}; a token uses {used}, and below {wish.least_slots} slots hardly hit"
