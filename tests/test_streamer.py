import numpy as np
import pytest

from moerun.errors import EngineRefused, MachineError, ModelError
from moerun.experts.interface import ExpertKey
from moerun.experts.prediction import Router, RouterPredictor
from moerun.experts.streamer import Streamer
from moerun.experts.trial import TrialRules
from moerun.experts.tuner import Choices, Setup, Tuner
from moerun.planning.strategy import StreamingMode
from tests.streaming_fakes import Workshop, a_layout, a_routing, an_order

CACHE, PAGING = StreamingMode.CACHE, StreamingMode.PAGING
RULES = TrialRules(settle_tokens=3, fewest_settle_tokens=1, stretch_tokens=4, fewest_tokens=2)


def a_streamer(workshop=None, *, setup=None, choices=None, guards=(), hot=(), **order):
    workshop = workshop or Workshop()
    tuner = Tuner(
        setup or Setup(mechanism=CACHE),
        choices or Choices(),
        because="as ordered",
        rules=RULES,
        preload_rules=RULES,
    )
    streamer = Streamer(an_order(**order), tuner, workshop.parts(guards=guards, hot=hot))
    streamer.attach(())
    return streamer, workshop


def decode(streamer, workshop, *layers, compute_s=0.1, hidden=None):
    """Run one token through layers of these experts, or through two that use 0 and 1."""
    for layer, experts in enumerate(layers or ((0, 1), (0, 1))):
        streamer.supply(a_routing(layer, experts, hidden=hidden))
    workshop.clock.now_s += compute_s
    streamer.check()


def test_requests_reach_the_mechanism_and_are_counted():
    streamer, workshop = a_streamer()
    assert streamer.streamed["blk.1.ffn_down_exps.weight"] == 1
    decode(streamer, workshop, (0, 1), (2, 3))
    decode(streamer, workshop, (0, 5), (2, 3))
    sample = streamer.sample()
    assert (sample.decode.tokens, sample.decode.hits, sample.decode.misses) == (2, 3, 5)
    assert sample.decode.read_bytes_per_token == 25
    assert sample.decode.span_s == pytest.approx(0.2)
    assert (sample.held_bytes, sample.held_experts) == (50, 5)
    assert (sample.expert_bytes, sample.expert_count) == (160, 16)
    assert sample.full_loading_bytes == 260
    assert sample.resident_bytes == 54
    assert sample.major_faults == 3
    assert sample.storage_bytes_per_s == 600
    assert (sample.mechanism, sample.policy, sample.because) == ("cache", "frequency", "as ordered")
    assert sample.heat[0].uses == (2, 1, 0, 0, 0, 1, 0, 0)
    assert sample.heat[1].is_held[2:4] == (True, True)


def test_a_batch_is_prefill_though_its_last_layer_has_one_row():
    streamer, workshop = a_streamer()
    streamer.supply(a_routing(0, (0, 1), (2, 3), (1, 2)))
    streamer.supply(a_routing(1, (0, 1)))
    streamer.check()
    decode(streamer, workshop)
    sample = streamer.sample()
    assert (sample.prefill.tokens, sample.prefill.misses) == (3, 6)
    assert (sample.decode.tokens, sample.decode.hits) == (1, 4)
    assert sample.recent.tokens == 4


def test_a_pass_ends_where_the_layer_falls_back_when_nobody_checks_between():
    streamer, _ = a_streamer()
    for _ in range(3):
        streamer.supply(a_routing(0, (0, 1)))
        streamer.supply(a_routing(1, (0, 1)))
    assert streamer.sample().decode.tokens == 2
    streamer.check()
    assert streamer.sample().decode.tokens == 3


def test_a_layer_whose_choice_is_not_seen_is_supplied_whole():
    streamer, workshop = a_streamer(cache_bytes=160)
    streamer.supply_layer(0)
    streamer.supply(a_routing(1, (3, 4)))
    streamer.check()
    assert ("supply", 0, tuple(range(8))) in [
        (name, layer, tuple(experts)) for name, layer, experts in workshop.mechanism.calls[1:]
    ]
    assert streamer.sample().decode.tokens == 1


def test_time_between_answers_is_no_tokens_time():
    streamer, workshop = a_streamer()
    decode(streamer, workshop)
    workshop.clock.now_s += 3600
    decode(streamer, workshop)
    sample = streamer.sample()
    assert sample.decode.span_s == pytest.approx(0.2)
    assert sample.recent.tokens == 1
    assert sample.recent.span_s == pytest.approx(60.1)


def test_mechanisms_are_tried_on_the_answers_own_tokens_and_the_winner_stays():
    workshop = Workshop()
    workshop.stalls = {CACHE: 0.05, PAGING: 0.01}
    streamer, _ = a_streamer(workshop, choices=Choices(mechanisms=(PAGING,)))
    experts = iter(range(10_000))
    for token in range(200):
        first = (next(experts) % 8, next(experts) % 8)
        decode(streamer, workshop, first, first)
        if token == 0:
            assert [mode for mode, _ in workshop.made] == [CACHE]
        if streamer.tuner.is_done:
            break
    assert [mode for mode, _ in workshop.made] == [CACHE, PAGING]
    assert workshop.made[0][1].calls[-1] == ("detach",)
    assert streamer.sample().mechanism == "paging"
    assert "median: cache" in streamer.sample().because


def test_a_mechanism_that_loses_hands_back():
    workshop = Workshop()
    workshop.stalls = {CACHE: 0.02, PAGING: 0.03}
    streamer, _ = a_streamer(workshop, choices=Choices(mechanisms=(PAGING,)))
    streamer.resize(40)
    for token in range(200):
        decode(streamer, workshop, *[((3 * token) % 8, (3 * token + 1) % 8)] * 2)
    assert streamer.tuner.is_done
    assert [mode for mode, _ in workshop.made] == [CACHE, PAGING, CACHE]
    assert workshop.mechanism.book.cache_bytes == 40


def test_a_mechanism_that_cannot_start_leaves_the_other_at_work():
    workshop = Workshop()
    workshop.stalls = {CACHE: 0.05}
    workshop.failing = {PAGING}
    streamer, _ = a_streamer(workshop, choices=Choices(mechanisms=(PAGING,)))
    for token in range(60):
        decode(streamer, workshop, (token % 8, (token + 3) % 8), (token % 8, (token + 1) % 8))
    sample = streamer.sample()
    assert sample.mechanism == "cache"
    assert "paging failed: no direct reads here" in sample.because
    assert sample.decode.tokens == 60


def test_where_a_cache_gets_no_memory_auto_begins_with_paging():
    workshop = Workshop()
    workshop.failing = {CACHE}
    choices = Choices(mechanisms=(PAGING,))
    streamer, _ = a_streamer(workshop, choices=choices, mode=StreamingMode.AUTO)
    decode(streamer, workshop)
    sample = streamer.sample()
    assert sample.mechanism == "paging"
    assert sample.because == "as ordered; cache failed: no direct reads here"
    assert streamer.tuner.is_done
    assert not streamer.tuner.has_learned  # another time there may be memory


def test_a_cache_that_was_asked_for_and_gets_no_memory_is_an_error():
    workshop = Workshop()
    workshop.failing = {CACHE}
    with pytest.raises(MachineError, match="no direct reads"):
        a_streamer(workshop, mode=CACHE)


ONE_HOT = RouterPredictor({1: Router(weights=np.eye(8, dtype=np.float32))}, {}, (0, 1))


def test_what_the_next_router_will_choose_is_read_ahead():
    workshop = Workshop(predictor=ONE_HOT)
    streamer, _ = a_streamer(workshop, setup=Setup(mechanism=CACHE, preload_experts=2))
    assert streamer.wants_hidden
    hidden = [0, 0, 0, 0, 5, 9, 0, 0]
    decode(streamer, workshop, (0, 1), (5, 7), hidden=hidden)
    [(_, layer, asked)] = [call for call in workshop.mechanism.calls if call[0] == "prefetch"]
    assert (layer, set(asked)) == (1, {4, 5})
    preloading = streamer.sample().preloading
    assert (preloading.predicted, preloading.correct) == (2, 1)
    assert (preloading.read_bytes, preloading.useful_bytes) == (20, 10)
    assert preloading.accuracy_fraction == 0.5
    assert streamer.sample().decode.hits == 1
    assert streamer.sample().decode.read_bytes == 30 + 20


def test_nothing_is_foretold_of_a_batch_or_without_a_state():
    workshop = Workshop(predictor=ONE_HOT)
    streamer, _ = a_streamer(workshop, setup=Setup(mechanism=CACHE, preload_experts=2))
    streamer.supply(a_routing(0, (0, 1), (1, 2), hidden=[0.0] * 8))
    decode(streamer, workshop)
    assert "prefetch" not in {call[0] for call in workshop.mechanism.calls}
    assert streamer.sample().preloading.accuracy_fraction is None


def test_a_batch_that_needs_nearly_all_of_a_layer_has_the_next_one_read_ahead():
    streamer, workshop = a_streamer(cache_bytes=320, layout=a_layout(layers=3))
    workshop.mechanism.book._slot_bytes = {0: 10, 1: 10, 2: 10}
    streamer.supply(a_routing(0, (0, 1, 2, 3), (4, 5, 6, 1)))
    [(_, layer, asked)] = [call for call in workshop.mechanism.calls if call[0] == "prefetch"]
    assert (layer, asked) == (1, tuple(range(8)))
    streamer.supply(a_routing(1, (0, 1, 2, 3), (4, 5, 6, 7)))
    streamer.supply(a_routing(2, (0, 1)))
    streamer.check()
    sample = streamer.sample()
    assert (sample.prefill.hits, sample.prefill.misses) == (10, 7)
    assert sample.prefill.read_bytes == 70 + 80 + 80
    assert sample.preloading is None


def test_a_small_cache_or_a_small_batch_reads_no_layer_ahead():
    streamer, workshop = a_streamer(cache_bytes=160)
    streamer.supply(a_routing(0, (0, 1, 2, 3), (4, 5, 6, 7)))
    assert "prefetch" not in {call[0] for call in workshop.mechanism.calls}
    streamer, workshop = a_streamer(cache_bytes=320)
    streamer.supply(a_routing(0, (0, 1, 2), (3, 4, 1)))
    assert "prefetch" not in {call[0] for call in workshop.mechanism.calls}


def test_a_router_that_cannot_be_read_is_a_note():
    streamer, workshop = a_streamer(setup=Setup(mechanism=CACHE, preload_experts=2))
    decode(streamer, workshop, hidden=[0.0] * 8)
    decode(streamer, workshop, hidden=[0.0] * 8)
    assert streamer.sample().notes == (
        "routers cannot be foretold: the router of layer 1 cannot be read",
    )
    assert not streamer.wants_hidden


def test_the_cache_follows_orders_between_its_bounds():
    streamer, workshop = a_streamer()
    decode(streamer, workshop, (0, 1, 2), (0, 1, 2))
    assert streamer.resize(50) == 50
    assert streamer.sample().held_bytes == 50
    assert streamer.resize(1) == 40
    assert streamer.resize(10**9) == 60
    assert streamer.sample().cache_bytes == 60


def test_a_failed_read_leaves_nothing_that_could_be_trusted():
    streamer, workshop = a_streamer()
    decode(streamer, workshop)
    workshop.mechanism.failure = ModelError("the disk failed")
    with pytest.raises(ModelError, match="disk failed"):
        streamer.supply(a_routing(0, (0, 5)))
    decode(streamer, workshop)
    assert len(workshop.made) == 2
    assert workshop.made[0][1].calls[-1] == ("detach",)
    assert streamer.sample().decode.misses == 8  # all is read again


class WatchingGuard:
    def __init__(self, failure=None):
        self.failure = failure
        self.is_open = False

    def attach(self, streamer):
        self.is_open = True

    def check(self):
        if self.failure is not None:
            raise self.failure

    def notes(self):
        return ("memory was short once",)

    def close(self):
        self.is_open = False


def test_guards_stop_tokens_and_are_closed():
    guard = WatchingGuard()
    streamer, workshop = a_streamer(guards=(guard,))
    assert guard.is_open
    decode(streamer, workshop)
    assert "memory was short once" in streamer.sample().notes
    guard.failure = EngineRefused("The file was changed.")
    with pytest.raises(EngineRefused, match="changed"):
        decode(streamer, workshop)
    streamer.close()
    assert not guard.is_open


def test_closing_detaches_once_and_remembers():
    remembered: list[Streamer] = []
    workshop = Workshop()
    tuner = Tuner(Setup(mechanism=CACHE), Choices(), because="b")
    streamer = Streamer(an_order(), tuner, workshop.parts(), remember=remembered.append)
    streamer.close()  # loading failed before anything was mapped
    assert not remembered
    assert workshop.closed == 1
    streamer.attach(())
    streamer.close()
    streamer.close()
    assert remembered == [streamer]
    assert workshop.mechanism.calls == [("attach", 0), ("detach",)]
    assert streamer.sample().resident_bytes is None


def test_the_hot_set_is_read_while_nobody_waits():
    hot = (ExpertKey(0, 4), ExpertKey(1, 2))
    streamer, _ = a_streamer(hot=hot)
    assert streamer._read_warm(hot[0]) == 10
    streamer.supply(a_routing(0, (4, 5)))
    assert streamer._read_warm(hot[1]) == 0  # the engine computes
    streamer.supply(a_routing(1, (4, 5)))
    streamer.check()
    assert streamer.sample().decode.hits == 1
    streamer.close()
