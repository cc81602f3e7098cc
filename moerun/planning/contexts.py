"""Which context to plan for: a ladder of lengths, tried one by one.

Knows: the default, what growing may cost, what comes after the chosen length.
Does not know: how a placement is found.
"""

from dataclasses import dataclass, replace
from typing import Final

from moerun.planning.candidate import Candidate
from moerun.planning.choices import load_mode
from moerun.planning.placement import best_candidate
from moerun.planning.plan import Rung
from moerun.planning.situation import Problem, Situation, situation
from moerun.planning.strategy import DEFAULT_CONTEXT_TOKENS, MINIMUM_CONTEXT_TOKENS, LoadMode

_LARGEST_RUNG_TOKENS: Final = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A context, the best placement for it, and why this length (an empty reason: it was asked)."""

    at: Situation
    candidate: Candidate | None
    because: str
    is_reduced: bool = False

    @property
    def fits(self) -> bool:
        """Whether the placement fits."""
        return self.candidate is not None and self.candidate.fits


def choose_context(problem: Problem) -> Choice:
    """Return the context to plan for; its candidate does not fit when none does."""
    strategy = problem.strategy
    if strategy.context_tokens is not None:
        return _try(problem, strategy.context_tokens, "it was asked for")
    trained = problem.model.train_context_tokens or DEFAULT_CONTEXT_TOKENS
    if strategy.context_is_largest:
        return _descend(problem, trained, "the largest that fits was asked for")
    default = min(trained, DEFAULT_CONTEXT_TOKENS)
    start = _try(problem, default, "the default is the smaller of the trained length and 8,192")
    if start.fits:
        return _grow(problem, start, trained)
    lower = _descend(problem, default, "the largest that fits below the default", below=True)
    return lower if lower.fits else start


def next_rung(problem: Problem, choice: Choice) -> Rung | None:
    """Return what doubling the context would cost; None when it is the trained length already."""
    trained = problem.model.train_context_tokens or DEFAULT_CONTEXT_TOKENS
    tokens = min(choice.at.context_tokens * 2, trained)
    if tokens <= choice.at.context_tokens or choice.candidate is None:
        return None
    larger = best_candidate(situation(problem, tokens))
    if larger is None or not larger.fits:
        return Rung(context_tokens=tokens, expert_bytes_moved=0, fits=False)
    _, experts, on_ssd = choice.candidate.slow_bytes
    _, more_experts, more_on_ssd = larger.slow_bytes
    mode, larger_mode = load_mode(problem, choice.candidate), load_mode(problem, larger)
    return Rung(
        context_tokens=tokens,
        expert_bytes_moved=max(
            0,
            more_experts - experts,
            more_on_ssd - on_ssd,
            larger.remote_expert_bytes - choice.candidate.remote_expert_bytes,
        ),
        fits=True,
        layers_moved=max(0, larger.host_layers - choice.candidate.host_layers),
        ends_copy=mode is LoadMode.COPY and larger_mode is not LoadMode.COPY,
    )


def ladder(trained_tokens: int) -> tuple[int, ...]:
    """Return the lengths to try, ascending: powers of two, the halves between, the trained one."""
    rungs = [trained_tokens]
    power = MINIMUM_CONTEXT_TOKENS
    while power < min(trained_tokens, _LARGEST_RUNG_TOKENS):
        rungs += [length for length in (power, power * 3 // 2) if length < trained_tokens]
        power *= 2
    return tuple(sorted(set(rungs)))


def _try(problem: Problem, context_tokens: int, because: str) -> Choice:
    at = situation(problem, context_tokens)
    return Choice(at=at, candidate=best_candidate(at), because=because)


def _descend(problem: Problem, highest: int, because: str, *, below: bool = False) -> Choice:
    """Try lengths from `highest` down; the last one tried when none fits."""
    lengths = [tokens for tokens in ladder(highest) if not below or tokens < highest]
    choice = None
    for tokens in reversed(lengths or [highest]):
        choice = _try(problem, tokens, because)
        if choice.fits:
            break
    assert choice is not None
    return Choice(
        at=choice.at, candidate=choice.candidate, because=because, is_reduced=choice.fits and below
    )


def _grow(problem: Problem, start: Choice, trained: int) -> Choice:
    """Take longer contexts as long as no expert, layer or copy in RAM has to give way."""
    reached = start
    for tokens in ladder(trained):
        if tokens <= start.at.context_tokens:
            continue
        longer = _try(problem, tokens, "it grew into memory that no expert wants")
        cost = _cost(start, longer)
        if cost is not None:
            return replace(reached, because=f"{reached.because}; {tokens:,} would {cost}")
        reached = longer
    return replace(reached, because=f"{reached.because}; it is the trained length")


def _cost(start: Choice, longer: Choice) -> str | None:
    """Return what a longer context would take away from other things, None when nothing."""
    before, after = start.candidate, longer.candidate
    if after is None or not after.fits:
        return "not fit"
    assert before is not None
    if after.host_layers != before.host_layers:
        return "move whole layers off the GPUs"
    if after.remote_layers > before.remote_layers:
        return "move whole layers to workers"
    remote = (before.remote_expert_bytes, after.remote_expert_bytes)
    if after.slow_bytes[1:] != before.slow_bytes[1:] or remote[1] > remote[0]:
        return "move experts to a slower tier"
    if load_mode(longer.at.problem, after) is not load_mode(start.at.problem, before):
        return "leave too little RAM for a copy of the host weights"
    return None
