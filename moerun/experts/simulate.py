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

LEAST_CYCLES: Final = Fraction(3, 2)
"""A cache of less than one token's experts hits nothing: each is gone before its layer's turn."""


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


def replay(
    trace: Trace,
    policy: SimulatedPolicy,
    *,
    slot_bytes: Mapping[int, int],
    cache_bytes: int,
) -> Replay:
    """Return what a cache of that size hits over the trace, beginning empty."""
    book = CacheBook(_policy(policy, trace), slot_bytes=slot_bytes, cache_bytes=cache_bytes)
    known: set[ExpertKey] = set()
    tallies = [_replay_pass(each, book, known, slot_bytes) for each in trace.passes]
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
        prefill=_sum(prefill),
        decode=_sum(decode),
        warm=_sum(decode[len(decode) // 2 :]),
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
    each: Pass, book: CacheBook, known: set[ExpertKey], slot_bytes: Mapping[int, int]
) -> Uses:
    hits = misses = first_misses = read_bytes = 0
    for layer, experts in each.choices:
        request = book.request(layer, experts)
        hits += len(request.hits)
        missed = request.misses
        if missed:
            misses += len(missed)
            first_misses += sum(key not in known for key in missed)
            read_bytes += len(missed) * slot_bytes[layer]
            known.update(missed)
    return Uses(
        tokens=each.tokens,
        hits=hits,
        misses=misses,
        first_misses=first_misses,
        read_bytes=read_bytes,
    )


def _sum(parts: Sequence[Uses]) -> Uses:
    return Uses(
        tokens=sum(part.tokens for part in parts),
        hits=sum(part.hits for part in parts),
        misses=sum(part.misses for part in parts),
        first_misses=sum(part.first_misses for part in parts),
        read_bytes=sum(part.read_bytes for part in parts),
    )
