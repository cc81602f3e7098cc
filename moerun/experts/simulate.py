"""A trace replayed through the policies that run, for a cache of any size.

Knows: how a cache fills and empties over a trace, and what a disk makes of its misses.
Does not know: memory, files, or how figures are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, assert_never

from moerun.errors import UsageError
from moerun.experts.book import CacheBook
from moerun.experts.interface import CachePolicy, ExpertKey
from moerun.experts.order import PolicyName
from moerun.experts.policy import Belady, make_policy
from moerun.experts.routes import Pass, Phase, Trace
from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind, Plan

LEAST_CYCLES: Final = Fraction(3, 2)
"""A cache of less than one token's experts hits nothing: each is gone before its layer's turn."""


_LADDER: Final = (10, 20, 30, 40, 50, 60, 80, 100)  # percent of the experts' bytes


class SimulatedPolicy(StrEnum):
    """The policies that run, and the bound for all of them."""

    LRU = "lru"
    FREQUENCY = "frequency"
    BELADY = "belady"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What some passes asked for. `first_misses` are of experts that no pass used before.

    No cache that starts empty can hit those, so they tell how short a trace is.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    first_misses: int = 0
    read_bytes: int = 0

    @property
    def hit_fraction(self) -> float | None:
        """The share of requests that were held; None without any."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else None

    @property
    def repeat_hit_fraction(self) -> float | None:
        """The same among experts that were used before: what a long run comes to."""
        requests = self.hits + self.misses - self.first_misses
        return self.hits / requests if requests else None

    @property
    def read_bytes_per_token(self) -> float | None:
        """What a token reads; None without any."""
        return self.read_bytes / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One trace, one policy, one size. `warm` is the later half of the answers' tokens."""

    policy: SimulatedPolicy
    cache_bytes: int
    prefill: Uses
    decode: Uses
    warm: Uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second when reading and computing fully overlap, and when they take turns."""

    overlapped_tokens_per_s: float
    in_turn_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedMemory:
    """What of the host's memory is not for experts, and how that is known."""

    size_bytes: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What the storage reads, and how that is known."""

    read_bytes_per_s: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeResult:
    """What one size of RAM comes to; no replays where it is less than is needed."""

    ram_bytes: int
    cache_bytes: int
    replays: tuple[Replay, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A trace replayed for several sizes of RAM.

    `expert_bytes` and `cycle_bytes` are the memory that all experts take, and those of one token;
    `least_ram_bytes` is what streaming needs.
    """

    model_name: str
    layer_count: int
    expert_count: int
    experts_used: int
    prompt_tokens: int
    answer_tokens: int
    expert_bytes: int
    cycle_bytes: int
    fixed: FixedMemory
    least_ram_bytes: int
    sizes: tuple[SizeResult, ...]
    disk: Disk | None = None
    compute_s: float | None = None
    notes: tuple[str, ...] = ()

    def speed(self, uses: Uses) -> "Speed | None":
        """Return what to expect of so much reading; None where the disk is not known."""
        read_bytes = uses.read_bytes_per_token
        if self.disk is None or read_bytes is None:
            return None
        return expected_speed(
            read_bytes,
            read_bytes_per_s=self.disk.read_bytes_per_s,
            compute_s=self.compute_s or 0.0,
        )

    def held_fraction(self, size: SizeResult) -> float:
        """Return the share of the experts' bytes that a size holds."""
        return min(1.0, size.cache_bytes / self.expert_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be found out: sizes of RAM (None for a ladder of shares) and policies.

    `slot_bytes`, `read_bytes` and `expert_counts` are of a model's header where one is named: the
    memory that an expert of each layer takes, what is read for it, and how many there are.
    """

    ram_bytes: tuple[int, ...] | None
    policies: tuple[SimulatedPolicy, ...]
    slot_bytes: Mapping[int, int] | None = None
    read_bytes: Mapping[int, int] | None = None
    expert_counts: Mapping[int, int] | None = None
    fixed: FixedMemory | None = None
    disk: Disk | None = None
    compute_s: float | None = None


def simulate(trace: Trace, question: Question) -> Simulation:
    """Replay a trace for every size and policy; UsageError where the trace lacks what is needed.

    RAM is that of the whole process: the cache gets what the rest leaves.
    """
    slots = traced_slots(trace, question.slot_bytes)
    counts = expert_counts(trace, slots, question.expert_counts)
    expert_bytes = sum(size * counts[layer] for layer, size in slots.items())
    fixed = question.fixed or _fixed_by_header(trace)
    used = trace.header.experts_used
    least_ram_bytes = fixed.size_bytes + min(expert_bytes, least_cache_bytes(slots, used))
    sizes = question.ram_bytes or tuple(
        max(least_ram_bytes, fixed.size_bytes + expert_bytes * share // 100) for share in _LADDER
    )
    return Simulation(
        model_name=trace.header.model_name,
        layer_count=len(slots),
        expert_count=max(counts.values()),
        experts_used=used,
        prompt_tokens=trace.tokens(Phase.PREFILL),
        answer_tokens=trace.tokens(Phase.DECODE),
        expert_bytes=expert_bytes,
        cycle_bytes=cycle_bytes(slots, used),
        fixed=fixed,
        least_ram_bytes=least_ram_bytes,
        sizes=tuple(
            _size_result(
                trace,
                question,
                slots,
                ram_bytes=ram_bytes,
                cache_bytes=max(0, min(expert_bytes, ram_bytes - fixed.size_bytes)),
                is_enough=ram_bytes >= least_ram_bytes,
            )
            for ram_bytes in sizes
        ),
        disk=question.disk,
        compute_s=question.compute_s,
        notes=trace.notes,
    )


def _size_result(
    trace: Trace,
    question: Question,
    slots: Mapping[int, int],
    *,
    ram_bytes: int,
    cache_bytes: int,
    is_enough: bool,
) -> SizeResult:
    replays = (
        replay(
            trace,
            policy,
            slot_bytes=slots,
            cache_bytes=cache_bytes,
            read_bytes=question.read_bytes,
        )
        for policy in question.policies
        if is_enough
    )
    return SizeResult(ram_bytes=ram_bytes, cache_bytes=cache_bytes, replays=tuple(replays))


def fixed_memory(plan: Plan) -> FixedMemory:
    """Return what a plan without GPUs charges to the host for all but experts."""
    kept = (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_CACHE, ChargeKind.MARGIN)
    size_bytes = sum(
        charge.size_bytes
        for charge in plan.ledger.charges
        if charge.device == HOST and charge.kind not in kept
    )
    return FixedMemory(
        size_bytes=size_bytes,
        origin=f"dense weights, KV cache of {plan.context_tokens:,} tokens, buffers and the "
        "program, as planned without a GPU",
    )


def expert_counts(
    trace: Trace, slots: Mapping[int, int], counts: Mapping[int, int] | None
) -> Mapping[int, int]:
    """Return how many experts each layer has; a trace that does not say shows some of them."""
    highest = dict.fromkeys(slots, 0)
    for each in trace.passes:
        for layer, experts in each.choices:
            highest[layer] = max(highest[layer], *experts)
    if counts is None:
        return dict.fromkeys(slots, trace.header.expert_count or max(highest.values()) + 1)
    for layer, expert in highest.items():
        if expert >= counts[layer]:
            raise UsageError(
                f"the trace has expert {expert} of layer {layer}, and the model has "
                f"{counts[layer]} experts there; it is of another model"
            )
    return counts


def _fixed_by_header(trace: Trace) -> FixedMemory:
    dense_bytes = trace.header.dense_bytes
    known = "dense weights by the trace's header" if dense_bytes else "the trace tells no more"
    return FixedMemory(
        size_bytes=dense_bytes,
        origin=f"{known}; KV cache, buffers and the program are not in it: --model counts them",
    )


def replay(
    trace: Trace,
    policy: SimulatedPolicy,
    *,
    slot_bytes: Mapping[int, int],
    cache_bytes: int,
    read_bytes: Mapping[int, int] | None = None,
) -> Replay:
    """Return what a cache of that size hits over the trace, beginning empty.

    `slot_bytes` are the memory that an expert of each layer takes, `read_bytes` what is read for
    it where that is less: memory is taken by whole pages.
    """
    book = CacheBook(_policy(policy, trace), slot_bytes=slot_bytes, cache_bytes=cache_bytes)
    known: set[ExpertKey] = set()
    tallies = [_replay_pass(each, book, known, read_bytes or slot_bytes) for each in trace.passes]
    decode = [
        uses for uses, each in zip(tallies, trace.passes, strict=True) if each.phase is Phase.DECODE
    ]
    prefill = [
        uses
        for uses, each in zip(tallies, trace.passes, strict=True)
        if each.phase is Phase.PREFILL
    ]
    return Replay(
        policy=policy,
        cache_bytes=cache_bytes,
        prefill=sum_uses(prefill),
        decode=sum_uses(decode),
        warm=sum_uses(decode[len(decode) // 2 :]),
    )


def traced_slots(trace: Trace, slot_bytes: Mapping[int, int] | None = None) -> dict[int, int]:
    """Return the bytes of one expert of each layer of the trace, by a model's header if given.

    UsageError when neither says them, or the model is another one.
    """
    known = dict(trace.slot_bytes if slot_bytes is None else slot_bytes)
    missing = sorted(layer for layer in trace.routed_layers if not known.get(layer))
    if missing and slot_bytes is None:
        raise UsageError(
            f"the trace does not say how large the experts of layer {missing[0]} are "
            "(expert_bytes); name the model it is of with --model"
        )
    if missing:
        raise UsageError(
            f"the trace has routing of layer {missing[0]}, and the model has no experts there; "
            "it is of another model"
        )
    return known


def cycle_bytes(slot_bytes: Mapping[int, int], experts_used: int) -> int:
    """Return the bytes of the experts that one token uses, over all layers."""
    return experts_used * sum(slot_bytes.values())


def least_cache_bytes(slot_bytes: Mapping[int, int], experts_used: int) -> int:
    """Return the smallest cache that is worth having: one and a half cycles."""
    return int(LEAST_CYCLES * cycle_bytes(slot_bytes, experts_used))


def expected_speed(
    read_bytes_per_token: float, *, read_bytes_per_s: float, compute_s: float
) -> Speed:
    """Return what a disk and a processor make of so many bytes for each token."""
    read_s = read_bytes_per_token / read_bytes_per_s
    return Speed(
        overlapped_tokens_per_s=_rate(max(read_s, compute_s)),
        in_turn_tokens_per_s=_rate(read_s + compute_s),
    )


def _rate(token_s: float) -> float:
    return 1 / token_s if token_s > 0 else float("inf")


def _policy(policy: SimulatedPolicy, trace: Trace) -> CachePolicy:
    match policy:
        case SimulatedPolicy.LRU:
            return make_policy(PolicyName.LRU)
        case SimulatedPolicy.FREQUENCY:
            return make_policy(PolicyName.FREQUENCY)
        case SimulatedPolicy.BELADY:
            return Belady(
                ExpertKey(choice.layer, expert)
                for each in trace.passes
                for choice in each.choices
                for expert in choice.experts
            )
        case _:
            assert_never(policy)


def _replay_pass(
    each: Pass, book: CacheBook, known: set[ExpertKey], expert_bytes: Mapping[int, int]
) -> Uses:
    hits = misses = first_misses = read_bytes = 0
    for layer, experts in each.choices:
        request = book.request(layer, experts)
        hits += len(request.hits)
        missed = request.misses
        if missed:
            misses += len(missed)
            first_misses += sum(key not in known for key in missed)
            read_bytes += len(missed) * expert_bytes[layer]
            known.update(missed)
    return Uses(
        tokens=each.tokens,
        hits=hits,
        misses=misses,
        first_misses=first_misses,
        read_bytes=read_bytes,
    )


def sum_uses(parts: Sequence[Uses]) -> Uses:
    """Return passes taken together."""
    return Uses(
        tokens=sum(part.tokens for part in parts),
        hits=sum(part.hits for part in parts),
        misses=sum(part.misses for part in parts),
        first_misses=sum(part.first_misses for part in parts),
        read_bytes=sum(part.read_bytes for part in parts),
    )
