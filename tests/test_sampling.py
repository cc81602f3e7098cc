"""Which sampling settings count: the request's, the model's, llama.cpp's."""

import pytest

from moerun.engine.interface import Sampling
from moerun.engine.sampling import ENGINE_DEFAULTS, choose_sampling
from moerun.errors import UsageError


def test_the_request_wins_over_the_model_over_llama():
    choice = choose_sampling(
        Sampling(temperature=0.1, seed=7), {"temperature": 0.9, "top_k": 5, "min_p": 0.2}
    )
    assert (choice.temperature, choice.top_k, choice.min_p) == (0.1, 5, 0.2)
    assert choice.top_p == ENGINE_DEFAULTS["top_p"]
    assert choice.seed == 7


def test_zero_is_a_wish_and_not_an_absence():
    choice = choose_sampling(Sampling(temperature=0.0, top_k=0, seed=0), {"temperature": 0.9})
    assert (choice.temperature, choice.top_k, choice.seed) == (0.0, 0, 0)


def test_seeds_are_drawn_anew():
    seeds = {choose_sampling(Sampling(), {}).seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-0.1),
        Sampling(temperature=float("inf")),
        Sampling(top_k=-1),
        Sampling(top_p=1.01),
        Sampling(min_p=float("nan")),
        Sampling(repeat_penalty=0.0),
        Sampling(repeat_last_tokens=-2),
        Sampling(typical_p=1.5),
        Sampling(mirostat=3),
        Sampling(logit_bias=((1, 101.0),)),
        Sampling(presence_penalty=float("nan")),
        Sampling(seed=-1),
        Sampling(seed=0xFFFFFFFF),
    ],
)
def test_wishes_out_of_range_are_refused_with_the_range(sampling: Sampling):
    with pytest.raises(UsageError, match=r"between .* not "):
        choose_sampling(sampling, {})


@pytest.mark.parametrize("value", [float("nan"), -5.0, 1e30])
def test_a_header_out_of_range_is_passed_over(value: float):
    assert choose_sampling(Sampling(), {"temperature": value}).temperature == 0.8


@pytest.mark.parametrize(
    ("penalty", "last", "has"), [(1.0, 64, False), (1.1, 0, False), (1.1, 64, True)]
)
def test_penalties_count_only_when_they_change_something(penalty, last, has):
    sampling = Sampling(repeat_penalty=penalty, repeat_last_tokens=last)
    assert choose_sampling(sampling, {}).has_penalties is has
