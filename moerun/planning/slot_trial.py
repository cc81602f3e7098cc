"""Whether slots are worth a trial where nobody asked for them.

Off is the rule: slots are planned unasked only where the rates of this machine are known, and say
that they win clearly over whole layers of experts in the same memory. Even then it is a trial,
which an A/B on the tokens of real answers has to confirm.

Knows: which rates are needed, and how clear a gain must be.
Does not know: how slots are packed, or how a trial is run.
"""

from dataclasses import dataclass
from typing import Final

from moerun.errors import PinConflict
from moerun.machine.description import Machine
from moerun.planning import slots
from moerun.planning.assembly import slot_plan
from moerun.planning.candidate import Candidate
from moerun.planning.contexts import Choice
from moerun.planning.placement import best_candidate
from moerun.planning.plan import SlotPlan
from moerun.planning.situation import Problem, pose, situation
from moerun.planning.slot_gain import Rates, slots_token_s, static_token_s
from moerun.planning.strategy import AllocationPolicy, StreamingMode

CLEAR_GAIN_RATIO: Final = 1.2
# Of the peaks that drivers tell of a card's memory and link, copies of a few MiB reach about this:
# 25 of the 31.5 GB/s of PCIe 4.0 x16 from pinned memory.
_REACHED_FRACTION: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTrial:
    """What came of weighing slots: the problem and choice with them, or None where they stay off.

    `because` is empty where there was nothing to weigh.
    """

    because: str = ""
    problem: Problem | None = None
    choice: Choice | None = None


def weigh_slots(problem: Problem, choice: Choice) -> SlotTrial:
    """Return whether slots in place of the whole layers of a choice are to be tried."""
    strategy, static = problem.strategy, choice.candidate
    is_open = strategy.streaming is StreamingMode.AUTO and strategy.expert_slots is None
    if problem.slots is not None or not is_open or static is None or not static.devices:
        return SlotTrial()
    if not static.slow_bytes[1] or static.host_layers:
        return SlotTrial()  # all experts are in VRAM already, or not even all layers are
    if slots.obstacle(problem.model, problem.machine, strategy, problem.pinning) is not None:
        return SlotTrial()
    if strategy.allocation_policy is AllocationPolicy.CONSERVATIVE:
        return SlotTrial(because="the conservative policy moves nothing after loading")
    missing = _unknown_rates(problem.machine, static)
    if missing:
        return SlotTrial(because=f"{missing} not known, so that no gain can be told")
    return _weighed(problem, choice, static)


def _weighed(problem: Problem, choice: Choice, static: Candidate) -> SlotTrial:
    try:
        tried = pose(
            problem.model, problem.machine, problem.strategy, problem.measured, tries_slots=True
        )
    except PinConflict as conflict:
        return SlotTrial(because=conflict.message)
    at = situation(tried, choice.at.context_tokens)
    found = best_candidate(at)
    if found is None or not found.fits:
        return SlotTrial(because="what is left of memory is too little for slots that hit")
    planned = slot_plan(at, found)
    if planned is None or found.ssd_expert_bytes or static.ssd_expert_bytes:
        return SlotTrial(because="experts lie on SSD, which is slower than any link")
    ratio, because = _gain(problem, static, found, planned)
    if ratio < CLEAR_GAIN_RATIO:
        return SlotTrial(because=because)
    return SlotTrial(
        because=because,
        problem=tried,
        choice=Choice(at=at, candidate=found, because=choice.because, is_reduced=choice.is_reduced),
    )


def _gain(
    problem: Problem, static: Candidate, found: Candidate, planned: SlotPlan
) -> tuple[float, str]:
    """Return how many times faster a token may be with slots, and that in words."""
    rates = _rates(problem.machine, found)
    total_bytes = problem.cargo.expert_bytes
    slotted_bytes = sum(layer.slot_bytes * problem.model.experts_used for layer in planned.layers)
    token_bytes = problem.model.expert_bytes_per_token
    dense_s = sum(held.dense_bytes for held in static.held) / rates.device_bytes_per_s
    held = 1 - static.slow_bytes[1] / total_bytes
    static_s = dense_s + static_token_s(token_bytes, held_fraction=held, rates=rates)
    slots_s = dense_s + slots_token_s(
        slotted_bytes,
        hit_fraction=planned.expected_hit_fraction,
        layers=len(planned.layers),
        rates=rates,
    )
    slots_s += max(0, token_bytes - slotted_bytes) / rates.host_bytes_per_s
    told = (
        f"with {planned.expected_hit_fraction:.0%} of hits a token may take {slots_s * 1e3:.1f} ms "
        f"from slots, and {static_s * 1e3:.1f} ms with whole layers"
    )
    return static_s / slots_s, told


def _unknown_rates(machine: Machine, static: Candidate) -> str:
    """Return which rates are missing, with their verb; empty when none is."""
    missing = []
    gpus = [machine.gpu(device) for device in static.devices]
    if any(gpu.memory_bandwidth_bytes_per_s is None for gpu in gpus):
        missing.append("VRAM")
    if any(gpu.link_bytes_per_s is None for gpu in gpus):
        missing.append("the link")
    if machine.host.memory_bandwidth_bytes_per_s is None:
        missing.append("RAM")
    if not missing:
        return ""
    rates = "rate" if len(missing) == 1 else "rates"
    return f"the {rates} of {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"


def _rates(machine: Machine, found: Candidate) -> Rates:
    """Return the rates of the slowest of the devices; all of them are known."""
    gpus = [machine.gpu(device) for device in found.devices]
    device = min(gpu.memory_bandwidth_bytes_per_s or 0.0 for gpu in gpus)
    link = min(gpu.link_bytes_per_s or 0.0 for gpu in gpus)
    return Rates(
        device_bytes_per_s=device * _REACHED_FRACTION,
        link_bytes_per_s=link * _REACHED_FRACTION,
        host_bytes_per_s=machine.host.memory_bandwidth_bytes_per_s or 0.0,
    )
