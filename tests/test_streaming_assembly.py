import json
from dataclasses import replace

import pytest

from moerun.errors import ModelError
from moerun.experts.assembly import major_faults, open_order, open_streamer
from moerun.experts.interface import ExpertKey
from moerun.experts.order import StreamingOrder
from moerun.experts.routes import TraceHeader
from moerun.experts.slots import SlotDesk
from moerun.experts.trace import read_trace, start_trace
from moerun.experts.tuner import Setup
from moerun.experts.tuning import (
    Learned,
    key_of,
    lost_slots,
    read_tuning,
    tuning_path,
    write_tuning,
)
from moerun.machine.description import DeviceId
from moerun.model.description import ModelFile
from moerun.planning.plan import SlotLayer, SlotPlan
from moerun.planning.strategy import StreamingMode
from tests.streaming_fakes import Workshop, a_layout, a_routing, an_order

AUTO, CACHE, PAGING = StreamingMode.AUTO, StreamingMode.CACHE, StreamingMode.PAGING
SLOTS = StreamingMode.SLOTS


@pytest.fixture
def order(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(1000))
    file = ModelFile(path=str(path), size_bytes=1000, data_offset_bytes=0)
    return an_order(
        layout=replace(a_layout(), files=(file,)),
        mode=AUTO,
        state_folder=str(tmp_path / "state"),
        is_adaptive=False,
    )


class Opening:
    """Opens streamers of an order, and keeps what the mechanisms were asked to be."""

    def __init__(self):
        self.workshop = Workshop()
        self.orders: list[StreamingOrder] = []

    def start(self, order, desk=None):
        self.orders.append(order)
        return self.workshop

    def open(self, order):
        desk = SlotDesk() if order.slots is not None else None
        streamer = open_streamer(
            order, engine_version="1", start=self.start, desk=desk, clock=self.workshop.clock
        )
        streamer.attach(())
        return streamer


def decode(streamer, *layers):
    for layer, experts in enumerate(layers):
        streamer.supply(a_routing(layer, experts))
    streamer.check()


def key(order):
    return key_of(order, engine_version="1")


def a_winner(order, **changes):
    fields = {
        "model_digest": order.model_digest,
        "machine_fingerprint": order.machine_fingerprint,
        "engine_version": "1",
        "limit_bytes": order.limit_bytes,
        "mechanism": PAGING,
        "preload_experts": 2,
        "because": "median: cache 2.0 ms, paging 1.0 ms",
        "reader_threads": 6,
        "read_bytes": 4096,
    }
    return Learned(**{**fields, **changes})


@pytest.mark.parametrize(("held_fraction", "mechanism"), [(0.49, CACHE), (0.5, PAGING)])
def test_a_first_run_begins_by_the_share_that_is_held_and_tries_the_rest(
    order, held_fraction, mechanism
):
    cache_bytes = int(order.layout.expert_bytes * held_fraction)
    streamer = Opening().open(replace(order, cache_bytes=cache_bytes))
    assert streamer.tuner.setup == Setup(
        mechanism=mechanism, preload_experts=order.layout.experts_used
    )
    assert not streamer.tuner.is_done
    assert streamer.wants_hidden
    assert "no run of this model was measured here yet" in streamer.sample().because
    streamer.close()


def test_what_an_earlier_run_found_is_not_tried_again(order, tmp_path):
    write_tuning(tmp_path / "state", key(order), a_winner(order))
    opening = Opening()
    streamer = opening.open(order)
    assert streamer.tuner.setup == Setup(mechanism=PAGING, preload_experts=2)
    assert streamer.tuner.is_done
    assert "an earlier run here found: median" in streamer.sample().because
    [asked] = opening.orders
    assert (asked.reader_threads, asked.read_bytes) == (6, 4096)
    streamer.close()


def test_a_run_that_ended_early_leaves_the_rest_to_be_tried(order, tmp_path):
    write_tuning(tmp_path / "state", key(order), a_winner(order, preload_experts=None))
    streamer = Opening().open(order)
    assert streamer.tuner.setup.mechanism is PAGING
    assert streamer.tuner.may_preload
    streamer.close()


def test_what_is_asked_for_stands_above_what_was_found(order, tmp_path):
    write_tuning(tmp_path / "state", key(order), a_winner(order))
    forced = replace(order, mode=CACHE, preload_experts=0, reader_threads=2)
    opening = Opening()
    streamer = opening.open(forced)
    assert streamer.tuner.setup == Setup(mechanism=CACHE)
    assert streamer.tuner.is_done
    assert not streamer.wants_hidden
    assert opening.orders[0].reader_threads == 2
    assert streamer.sample().because == "cache was asked for"
    streamer.close()


def test_a_number_of_experts_forces_reading_ahead(order):
    streamer = Opening().open(replace(order, mode=PAGING, preload_experts=4))
    assert streamer.tuner.setup == Setup(mechanism=PAGING, preload_experts=4)
    assert streamer.tuner.is_done
    streamer.close()


def test_a_winner_is_written_when_the_run_ends(order, tmp_path):
    opening = Opening()
    opening.workshop.stalls = {CACHE: 0.05, PAGING: 0.01}
    streamer = opening.open(replace(order, preload_experts=0))
    for token in range(250):
        first = ((2 * token) % 8, (2 * token + 1) % 8)
        decode(streamer, first, first)
    streamer.close()
    document = json.loads(tuning_path(tmp_path / "state", key(order)).read_text())
    assert document["schema"] == 1
    assert document["mechanism"] == "paging"
    again = Opening().open(replace(order, preload_experts=0))
    assert again.tuner.setup.mechanism is PAGING
    again.close()


def run_long(opening, order):
    streamer = opening.open(order)
    for token in range(250):
        first = ((2 * token) % 8, (2 * token + 1) % 8)
        for layer in (0, 1):
            streamer.supply(a_routing(layer, first, hidden=[0.0] * 8))
        streamer.check()
    streamer.close()
    return streamer


def test_a_mechanism_that_was_asked_for_is_no_winner(order, tmp_path):
    opening = Opening()
    opening.workshop.stalls = {CACHE: 0.05, PAGING: 0.05}
    assert run_long(opening, replace(order, mode=PAGING)).tuner.has_learned
    assert not (tmp_path / "state" / "tuning").exists()
    write_tuning(
        tmp_path / "state", key(order), a_winner(order, preload_experts=None, because="tried")
    )
    run_long(opening, replace(order, mode=PAGING))
    learned, _ = read_tuning(tmp_path / "state", key(order))
    assert learned is not None
    assert (learned.mechanism, learned.preload_experts) == (PAGING, order.layout.experts_used)
    assert learned.because.startswith("tried; ")


def test_what_was_used_most_comes_first_the_next_time(order):
    streamer = Opening().open(order)
    for _ in range(3):
        decode(streamer, (1, 2), (5, 2))
    decode(streamer, (1, 7), (5, 2))
    streamer.close()
    opening = Opening()
    streamer = opening.open(order)
    assert streamer._parts.hot[:3] == (ExpertKey(0, 1), ExpertKey(1, 2), ExpertKey(1, 5))
    streamer.close()


def test_a_damaged_memory_is_a_note_and_no_more(order, tmp_path):
    path = tuning_path(tmp_path / "state", key(order))
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 9}')
    streamer = Opening().open(order)
    assert "newer moerun" in streamer.sample().notes[0]
    streamer.close()


def test_a_run_without_a_state_folder_remembers_nothing(order, tmp_path):
    streamer = Opening().open(replace(order, state_folder=None))
    decode(streamer, (1, 2), (5, 2))
    streamer.close()
    assert not (tmp_path / "state").exists()


def test_a_file_that_changes_ends_the_answer(order):
    streamer = Opening().open(order)
    decode(streamer, (1, 2), (5, 2))
    with open(order.layout.files[0].path, "r+b") as file:
        file.truncate(500)
    with pytest.raises(ModelError, match="cut from 1,000 to 500"):
        decode(streamer, (1, 2), (5, 2))
    streamer.close()


def test_an_order_may_name_a_trace(order, tmp_path):
    path = tmp_path / "trace.csv"
    start_trace(path, TraceHeader(expert_count=8, experts_used=2))
    opening = Opening()
    traced = replace(order, trace_path=str(path), traced=(("blk.9.ffn_up_exps.weight", 9),))
    opened = open_order(traced, engine_version="1", start=opening.start)
    supplier, streamer = opened.supplier, opened.streamer
    assert supplier is not None
    assert streamer is not None
    supplier.attach(())
    assert supplier.streamed == {**streamer.streamed, "blk.9.ffn_up_exps.weight": 9}
    supplier.supply(a_routing(0, (3, 4)))
    supplier.supply(a_routing(1, (5, 6)))
    supplier.check()
    supplier.close()
    [passed] = read_trace(path).passes
    assert [choice.experts for choice in passed.choices] == [(3, 4), (5, 6)]
    assert streamer.sample().decode.tokens == 1


def test_a_trace_alone_streams_nothing(order, tmp_path):
    path = tmp_path / "trace.csv"
    start_trace(path, TraceHeader(expert_count=8, experts_used=2))
    alone = replace(order, mode=StreamingMode.OFF, trace_path=str(path), traced=(("x", 0),))
    opening = Opening()
    opened = open_order(alone, engine_version="1", start=opening.start)
    assert opened.streamer is None
    assert opened.supplier is not None
    assert opened.supplier.streamed == {"x": 0}
    opened.supplier.close()
    assert opening.orders == []
    nothing = open_order(replace(alone, trace_path=None), engine_version="1", start=opening.start)
    assert nothing.supplier is None


def test_without_a_trace_the_streamer_is_asked(order):
    opened = open_order(order, engine_version="1", start=Opening().start)
    assert opened.streamer is not None
    assert opened.supplier is opened.streamer
    opened.streamer.close()


def test_page_faults_are_counted():
    faults = major_faults()
    assert faults is None or faults >= 0


def test_what_cannot_be_remembered_is_told_in_the_log(order, tmp_path, caplog):
    (tmp_path / "state").write_text("a file where the folder should be")
    streamer = Opening().open(order)
    decode(streamer, (1, 2), (5, 2))
    streamer.close()
    assert str(tmp_path / "state") in caplog.text


def some_slots(*, is_trial=False, least_gain_fraction=0.0) -> SlotPlan:
    layers = tuple(
        SlotLayer(layer=n, device=DeviceId("gpu:a"), slots=6, slot_bytes=10, size_bytes=60)
        for n in (0, 1)
    )
    return SlotPlan(
        layers=layers,
        expected_hit_fraction=0.8,
        held_fraction=0.75,
        is_trial=is_trial,
        least_gain_fraction=least_gain_fraction,
    )


def with_slots(order, *, mode=StreamingMode.OFF, **plan):
    return replace(
        order, mode=mode, slots=some_slots(**plan), slotted=order.layout.tensors, preload_experts=0
    )


@pytest.mark.parametrize("mode", [StreamingMode.OFF, PAGING, AUTO])
def test_slots_that_were_asked_for_run_from_the_start(order, mode):
    streamer = Opening().open(with_slots(order, mode=mode))
    assert streamer.tuner.setup.mechanism is SLOTS
    assert streamer.tuner.is_done
    assert streamer.sample().because == "slots was asked for"
    streamer.close()


def test_slots_on_trial_begin_without_them_and_must_gain_what_whole_layers_would(order, tmp_path):
    wanted = with_slots(order, is_trial=True, least_gain_fraction=0.2)
    opening = Opening()
    opening.workshop.stalls = {StreamingMode.OFF: 0.010, SLOTS: 0.009}  # a tenth faster
    streamer = opening.open(wanted)
    assert streamer.tuner.setup.mechanism is StreamingMode.OFF
    assert "begins with all experts on the host" in streamer.sample().because
    run_on(streamer)
    assert "less than 20% changes nothing" in streamer.sample().because
    assert streamer.tuner.setup.mechanism is StreamingMode.OFF
    assert streamer.sample().notes[-1].startswith("slots for experts lost their trial")
    streamer.close()
    assert "less than 20%" in (lost_slots(wanted, engine_version="1") or "")
    assert lost_slots(with_slots(order), engine_version="1") is None, "they are asked for there"

    opening = Opening()
    opening.workshop.stalls = {StreamingMode.OFF: 0.010, SLOTS: 0.002}
    again = opening.open(replace(wanted, state_folder=str(tmp_path / "other")))
    run_on(again)
    assert again.tuner.setup.mechanism is SLOTS
    again.close()
    won = replace(wanted, state_folder=str(tmp_path / "other"))
    assert lost_slots(won, engine_version="1") is None
    later = Opening().open(replace(wanted, state_folder=str(tmp_path / "other")))
    assert later.tuner.setup.mechanism is SLOTS
    assert later.tuner.is_done
    later.close()


def test_what_was_found_without_slots_says_nothing_of_slots(order, tmp_path):
    write_tuning(tmp_path / "state", key(order), a_winner(order))
    streamer = Opening().open(with_slots(order, mode=AUTO, is_trial=True))
    assert not streamer.tuner.is_done
    streamer.close()


def test_a_winner_that_the_order_cannot_run_is_passed_over(order, tmp_path):
    wanted = with_slots(order, is_trial=True)
    with_twelve = replace(key(order), slots=12)
    write_tuning(tmp_path / "state", with_twelve, a_winner(order, mechanism=CACHE))
    streamer = Opening().open(wanted)
    assert streamer.tuner.setup.mechanism is StreamingMode.OFF
    assert not streamer.tuner.is_done
    streamer.close()


def run_on(streamer):
    """Decode tokens that need two experts of eight in turn, so that each waits."""
    for token in range(120):
        first = ((2 * token) % 8, (2 * token + 1) % 8)
        decode(streamer, first, first)
