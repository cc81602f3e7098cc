"""Replays of traces that a person can follow, and of the recorded ones."""

from itertools import cycle, islice

import pytest

from moerun.errors import UsageError
from moerun.experts.order import PolicyName
from moerun.experts.policy import DEFAULT_POLICY
from moerun.experts.routes import Phase
from moerun.experts.simulate import (
    Replay,
    SimulatedPolicy,
    expected_speed,
    least_cache_bytes,
    replay,
    traced_slots,
)
from moerun.experts.trace import read_trace
from tests.traces import RECORDED, a_pass, a_trace, recorded_trace

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def replayed(name: str, policy: SimulatedPolicy, share: float) -> Replay:
    trace = read_trace(recorded_trace(name))
    slots = traced_slots(trace)
    total_bytes = trace.header.expert_count * sum(slots.values())
    return replay(trace, policy, slot_bytes=slots, cache_bytes=int(total_bytes * share))


def hit_percent(name: str, policy: SimulatedPolicy, share: float) -> float:
    fraction = replayed(name, policy, share).decode.hit_fraction
    assert fraction is not None
    return 100 * fraction


def test_a_replay_by_hand():
    trace = a_trace(
        [
            a_pass((0, 1, 2), (0,), phase=Phase.PREFILL, tokens=3),
            a_pass((0, 1), (0, 1)),
            a_pass((0, 3), (0, 1)),
        ]
    )
    done = replay(trace, SimulatedPolicy.LRU, slot_bytes=traced_slots(trace), cache_bytes=1000)
    assert (done.prefill.tokens, done.prefill.hits, done.prefill.misses) == (3, 0, 4)
    assert (done.decode.tokens, done.decode.hits, done.decode.misses) == (2, 6, 2)
    assert done.decode.first_misses == 2
    assert done.decode.hit_fraction == 0.75
    assert done.decode.repeat_hit_fraction == 1.0
    assert done.decode.read_bytes_per_token == 10
    assert (done.warm.tokens, done.warm.misses) == (1, 1)


@pytest.mark.parametrize("policy", SimulatedPolicy)
def test_a_cache_of_less_than_a_cycle_hits_nothing_under_lru(policy: SimulatedPolicy):
    trace = a_trace([a_pass((0, 1), (0, 1), (0, 1)) for _ in range(10)])
    slots = traced_slots(trace)
    done = replay(trace, policy, slot_bytes=slots, cache_bytes=40)
    assert (done.decode.hits == 0) == (policy is SimulatedPolicy.LRU)
    assert least_cache_bytes(slots, 2) == 90
    enough = replay(trace, policy, slot_bytes=slots, cache_bytes=90)
    assert enough.decode.hits == 9 * 6


def test_no_policy_hits_more_than_the_bound():
    trace = a_trace([a_pass((i % 5, 5), (i % 3, 7)) for i in range(60)])
    slots = traced_slots(trace)
    for cache_bytes in range(40, 130, 10):
        hits = {
            policy: replay(trace, policy, slot_bytes=slots, cache_bytes=cache_bytes).decode.hits
            for policy in SimulatedPolicy
        }
        assert max(hits.values()) == hits[SimulatedPolicy.BELADY]


def test_experts_of_unequal_layers_count_by_their_bytes():
    trace = a_trace([a_pass((0,), (each,)) for each in islice(cycle((0, 1)), 8)])
    done = replay(trace, SimulatedPolicy.LRU, slot_bytes={0: 10, 1: 40}, cache_bytes=60)
    assert done.decode.read_bytes == 10 + 8 * 40


def test_slots_of_another_model_are_refused():
    trace = a_trace([a_pass((0,), (1,))])
    assert traced_slots(trace, {0: 7, 1: 8, 2: 9}) == {0: 7, 1: 8, 2: 9}
    with pytest.raises(UsageError, match="another model"):
        traced_slots(trace, {0: 7})
    with pytest.raises(UsageError, match="layer 0 are"):
        traced_slots(a_trace([a_pass((0,))], expert_bytes=0))


def test_speed_is_that_of_the_slower_half_when_both_overlap():
    speed = expected_speed(100.0, read_bytes_per_s=1000.0, compute_s=0.05)
    assert speed.overlapped_tokens_per_s == pytest.approx(10)
    assert speed.in_turn_tokens_per_s == pytest.approx(1 / 0.15)
    assert expected_speed(0, read_bytes_per_s=1.0, compute_s=0).in_turn_tokens_per_s == float("inf")


@pytest.mark.parametrize("name", RECORDED)
def test_the_default_policy_is_the_one_that_wins_on_the_recorded_traces(name: str):
    assert DEFAULT_POLICY is PolicyName.FREQUENCY
    gains = [
        hit_percent(name, SimulatedPolicy.FREQUENCY, share)
        - hit_percent(name, SimulatedPolicy.LRU, share)
        for share in SHARES
    ]
    assert min(gains) > -0.1
    assert sum(gains) / len(gains) > 1.5


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("qwen3-30b-a3b", SimulatedPolicy.LRU, (37.7, 49.7, 74.0, 87.9, 93.8, 96.3)),
        ("qwen3-30b-a3b", SimulatedPolicy.FREQUENCY, (38.4, 56.7, 77.8, 88.7, 94.0, 96.3)),
        ("qwen3-30b-a3b", SimulatedPolicy.BELADY, (58.1, 75.4, 89.9, 95.4, 97.1, 97.1)),
        ("gpt-oss-120b", SimulatedPolicy.LRU, (44.1, 58.8, 74.0, 79.8, 86.1, 89.1)),
        ("gpt-oss-120b", SimulatedPolicy.FREQUENCY, (46.0, 61.4, 75.8, 83.3, 87.2, 89.1)),
        ("gpt-oss-120b", SimulatedPolicy.BELADY, (67.3, 80.4, 89.1, 89.1, 89.1, 89.1)),
    ],
)
def test_rates_on_the_recorded_traces_are_those_that_policy_states(
    name: str, policy: SimulatedPolicy, expected: tuple[float, ...]
):
    found = tuple(round(hit_percent(name, policy, share), 1) for share in SHARES)
    assert found == expected
