"""What a plan says of experts on SSD: how they stream, why they do not, what a token reads.

Knows: the sentences, and the numbers in them.
Does not know: how the cache was sized, or the other lines of an explanation.
"""

from collections.abc import Iterator

from moerun.machine.description import SSD
from moerun.planning import streaming
from moerun.planning.candidate import Candidate
from moerun.planning.plan import Caution, ChargeKind, Decision, Plan
from moerun.planning.situation import Problem
from moerun.planning.strategy import StreamingMode, Tier, Toggle
from moerun.units import format_gib


def streaming_decisions(problem: Problem, candidate: Candidate, plan: Plan) -> list[Decision]:
    """Return how large the cache is and how it is filled, or why there is none."""
    found = plan.streaming
    if found is None:
        return _left_to_the_system(problem, candidate, plan)
    bound = f"what is left of {format_gib(found.limit_bytes)}"
    if candidate.cache is not None and candidate.cache.is_share:
        bound = "expert_residency allows no more in RAM"
    elif Tier.RAM not in problem.strategy.hierarchy:
        bound = "the hierarchy has no ram, so it is as small as can be"
    elif found.held_fraction == 1:
        bound = "it has room for all of them"
    return [
        Decision(
            step="streaming",
            subject=f"cache for {format_gib(found.expert_bytes)} of experts",
            chosen=f"{format_gib(found.cache_bytes)} of RAM, {found.held_fraction:.1%}",
            because=(
                f"{bound}; it holds the experts of {found.held_cycles:.1f} tokens, and below "
                f"{format_gib(found.minimum_bytes)} each expert would be driven out before it is "
                "used again"
            ),
        ),
        Decision(
            step="streaming",
            subject="mechanism",
            chosen=str(found.mode),
            because=_why_mechanism(problem, found.mode),
        ),
        Decision(
            step="streaming",
            subject="size while it runs",
            chosen="follows memory pressure" if found.is_adaptive else "fixed",
            because=f"the allocation policy is {problem.strategy.allocation_policy}",
        ),
        *_ssd_cache(problem, found.mode),
    ]


def _why_mechanism(problem: Problem, mode: StreamingMode) -> str:
    if mode is StreamingMode.AUTO:
        return "what is faster is tried while it runs"
    if problem.strategy.streaming in (StreamingMode.AUTO, StreamingMode.SLOTS):
        if mode is StreamingMode.PAGING:
            return "what slots in VRAM hold need not be held in RAM as well"
        return "an SSD cache is filled and read by reads of our own alone"
    return "it was asked for"


def _ssd_cache(problem: Problem, mode: StreamingMode) -> list[Decision]:
    strategy = problem.strategy
    if strategy.ssd_cache_path is None or mode is StreamingMode.PAGING:
        return []
    room = f"at most {strategy.max_swap_size}" if strategy.max_swap_size else "what is free there"
    return [
        Decision(
            step="streaming",
            subject="SSD cache",
            chosen=strategy.ssd_cache_path,
            because=f"what is read of the model is copied there and read from there again; {room}",
        )
    ]


def ssd_cautions(problem: Problem, candidate: Candidate, plan: Plan) -> list[Caution]:
    """Return what lies on SSD and what that costs, and which wishes it leaves unmet."""
    return [
        *_costs(problem, candidate, plan),
        *_repacking_off(problem, plan),
        *_unmet_wishes(problem, plan),
    ]


def _left_to_the_system(problem: Problem, candidate: Candidate, plan: Plan) -> list[Decision]:
    if not plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS):
        return []
    return [
        Decision(
            step="streaming",
            subject="experts on SSD",
            chosen="left to the system",
            because=_why_not_streamed(problem, candidate),
        )
    ]


def _costs(problem: Problem, candidate: Candidate, plan: Plan) -> list[Caution]:
    on_ssd = plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS)
    if not on_ssd:
        return []
    model, streamed = problem.model, plan.streaming
    per_token = on_ssd * model.experts_used // max(1, model.expert_count)
    message = (
        f"{format_gib(on_ssd)} of {format_gib(model.expert_bytes)} of experts lie on SSD; a token "
        f"uses {format_gib(per_token)} of them"
    )
    if streamed is not None and streamed.held_fraction == 1:
        message += ", and a cache has room for all"
        return [Caution(code="host-part-exceeds-ram", message=message)]
    what = "they take"
    if streamed is not None:
        message += f", and a cache holds {streamed.held_fraction:.0%}"
        per_token, what = int(per_token * (1 - streamed.held_fraction)), "the rest takes"
    rate = problem.machine.storage.read_bytes_per_s
    if rate:
        message += (
            f"; {what} {per_token / rate:.2f} s at the {format_gib(int(rate))}/s of this storage"
        )
    if streamed is None:
        message += f"; they do not stream: {_why_not_streamed(problem, candidate)}"
    return [Caution(code="host-part-exceeds-ram", message=message)]


def _why_not_streamed(problem: Problem, candidate: Candidate) -> str:
    """Return why experts on SSD are left to the system's page cache."""
    reason = streaming.obstacle(problem)
    if reason is not None:
        return reason
    missed = candidate.missed_cache
    if missed is None:
        return "their matrices are not whole experts side by side"
    whose = "expert_residency leaves" if missed.is_share else "what is left of RAM is"
    return (
        f"a cache has to have {format_gib(missed.minimum_bytes)} (the experts of one and a half "
        f"tokens, and all that a micro-batch needs of a layer), and {whose} "
        f"{format_gib(missed.cache_bytes)}"
    )


def _repacking_off(problem: Problem, plan: Plan) -> list[Caution]:
    if not plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS):
        return []
    if problem.strategy.extra_buffers is not Toggle.ON:
        return []
    return [
        Caution(
            code="repacking-off",
            message="repacking was asked for and stays off: it would copy the experts that lie "
            "on SSD into memory",
        )
    ]


def _unmet_wishes(problem: Problem, plan: Plan) -> list[Caution]:
    """Return which settings of streaming change nothing."""
    strategy = problem.strategy
    found = list(_unmet_ssd_cache(problem, plan))
    if plan.streaming is not None:
        return found
    if streaming.is_forced(problem):
        found.append(
            Caution(
                code="streaming-unmet",
                message=f"streaming was asked for and nothing streams: {_why_nothing(problem)}",
            )
        )
    if strategy.preload_experts:
        found.append(
            Caution(
                code="preload-unmet",
                message=f"preload_experts is {strategy.preload_experts} and changes nothing: no "
                "expert streams",
            )
        )
    return found


def _unmet_ssd_cache(problem: Problem, plan: Plan) -> Iterator[Caution]:
    strategy, streamed = problem.strategy, plan.streaming
    if strategy.max_swap_size is not None and strategy.ssd_cache_path is None:
        yield Caution(
            code="max-swap-unmet",
            message=f"max_swap_size is {strategy.max_swap_size} and changes nothing: it bounds the "
            "SSD cache, and ssd_cache_path names none",
        )
    if strategy.ssd_cache_path is None:
        return
    if streamed is None or streamed.mode is StreamingMode.PAGING:
        why = "no expert streams" if streamed is None else "paging reads through the page cache"
        yield Caution(
            code="ssd-cache-unmet",
            message=f"ssd_cache_path is {strategy.ssd_cache_path} and changes nothing: {why}",
        )


def _why_nothing(problem: Problem) -> str:
    if not problem.model.is_sparse:
        return f"{problem.model.name} has no experts"
    if Tier.SSD not in problem.strategy.hierarchy:
        return "the hierarchy has no ssd"
    return streaming.obstacle(problem) or "all experts lie in VRAM or are pinned"
