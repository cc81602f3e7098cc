import pytest

from moerun.experts.trial import TrialRules
from moerun.experts.tuner import Choices, Setup, Tuner
from moerun.planning.strategy import StreamingMode

CACHE, PAGING = StreamingMode.CACHE, StreamingMode.PAGING
RULES = TrialRules(settle_tokens=4, fewest_settle_tokens=2, stretch_tokens=5, fewest_tokens=3)
BOTH = Choices(mechanisms=(PAGING,), preload_experts=(8,))


def a_tuner(choices=BOTH, *, setup=Setup(mechanism=CACHE)):  # noqa: B008 - a frozen value
    return Tuner(setup, choices, because="first run", rules=RULES, preload_rules=RULES)


def run(tuner, time_of, *, stall_fraction=0.5, is_settled=True, most_tokens=500):
    """Feed tokens until nothing is left to try; return the setups in order, each once."""
    setups = []
    for _ in range(most_tokens):
        if tuner.is_done:
            break
        setups.append(tuner.setup)
        token_s = time_of(tuner.setup)
        tuner.feed(token_s, stall_s=token_s * stall_fraction, is_settled=is_settled)
    return list(dict.fromkeys(setups))


def times(*, cache=0.1, paging=0.1, ahead=1.0):
    return lambda setup: (
        (cache if setup.mechanism is CACHE else paging) * (ahead if setup.preload_experts else 1.0)
    )


def test_mechanisms_are_tried_first_then_reading_ahead_with_the_winner():
    tuner = a_tuner()
    assert run(tuner, times(paging=0.05, ahead=0.8)) == [
        Setup(mechanism=CACHE),
        Setup(mechanism=PAGING),
        Setup(mechanism=PAGING, preload_experts=8),
    ]
    assert tuner.setup == Setup(mechanism=PAGING, preload_experts=8)
    assert tuner.has_learned
    assert tuner.because == (
        "first run; tried on 10 tokens, median: cache 100.0 ms, paging 50.0 ms; "
        "reading ahead tried on 10 tokens, median: 0 50.0 ms, 8 40.0 ms"
    )


def test_reading_ahead_that_loses_is_left_off():
    tuner = a_tuner()
    run(tuner, times(paging=0.2, ahead=1.3))
    assert tuner.setup == Setup(mechanism=CACHE, preload_experts=0)
    assert [verdict.winner for verdict in tuner.verdicts] == ["cache", "0"]


def test_reading_ahead_that_runs_from_the_start_stays_while_mechanisms_are_tried():
    tuner = a_tuner(
        Choices(mechanisms=(PAGING,), preload_experts=(0,)),
        setup=Setup(mechanism=CACHE, preload_experts=8),
    )
    assert run(tuner, times(paging=0.05, ahead=1.3)) == [
        Setup(mechanism=CACHE, preload_experts=8),
        Setup(mechanism=PAGING, preload_experts=8),
        Setup(mechanism=PAGING),
    ]
    assert tuner.setup == Setup(mechanism=PAGING)


@pytest.mark.parametrize(("stall_fraction", "has_trial"), [(0.001, True), (0.0, False)])
def test_paging_waits_where_nobody_sees_it_so_any_wait_is_worth_a_trial(stall_fraction, has_trial):
    tuner = a_tuner(Choices(mechanisms=(CACHE,)), setup=Setup(mechanism=PAGING))
    run(tuner, times(cache=0.05), stall_fraction=stall_fraction)
    assert tuner.has_learned is has_trial


def test_nothing_is_tried_where_tokens_hardly_wait():
    tuner = a_tuner()
    assert run(tuner, times(paging=0.01), stall_fraction=0.01) == [Setup(mechanism=CACHE)]
    assert not tuner.has_learned
    assert "wait for experts 1.0% of their time" in tuner.because


def test_looking_begins_when_what_is_held_is_full():
    tuner = a_tuner()
    for _ in range(48):  # cold: every expert is waited for, which says nothing
        tuner.feed(0.1, stall_s=0.09, is_settled=False)
    for _ in range(8):
        tuner.feed(0.1, stall_s=0.0, is_settled=True)
    assert tuner.is_done
    assert tuner.setup == Setup(mechanism=CACHE)


def test_what_is_set_is_not_tried():
    tuner = a_tuner(Choices())
    assert tuner.is_done
    only_ahead = a_tuner(Choices(preload_experts=(8,)), setup=Setup(mechanism=PAGING))
    assert [setup.mechanism for setup in run(only_ahead, times())] == [PAGING, PAGING]


def test_a_trial_under_way_is_told():
    tuner = a_tuner()
    for _ in range(16):
        tuner.feed(0.1, stall_s=0.05, is_settled=True)
    assert tuner.because == "first run; trying paging on this answer's tokens"
    fresh = a_tuner()
    assert fresh.because == "first run; looking how long tokens wait for experts"
    for _ in range(26):
        fresh.feed(0.1, stall_s=0.05, is_settled=True)
    assert fresh.because.endswith("trying to read 0 experts ahead")


def test_a_failure_ends_the_trials():
    tuner = a_tuner()
    for _ in range(16):
        tuner.feed(0.1, stall_s=0.05, is_settled=True)
    tuner.stay(Setup(mechanism=CACHE), "paging failed")
    assert tuner.is_done
    assert tuner.setup.mechanism is CACHE
    assert tuner.because.endswith("paging failed")
    assert not tuner.has_learned
