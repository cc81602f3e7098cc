"""Slots by books alone: which expert is where, what is uploaded, and what is told of it."""

import random
from collections.abc import Mapping, Sequence

import pytest

from moerun.errors import EngineRefused, ModelError
from moerun.experts.held import EveryExpert, HeldMechanism
from moerun.experts.interface import ExpertKey
from moerun.experts.order import PolicyName
from moerun.experts.policy import make_policy
from moerun.experts.slot_book import SlotBook
from moerun.experts.slots import SlotDesk, SlotMechanism
from moerun.machine.description import DeviceId
from tests.streaming_fakes import FakeClock, FakeMechanism, a_layout

DEVICE = DeviceId("gpu:here")


class FakeSlots:
    """Slots that hold names; `seconds` pass for each upload, and `failure` is raised by the next.

    `held` is what a device would compute with.
    """

    def __init__(self, clock: FakeClock, counts: Mapping[int, int]) -> None:
        self.counts = counts
        self.device_bytes = {DEVICE: 100 * sum(counts.values())}
        self.is_queued = True
        self.most_tokens = 1
        self.held: dict[tuple[int, int], int] = {}
        self.failure: Exception | None = None
        self._clock = clock

    def upload(self, layer: int, moves: Sequence[tuple[int, int]]) -> int:
        if self.failure is not None:
            raise self.failure
        for expert, slot in moves:
            assert 0 <= slot < self.counts[layer]
            self.held[layer, slot] = expert
            self._clock.now_s += 0.25
        return 10 * len(moves)


def a_book(slots: int, policy: PolicyName = PolicyName.LRU) -> SlotBook:
    return SlotBook(3, slots=slots, policy=make_policy(policy))


@pytest.mark.parametrize("policy", list(PolicyName))
def test_every_request_finds_its_experts_in_different_slots(policy: PolicyName):
    book, device = a_book(5, policy), {}
    chance = random.Random(4)
    for _ in range(500):
        experts = chance.sample(range(12), chance.randint(1, 5))
        request = book.request(experts)
        device.update({slot: expert for expert, slot in request.moves})
        slots = book.slots_of(experts)
        assert [device[slot] for slot in slots] == experts
        assert len(set(slots)) == len(slots)
        assert request.hits + len(request.moves) == len(experts)
        assert len(book) <= 5


def test_what_was_used_longest_ago_gives_way():
    book = a_book(3)
    book.request([1, 2])
    book.request([3])
    book.request([1])
    asked = book.request([4, 1])

    assert (asked.hits, asked.evicted, len(asked.moves)) == (1, 1, 1)
    assert 2 not in book
    assert all(expert in book for expert in (1, 3, 4))


def test_what_is_used_often_stays():
    """Each request is a pass of its own for the policy, though it knows one layer alone."""
    book = a_book(3, PolicyName.FREQUENCY)
    for other in (10, 11, 12, 13, 14, 15):
        book.request([1, other])

    assert 1 in book


def test_more_experts_than_slots_are_refused():
    book = a_book(2)
    book.request([1])

    with pytest.raises(ValueError, match="3 experts of layer 3 are asked for at once"):
        book.request([1, 2, 3])


def a_mechanism(*, slots: Mapping[int, int] | None = None, cache_bytes: int = 40):
    clock = FakeClock()
    below = FakeMechanism(clock, cache_bytes=cache_bytes, stall_s=1.0)
    desk = SlotDesk()
    device = FakeSlots(clock, slots or {0: 3, 1: 3})
    desk.attach_slots(device, ())
    mechanism = SlotMechanism(desk, below, lambda: make_policy(PolicyName.LRU), clock=clock)
    mechanism.attach(())
    return mechanism, desk, device, below


def test_missing_experts_come_into_memory_and_then_into_slots():
    mechanism, desk, device, below = a_mechanism()
    assert desk.wants_slots
    desk.begin(1, uses_slots=True)

    first = mechanism.supply(0, [4, 5])
    again = mechanism.supply(0, [5, 6])

    assert (first.hits, first.misses, first.read_bytes) == (0, 2, 20)
    assert first.stall_s == 2.5  # read from storage one by one, then uploaded
    assert (again.hits, again.misses) == (1, 1)
    assert [c for c in below.calls if c[0] == "supply"] == [
        ("supply", 0, (4, 5)),
        ("supply", 0, (6,)),
    ]
    assert [device.held[0, slot] for slot in desk.slots_of(0, [5, 6])] == [5, 6]
    desk.note_tokens(1)
    latency = mechanism.latency()
    assert latency is not None
    assert (latency.count, latency.largest_s) == (3, 2.5)
    counted = desk.counters()
    assert counted is not None
    assert (counted.slots, counted.layers, counted.held_experts) == (6, 2, 3)
    assert (counted.tokens, counted.hits, counted.uploads) == (1, 1, 3)
    assert (counted.upload_bytes, counted.upload_s) == (30, 0.75)
    assert counted.hit_fraction == 0.25
    assert counted.uploads_per_token == 3
    assert counted.upload_bytes_per_s == 40
    assert counted.device_bytes == ((DEVICE, 600),)


def test_an_evaluation_without_slots_leaves_them_as_they_are():
    mechanism, desk, device, below = a_mechanism()
    desk.begin(1, uses_slots=True)
    mechanism.supply(0, [4, 5])
    desk.begin(1, uses_slots=False)
    mechanism.supply(0, [1, 2, 3, 6, 7])
    desk.begin(1, uses_slots=True)

    assert mechanism.supply(0, [5]).misses == 0
    assert below.calls[-1] == ("supply", 0, (1, 2, 3, 6, 7))
    assert len(device.held) == 2


def test_a_layer_without_slots_is_supplied_in_memory():
    mechanism, desk, device, _ = a_mechanism(slots={1: 4})
    desk.begin(1, uses_slots=True)

    assert mechanism.supply(0, [4, 5]).misses == 2
    assert not device.held


def test_what_is_in_a_slot_is_not_read_ahead():
    mechanism, desk, _, below = a_mechanism()
    desk.begin(1, uses_slots=True)
    mechanism.supply(1, [4, 5])
    mechanism.prefetch(1, [4, 6])
    mechanism.prefetch(1, [4, 5])

    assert [call for call in below.calls if call[0] == "prefetch"] == [("prefetch", 1, (6,))]


@pytest.mark.parametrize("where", ["storage", "device"])
def test_what_failed_is_in_no_slot(where: str):
    mechanism, desk, device, below = a_mechanism()
    desk.begin(1, uses_slots=True)
    mechanism.supply(0, [1, 2, 3])
    failure = ModelError("gone")
    if where == "storage":
        below.failure = failure
    else:
        device.failure = failure
    with pytest.raises(ModelError, match="gone"):
        mechanism.supply(0, [3, 4])
    below.failure = device.failure = None

    assert mechanism.supply(0, [3]).misses == 0
    assert mechanism.supply(0, [4]).misses == 1
    with pytest.raises(KeyError):
        desk.slots_of(0, [1])


def test_mechanisms_take_turns_at_the_desk():
    mechanism, desk, _, _ = a_mechanism()
    desk.begin(1, uses_slots=True)
    mechanism.supply(0, [4])
    mechanism.detach()

    assert not desk.wants_slots
    with pytest.raises(EngineRefused, match="Nothing has put experts of layer 0 into slots"):
        desk.slots_of(0, [4])
    mechanism.attach(())
    assert desk.wants_slots
    assert mechanism.supply(0, [4]).misses == 1, "who filled the slots meanwhile is not known"


def test_without_slots_of_the_engine_nothing_starts():
    below = FakeMechanism(FakeClock(), cache_bytes=40)
    mechanism = SlotMechanism(SlotDesk(), below, lambda: make_policy(PolicyName.LRU))

    with pytest.raises(EngineRefused, match="no slots"):
        mechanism.attach(())
    assert SlotDesk().counters() is None


def test_all_experts_are_held_where_nothing_streams():
    layout = a_layout()
    held, policy = HeldMechanism(layout), EveryExpert(layout)

    assert held.supply(0, [1, 2]).hits == 2
    assert held.prefetch(0, [3]) == 0
    assert held.held_bytes() == held.resident_bytes() == layout.expert_bytes
    assert len(policy) == len(tuple(policy.held())) == 16
    assert ExpertKey(0, 7) in policy
    assert ExpertKey(0, 8) not in policy
    assert not policy.victims(3, keep=())
