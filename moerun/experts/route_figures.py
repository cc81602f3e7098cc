"""What a trace says of a model's routing: how uneven it is, and how often it repeats itself.

Knows: sums over passes.
Does not know: caches, files, or how figures are shown.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from moerun.experts.interface import ExpertKey
from moerun.experts.routes import Pass, Phase, Trace

_TOP_PARTS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFigures:
    """The figures of a trace; fractions are None where there is nothing to divide.

    `used_fraction` of all experts were used at all; the tenth of them that was used most took
    `top_tenth_fraction` of the requests of answers (0.1 when routing is even), and
    `repeated_fraction` of these were for an expert that the token before had used, too.
    """

    prompt_tokens: int
    answer_tokens: int
    turns: int
    layer_count: int
    used_fraction: float | None
    top_tenth_fraction: float | None
    repeated_fraction: float | None


def route_figures(trace: Trace) -> RouteFigures:
    """Sum up a trace."""
    answers = [each for each in trace.passes if each.phase is Phase.DECODE]
    uses = Counter(key for each in answers for key in _keys(each))
    seen = {key for each in trace.passes for key in _keys(each)}
    layers = trace.routed_layers
    expert_count = len(layers) * trace.header.expert_count
    top = sum(count for _, count in uses.most_common(expert_count // _TOP_PARTS))
    return RouteFigures(
        prompt_tokens=trace.tokens(Phase.PREFILL),
        answer_tokens=trace.tokens(Phase.DECODE),
        turns=len({each.turn for each in trace.passes}),
        layer_count=len(layers),
        used_fraction=len(seen) / expert_count if expert_count else None,
        top_tenth_fraction=top / uses.total() if uses and expert_count else None,
        repeated_fraction=_repeated_fraction(answers),
    )


def _repeated_fraction(answers: list[Pass]) -> float | None:
    repeated = asked = 0
    before: tuple[int, set[ExpertKey]] | None = None
    for each in answers:
        keys = _keys(each)
        if before is not None and before[0] == each.turn:
            repeated += len(keys & before[1])
            asked += len(keys)
        before = (each.turn, keys)
    return repeated / asked if asked else None


def _keys(each: Pass) -> set[ExpertKey]:
    return {ExpertKey(choice.layer, expert) for choice in each.choices for expert in choice.experts}
