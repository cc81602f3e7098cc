import pytest

from moerun.errors import MoerunError
from moerun.experts.trial import Trial, TrialRules

RULES = TrialRules(settle_tokens=4, fewest_settle_tokens=2, stretch_tokens=6, fewest_tokens=3)


def run(trial, times, *, is_settled=True, most_tokens=1000):
    """Feed each token the time of the way it ran by; return the ways in order."""
    ways: list[str] = []
    while trial.verdict is None and len(ways) < most_tokens:
        ways.append(trial.current)
        time_s = times[trial.current]
        trial.feed(time_s(len(ways)) if callable(time_s) else time_s, is_settled=is_settled)
    return ways


def verdict_of(trial):
    assert trial.verdict is not None
    return trial.verdict


def test_the_faster_way_wins_and_stays():
    trial = Trial("cache", ("paging",), rules=RULES)
    ways = run(trial, {"cache": 0.1, "paging": 0.06})
    assert ways == ["cache"] * 8 + ["paging"] * 8
    assert verdict_of(trial).winner == trial.current == "paging"
    assert dict(verdict_of(trial).median_s) == {"cache": 0.1, "paging": 0.06}
    assert "cache 100.0 ms, paging 60.0 ms" in verdict_of(trial).because
    trial.feed(9.0)
    assert trial.current == "paging"


def test_what_runs_stays_unless_another_wins_clearly():
    trial = Trial("cache", ("paging",), rules=RULES)
    run(trial, {"cache": 0.100, "paging": 0.098})
    assert verdict_of(trial).winner == "cache"
    assert "less than 3% changes nothing" in verdict_of(trial).because


def test_tokens_after_a_change_do_not_count():
    seen = []

    def cold_at_first(token):
        seen.append(token)
        return 1.0 if len(seen) <= 4 else 0.05

    trial = Trial("cache", ("paging",), rules=RULES)
    run(trial, {"cache": 0.1, "paging": cold_at_first}, is_settled=False)
    assert verdict_of(trial).winner == "paging"
    assert dict(verdict_of(trial).median_s)["paging"] == 0.05


def test_a_way_that_settles_sooner_is_measured_sooner():
    assert len(run(Trial("a", ("b",), rules=RULES), {"a": 0.1, "b": 0.1}, is_settled=False)) == 20
    assert len(run(Trial("a", ("b",), rules=RULES), {"a": 0.1, "b": 0.1}, is_settled=True)) == 16


def test_a_hopeless_challenger_has_a_short_turn_and_no_second_one():
    rules = TrialRules(
        settle_tokens=2, fewest_settle_tokens=2, stretch_tokens=6, fewest_tokens=3, rounds=3
    )
    trial = Trial("cache", ("paging",), rules=rules)
    ways = run(trial, {"cache": 0.1, "paging": 0.5})
    assert ways.count("paging") == 2 + 3
    assert ways.count("cache") == 3 * 8
    assert verdict_of(trial).winner == "cache"


def test_single_slow_tokens_decide_nothing():
    trial = Trial("cache", ("paging",), rules=RULES)
    run(trial, {"cache": 0.1, "paging": lambda token: 3.0 if token == 13 else 0.05})
    assert verdict_of(trial).winner == "paging"


def test_slow_tokens_make_turns_shorter():
    rules = TrialRules(
        settle_tokens=100, fewest_settle_tokens=1, settle_s=4.0, stretch_s=6.0, fewest_tokens=2
    )
    ways = run(Trial("a", ("b",), rules=rules), {"a": 2.0, "b": 3.0}, is_settled=False)
    assert ways == ["a"] * (2 + 3) + ["b"] * (2 + 2)


def test_every_challenger_has_its_turn():
    trial = Trial("0", ("4", "8"), rules=RULES)
    ways = run(trial, {"0": 0.1, "4": 0.08, "8": 0.07})
    assert list(dict.fromkeys(ways)) == ["0", "4", "8"]
    assert verdict_of(trial).winner == "8"


@pytest.mark.parametrize("challengers", [(), ("cache",)])
def test_a_trial_of_one_way_is_none(challengers):
    with pytest.raises(MoerunError, match="challengers"):
        Trial("cache", challengers)
