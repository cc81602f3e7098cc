"""What `auto` decides while a model answers: the mechanism, and how many experts to read ahead.

First it looks on: where tokens hardly wait for experts, nothing is tried. Then the mechanisms have
their turns, and with the winner the reading ahead. What is remembered of an earlier run, or set by
the user, is not tried again.

Knows: the order of the trials, and when they are worth their tokens.
Does not know: clocks, files, or how a mechanism is changed.
"""

from dataclasses import dataclass, replace
from typing import Final

from moerun.experts.trial import Trial, TrialRules, Verdict
from moerun.planning.strategy import StreamingMode

# Two turns of each, since the disk's speed drifts and changing costs nothing here.
PRELOAD_RULES: Final = TrialRules(fewest_settle_tokens=4, stretch_tokens=12, rounds=2)
_LOOKING_TOKENS: Final = 8
_MOST_SETTLING_TOKENS: Final = 48
# A token that waits less than this share for experts cannot gain more than it.
_WORTH_FRACTION: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How experts stream now; `preload_experts` 0 reads nothing ahead."""

    mechanism: StreamingMode
    preload_experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What is open: other mechanisms, other counts of experts to read ahead."""

    mechanisms: tuple[StreamingMode, ...] = ()
    preload_experts: tuple[int, ...] = ()

    @property
    def is_any(self) -> bool:
        """Whether anything is open."""
        return bool(self.mechanisms or self.preload_experts)


class Tuner:
    """Feed it every decoded token; `setup` says how the next one is to run."""

    def __init__(
        self,
        setup: Setup,
        choices: Choices,
        *,
        because: str,
        rules: TrialRules | None = None,
        preload_rules: TrialRules = PRELOAD_RULES,
    ) -> None:
        self._setup = setup
        self._choices = choices
        self._reasons = [because]
        self._rules = rules
        self._preload_rules = preload_rules
        self._mechanisms: Trial | None = None
        self._preloading: Trial | None = None
        self._verdicts: list[Verdict] = []
        self._settling_tokens = 0
        self._token_s: list[float] = []
        self._stall_s: list[float] = []
        self._is_done = not choices.is_any

    @property
    def setup(self) -> Setup:
        """How the next token is to run."""
        return self._setup

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to try."""
        return self._is_done

    @property
    def may_preload(self) -> bool:
        """Whether reading ahead is still to be tried."""
        return not self._is_done and bool(self._choices.preload_experts)

    @property
    def has_learned(self) -> bool:
        """Whether a trial was finished, whose outcome is worth remembering."""
        return bool(self._verdicts)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What came of the trials so far."""
        return tuple(self._verdicts)

    @property
    def because(self) -> str:
        """Why the present setup runs, in words."""
        if self._is_done:
            return "; ".join(self._reasons)
        if self._mechanisms is not None:
            trying = f"trying {self._mechanisms.current} on this answer's tokens"
        elif self._preloading is not None:
            trying = f"trying to read {self._preloading.current} experts ahead"
        else:
            trying = "looking how long tokens wait for experts"
        return "; ".join([*self._reasons, trying])

    def feed(self, token_s: float, *, stall_s: float, is_settled: bool) -> None:
        """Take in one token that ran by `setup`."""
        if self._is_done:
            return
        if self._mechanisms is not None:
            self._feed_mechanisms(self._mechanisms, token_s, is_settled=is_settled)
        elif self._preloading is not None:
            self._feed_preloading(self._preloading, token_s, is_settled=is_settled)
        else:
            self._look_on(token_s, stall_s, is_settled=is_settled)

    def stay(self, setup: Setup, reason: str) -> None:
        """End all trials, as after a failure; this is what runs."""
        self._is_done = True
        self._setup = setup
        self._verdicts.clear()
        self._mechanisms = self._preloading = None
        self._reasons.append(reason)

    def _look_on(self, token_s: float, stall_s: float, *, is_settled: bool) -> None:
        """Look whether there is anything to win, once what is held is full."""
        if not is_settled and self._settling_tokens < _MOST_SETTLING_TOKENS:
            self._settling_tokens += 1
            return
        self._token_s.append(token_s)
        self._stall_s.append(stall_s)
        if len(self._token_s) < _LOOKING_TOKENS:
            return
        share = sum(self._stall_s) / sum(self._token_s) if sum(self._token_s) else 0.0
        # With paging the engine's threads wait in the kernel, where nobody sees how long.
        least = 0.0 if self._setup.mechanism is StreamingMode.PAGING else _WORTH_FRACTION
        # Slots spare the host its work, which no waiting tells of.
        if share <= least and StreamingMode.SLOTS not in self._choices.mechanisms:
            self._is_done = True
            self._reasons.append(f"tokens wait for experts {share:.1%} of their time: no trial")
        elif self._choices.mechanisms:
            self._mechanisms = Trial(
                self._setup.mechanism.value,
                tuple(mechanism.value for mechanism in self._choices.mechanisms),
                rules=self._rules,
            )
        else:
            self._start_preloading()

    def _feed_mechanisms(self, trial: Trial, token_s: float, *, is_settled: bool) -> None:
        trial.feed(token_s, is_settled=is_settled)
        self._setup = replace(self._setup, mechanism=StreamingMode(trial.current))
        if trial.verdict is None:
            return
        self._take(trial.verdict)
        self._mechanisms = None
        self._start_preloading()

    def _start_preloading(self) -> None:
        if not self._choices.preload_experts:
            self._is_done = True
            return
        self._preloading = Trial(
            str(self._setup.preload_experts),
            tuple(str(count) for count in self._choices.preload_experts),
            rules=self._preload_rules,
        )

    def _feed_preloading(self, trial: Trial, token_s: float, *, is_settled: bool) -> None:
        trial.feed(token_s, is_settled=is_settled)
        self._setup = replace(self._setup, preload_experts=int(trial.current))
        if trial.verdict is None:
            return
        self._take(trial.verdict, subject="reading ahead ")
        self._is_done = True

    def _take(self, verdict: Verdict, *, subject: str = "") -> None:
        self._verdicts.append(verdict)
        self._reasons.append(f"{subject}{verdict.because}")
