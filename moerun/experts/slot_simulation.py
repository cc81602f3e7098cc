"""A trace replayed through slots in VRAM, as many for every layer, and what that makes of a token.

Prompts are read without slots, so only the passes of answers count, from empty slots on. Whatever
misses is uploaded: a graph that reads slots can compute nothing on the host, so there is no gate
that admits an expert only after it was missed several times, and none is simulated.

Knows: books of slots over a trace, and the rates of a machine.
Does not know: devices, plans, files, or how figures are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from moerun.errors import UsageError
from moerun.experts.interface import CachePolicy, ExpertKey
from moerun.experts.order import PolicyName
from moerun.experts.policy import Belady, make_policy
from moerun.experts.routes import Pass, Phase, Trace
from moerun.experts.simulate import (
    SimulatedPolicy,
    Uses,
    cycle_bytes,
    expert_counts,
    sum_uses,
    traced_slots,
)
from moerun.experts.slot_book import SlotBook
from moerun.planning.slot_gain import (
    Rates,
    break_even_hit_fraction,
    slots_token_s,
    static_token_s,
)
from moerun.planning.slots import LEAST_TIMES_USED


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotAmount:
    """How many slots: a number for each layer, a share of the experts, or all that VRAM holds."""

    slots: int | None = None
    of_experts_fraction: float | None = None
    vram_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotQuestion:
    """What is to be found out; `compute_s` is what a token takes beside its experts."""

    amounts: tuple[SlotAmount, ...]
    policies: tuple[SimulatedPolicy, ...]
    slot_bytes: Mapping[int, int] | None = None
    expert_counts: Mapping[int, int] | None = None
    rates: Rates | None = None
    compute_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReplay:
    """One policy with so many slots; `warm` is the later half of the answers' tokens.

    Bytes read are bytes uploaded.
    """

    policy: SimulatedPolicy
    decode: Uses
    warm: Uses


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotResult:
    """What one number of slots comes to. No replays where a token's experts do not fit.

    `static_s` is what a token takes with whole layers of experts in the same memory,
    `break_even_fraction` the share of hits from which slots are faster; None without rates.
    """

    slots: int
    held_fraction: float
    vram_bytes: int
    is_worth_having: bool
    replays: tuple[SlotReplay, ...]
    static_s: float | None = None
    break_even_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSimulation:
    """A trace replayed for several numbers of slots; `token_bytes` are one token's experts."""

    model_name: str
    layer_count: int
    expert_count: int
    experts_used: int
    answer_tokens: int
    expert_bytes: int
    token_bytes: int
    least_slots: int
    sizes: tuple[SlotResult, ...]
    rates: Rates | None = None
    compute_s: float | None = None
    notes: tuple[str, ...] = ()

    def token_s(self, uses: Uses) -> float | None:
        """Return what a token takes with so many hits; None without rates."""
        hits = uses.hit_fraction
        if self.rates is None or hits is None:
            return None
        return (self.compute_s or 0.0) + slots_token_s(
            self.token_bytes, hit_fraction=hits, layers=self.layer_count, rates=self.rates
        )


def uploads_per_token(uses: Uses) -> float | None:
    """Return how many experts are uploaded for a token; None without any."""
    return uses.misses / uses.tokens if uses.tokens else None


def simulate_slots(trace: Trace, question: SlotQuestion) -> SlotSimulation:
    """Replay a trace for every number of slots; UsageError where it lacks what is needed."""
    slot_bytes = traced_slots(trace, question.slot_bytes)
    counts = expert_counts(trace, slot_bytes, question.expert_counts)
    used = trace.header.experts_used
    done = SlotSimulation(
        model_name=trace.header.model_name,
        layer_count=len(slot_bytes),
        expert_count=max(counts.values()),
        experts_used=used,
        answer_tokens=trace.tokens(Phase.DECODE),
        expert_bytes=sum(size * counts[layer] for layer, size in slot_bytes.items()),
        token_bytes=cycle_bytes(slot_bytes, used),
        least_slots=LEAST_TIMES_USED * used,
        sizes=(),
        rates=question.rates,
        compute_s=question.compute_s,
        notes=trace.notes,
    )
    if not done.answer_tokens:
        raise UsageError("the trace has no tokens of answers, and only these use slots")
    numbers = dict.fromkeys(_number(amount, done, slot_bytes) for amount in question.amounts)
    return replace(
        done,
        sizes=tuple(
            _result(trace, done, question.policies, slot_bytes, slots) for slots in numbers
        ),
    )


def _number(amount: SlotAmount, done: SlotSimulation, slot_bytes: Mapping[int, int]) -> int:
    if amount.slots is not None:
        slots = amount.slots
    elif amount.of_experts_fraction is not None:
        slots = int(Fraction(str(amount.of_experts_fraction)) * done.expert_count)
    else:
        slots = (amount.vram_bytes or 0) // sum(slot_bytes.values())
    return min(slots, done.expert_count)


def _result(
    trace: Trace,
    done: SlotSimulation,
    policies: tuple[SimulatedPolicy, ...],
    slot_bytes: Mapping[int, int],
    slots: int,
) -> SlotResult:
    vram_bytes = slots * sum(slot_bytes.values())
    held = vram_bytes / done.expert_bytes
    rates, static_s, even = done.rates, None, None
    if rates is not None:
        static_s = (done.compute_s or 0.0) + static_token_s(
            done.token_bytes, held_fraction=held, rates=rates
        )
        even = break_even_hit_fraction(
            done.token_bytes, held_fraction=held, layers=done.layer_count, rates=rates
        )
    return SlotResult(
        slots=slots,
        held_fraction=held,
        vram_bytes=vram_bytes,
        is_worth_having=slots >= min(done.least_slots, done.expert_count),
        replays=tuple(
            replay_slots(trace, policy, slots=slots, slot_bytes=slot_bytes)
            for policy in policies
            if slots >= done.experts_used
        ),
        static_s=static_s,
        break_even_fraction=even,
    )


def replay_slots(
    trace: Trace, policy: SimulatedPolicy, *, slots: int, slot_bytes: Mapping[int, int]
) -> SlotReplay:
    """Return what so many slots of each layer hit over the answers of a trace, empty at first.

    Passes of several tokens that may need more experts than there are slots go without, as when
    a model runs.
    """
    used = max(1, trace.header.experts_used)
    passes = [
        each
        for each in trace.passes
        if each.phase is Phase.DECODE and each.tokens * used <= max(slots, used)
    ]
    books = {
        layer: SlotBook(layer, slots=slots, policy=_policy(policy, passes, layer))
        for layer in slot_bytes
    }
    known: set[ExpertKey] = set()
    tallies = [_replay_pass(each, books, known, slot_bytes) for each in passes]
    return SlotReplay(
        policy=policy, decode=sum_uses(tallies), warm=sum_uses(tallies[len(tallies) // 2 :])
    )


def _policy(policy: SimulatedPolicy, passes: list[Pass], layer: int) -> CachePolicy:
    if policy is SimulatedPolicy.BELADY:
        return Belady(
            ExpertKey(layer, expert)
            for each in passes
            for choice in each.choices
            if choice.layer == layer
            for expert in choice.experts
        )
    return make_policy(PolicyName(policy.value))


def _replay_pass(
    each: Pass,
    books: Mapping[int, SlotBook],
    known: set[ExpertKey],
    slot_bytes: Mapping[int, int],
) -> Uses:
    hits = misses = first_misses = moved_bytes = 0
    for layer, experts in each.choices:
        request = books[layer].request(experts)
        hits += request.hits
        misses += len(request.moves)
        moved_bytes += len(request.moves) * slot_bytes[layer]
        for expert, _ in request.moves:
            key = ExpertKey(layer, expert)
            first_misses += key not in known
            known.add(key)
    return Uses(
        tokens=each.tokens,
        hits=hits,
        misses=misses,
        first_misses=first_misses,
        read_bytes=moved_bytes,
    )
