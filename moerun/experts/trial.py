"""Which of several ways to run is fastest, found out on the tokens of real answers.

One way runs as it is, then each other one in turn. Tokens right after a change do not count: the
new way begins with nothing held. What counts is the median, since single tokens wait for a disk
that others use, too. A challenger has to win by a margin, so that chance changes nothing, and one
that is hopeless is given up early.

Knows: stretches of tokens and their times, as they are fed.
Does not know: what the ways are, clocks, or how a way is changed.
"""

from dataclasses import dataclass
from statistics import median
from typing import Final

from moerun.errors import MoerunError

_MILLISECONDS: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRules:
    """How long each way is tried.

    At most `settle_tokens` or `settle_s` pass before times count, at least `fewest_settle_tokens`.
    Then `stretch_tokens` count, or as many as `stretch_s` holds, but `fewest_tokens`. Every way
    has `rounds` turns. `gain_fraction` is by how much a challenger must be faster, and one that is
    `hopeless_ratio` times slower after `fewest_tokens` has its turn cut short.
    """

    settle_tokens: int = 48
    fewest_settle_tokens: int = 3
    settle_s: float = 10.0
    stretch_tokens: int = 16
    fewest_tokens: int = 5
    stretch_s: float = 10.0
    rounds: int = 1
    gain_fraction: float = 0.03
    hopeless_ratio: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The way that won, the median time of a token by each, and why in words."""

    winner: str
    median_s: tuple[tuple[str, float], ...]
    because: str


class Trial:
    """Turns of an incumbent and its challengers; feed it the time of every token."""

    def __init__(
        self, incumbent: str, challengers: tuple[str, ...], *, rules: TrialRules | None = None
    ) -> None:
        if not challengers or incumbent in challengers:
            raise MoerunError("a trial needs challengers other than the way that runs")
        self._rules = rules or TrialRules()
        self._incumbent = incumbent
        self._turns = [incumbent, *challengers] * self._rules.rounds
        self._turn = 0
        self._times: dict[str, list[float]] = {way: [] for way in self._turns}
        self._stretch: list[float] = []
        self._settling_tokens = 0
        self._settling_s = 0.0
        self._is_settling = True
        self._given_up: set[str] = set()
        self._verdict: Verdict | None = None

    @property
    def current(self) -> str:
        """The way that the next token is to be run by."""
        return self._verdict.winner if self._verdict is not None else self._turns[self._turn]

    @property
    def verdict(self) -> Verdict | None:
        """What came of it, None while it goes on."""
        return self._verdict

    def feed(self, token_s: float, *, is_settled: bool = True) -> None:
        """Take in a token that ran by the current way; `is_settled` when what it holds is full."""
        if self._verdict is not None:
            return
        if self._is_settling:
            self._settle(token_s, is_settled=is_settled)
            return
        self._stretch.append(token_s)
        if self._is_turn_over():
            self._end_turn()

    def _settle(self, token_s: float, *, is_settled: bool) -> None:
        rules = self._rules
        self._settling_tokens += 1
        self._settling_s += token_s
        if self._settling_tokens < rules.fewest_settle_tokens:
            return
        if (
            is_settled
            or self._settling_tokens >= rules.settle_tokens
            or self._settling_s >= rules.settle_s
        ):
            self._is_settling = False

    def _is_turn_over(self) -> bool:
        count = len(self._stretch)
        if count >= self._rules.stretch_tokens:
            return True
        if count < self._rules.fewest_tokens:
            return False
        return sum(self._stretch) >= self._rules.stretch_s or self._is_hopeless()

    def _is_hopeless(self) -> bool:
        own = self._times[self._incumbent]
        if self.current == self._incumbent or not own:
            return False
        if median(self._stretch) <= self._rules.hopeless_ratio * median(own):
            return False
        self._given_up.add(self.current)
        return True

    def _end_turn(self) -> None:
        self._times[self.current] += self._stretch
        self._stretch = []
        self._settling_tokens, self._settling_s, self._is_settling = 0, 0.0, True
        self._turn += 1
        while self._turn < len(self._turns) and self.current in self._given_up:
            self._turn += 1
        if self._turn >= len(self._turns):
            self._verdict = self._decide()

    def _decide(self) -> Verdict:
        medians = {way: median(times) for way, times in self._times.items()}
        own_s = medians[self._incumbent]
        best = min(medians, key=lambda way: medians[way])
        is_faster = medians[best] < own_s * (1 - self._rules.gain_fraction)
        winner = best if is_faster else self._incumbent
        figures = ", ".join(
            f"{way} {time_s * _MILLISECONDS:.1f} ms" for way, time_s in medians.items()
        )
        because = f"tried on {sum(map(len, self._times.values()))} tokens, median: {figures}"
        if winner == self._incumbent and best != winner:
            because += f"; less than {self._rules.gain_fraction:.0%} changes nothing"
        return Verdict(winner=winner, median_s=tuple(medians.items()), because=because)
