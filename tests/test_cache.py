"""Both mechanisms on a mapped file: the right bytes at the right addresses, within the bound."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from moerun.errors import EngineRefused, ModelError
from moerun.experts.cache import CacheMechanism
from moerun.experts.interface import ExpertKey
from moerun.experts.layout import page_slot_bytes
from moerun.experts.memory_map import PAGE_BYTES
from moerun.experts.model_memory import ModelMemory
from moerun.experts.order import PolicyName
from moerun.experts.paging import PagingMechanism
from moerun.experts.policy import make_policy
from tests.mapped_experts import MappedModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mappings are replaced on Linux")

MECHANISMS = (CacheMechanism, PagingMechanism)


@pytest.fixture(params=[(9_000, 10_000), (8_192, 8_192), (300, 10_001), (4_096, 9_000)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> MappedModel:
    expert_bytes, offset_bytes = request.param
    return MappedModel(tmp_path / "m", expert_bytes=expert_bytes, offset_bytes=offset_bytes)


@pytest.fixture(params=[20_000, 5_000], ids=["neighbours together", "experts in pieces"])
def memory(request: pytest.FixtureRequest, model: MappedModel) -> Iterator[ModelMemory]:
    memory = ModelMemory(model.layout, threads=3, read_bytes=request.param)
    yield memory
    memory.close()


def a_mechanism(kind: type, memory: ModelMemory, *, slots: int, policy=PolicyName.LRU):
    slot_bytes = page_slot_bytes(memory.layout)[0]
    return kind(memory, make_policy(policy), cache_bytes=slots * slot_bytes)


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("policy", PolicyName)
def test_what_was_supplied_is_there_whatever_came_before(
    kind: type, policy: PolicyName, model: MappedModel, memory: ModelMemory
):
    mechanism = a_mechanism(kind, memory, slots=5, policy=policy)
    mechanism.attach(model.mapped)
    random = Random(1)
    for _ in range(300):
        layer = random.randrange(3)
        experts = random.sample(range(8), random.choice((1, 2, 2, 3, 8)))
        if random.random() < 0.3:
            mechanism.prefetch(random.randrange(3), random.sample(range(8), 2))
        if random.random() < 0.1:
            mechanism.resize(random.randrange(2, 9) * page_slot_bytes(model.layout)[0])
        mechanism.supply(layer, experts)
        assert all(model.holds(layer, expert) for expert in experts)
    assert model.resident_is_right()


def test_the_cache_holds_what_the_book_says_and_no_page_more(
    model: MappedModel, memory: ModelMemory
):
    mechanism = a_mechanism(CacheMechanism, memory, slots=5)
    mechanism.attach(model.mapped)
    random = Random(2)
    for _ in range(200):
        mechanism.supply(random.randrange(3), random.sample(range(8), 2))
        assert mechanism.resident_bytes() <= mechanism.held_bytes()
    assert mechanism.held_bytes() == 5 * page_slot_bytes(model.layout)[0]


def test_requests_are_counted(model: MappedModel, memory: ModelMemory):
    mechanism = a_mechanism(CacheMechanism, memory, slots=3)
    mechanism.attach(model.mapped)
    first = mechanism.supply(0, (1, 2))
    again = mechanism.supply(0, (1, 2))
    third = mechanism.supply(1, (4, 5))

    slot = 2 * model.layout.tensors[0].expert_bytes
    assert (first.hits, first.misses, first.read_bytes) == (0, 2, 2 * slot)
    assert (again.hits, again.misses, again.stall_s) == (2, 0, 0.0)
    assert (third.misses, third.evicted) == (2, 1)
    latency = mechanism.latency()
    assert latency is not None
    assert latency.count == 4
    assert 0 < latency.p50_s <= latency.p99_s <= latency.largest_s


def test_more_than_the_cache_holds_passes_through(model: MappedModel, memory: ModelMemory):
    mechanism = a_mechanism(CacheMechanism, memory, slots=3)
    mechanism.attach(model.mapped)
    mechanism.supply(0, range(8))
    assert all(model.holds(0, expert) for expert in range(8))
    mechanism.supply(1, (0, 1))
    # What passed through left again with the next request.
    assert mechanism.resident_bytes() <= 5 * page_slot_bytes(model.layout)[0]


def test_what_is_read_ahead_is_a_hit_later(model: MappedModel, memory: ModelMemory):
    mechanism = a_mechanism(CacheMechanism, memory, slots=5)
    mechanism.attach(model.mapped)
    mechanism.supply(0, (1, 2))
    asked_bytes = mechanism.prefetch(1, (3, 4))
    supplied = mechanism.supply(1, (3, 4))

    assert asked_bytes == 4 * model.layout.tensors[0].expert_bytes
    assert (supplied.hits, supplied.misses, supplied.read_bytes) == (2, 0, 0)
    assert model.holds(1, 3)
    assert model.holds(1, 4)


def test_reading_ahead_drives_out_nothing_that_the_engine_reads(
    model: MappedModel, memory: ModelMemory
):
    mechanism = a_mechanism(CacheMechanism, memory, slots=3)
    mechanism.attach(model.mapped)
    mechanism.supply(0, (1, 2))
    mechanism.prefetch(1, range(8))
    mechanism.resize(0)

    assert model.holds(0, 1)
    assert model.holds(0, 2)
    mechanism.supply(0, (3,))
    assert model.holds(0, 3)


def test_a_smaller_bound_holds_at_once_from_another_thread(model: MappedModel, memory: ModelMemory):
    mechanism = a_mechanism(CacheMechanism, memory, slots=16)
    mechanism.attach(model.mapped)
    for layer in (0, 1):
        mechanism.supply(layer, range(8))
    slot_bytes = page_slot_bytes(model.layout)[0]
    other = threading.Thread(target=mechanism.resize, args=(9 * slot_bytes,))
    other.start()
    other.join()

    assert mechanism.held_bytes() == 9 * slot_bytes
    assert all(model.holds(1, expert) for expert in range(8))


@pytest.mark.parametrize("first", MECHANISMS)
@pytest.mark.parametrize("then", MECHANISMS)
def test_mechanisms_take_over_from_each_other(
    first: type, then: type, model: MappedModel, memory: ModelMemory
):
    for kind in (first, then, first):
        mechanism = a_mechanism(kind, memory, slots=4)
        mechanism.attach(model.mapped)
        mechanism.supply(2, (0, 7))
        mechanism.prefetch(1, (3,))
        assert model.holds(2, 0)
        assert model.holds(2, 7)
        mechanism.detach()
        assert all(model.holds(layer, e) for layer in range(3) for e in range(8))
    assert model.resident_is_right()


def test_a_file_that_was_cut_is_one_sentence(tmp_path: Path):
    model = MappedModel(tmp_path / "m")
    memory = ModelMemory(model.layout, threads=2, read_bytes=None)
    mechanism = a_mechanism(CacheMechanism, memory, slots=4)
    mechanism.attach(model.mapped)
    mechanism.supply(0, (0, 1))
    os.truncate(model.path, 50_000)

    with pytest.raises(ModelError, match=r"cannot be read at byte [\d,]+ .*cut while it was"):
        mechanism.supply(2, (0, 1))
    # What could not be read is not held, and asked for again it fails again.
    assert mechanism.held_bytes() == 2 * page_slot_bytes(model.layout)[2]
    with pytest.raises(ModelError):
        mechanism.supply(2, (1,))
    assert mechanism.supply(0, (0, 1)).hits == 2
    assert model.holds(0, 0)
    memory.close()


def test_what_failed_when_read_ahead_fails_when_it_is_needed(tmp_path: Path):
    model = MappedModel(tmp_path / "m")
    memory = ModelMemory(model.layout, threads=2, read_bytes=None)
    mechanism = a_mechanism(CacheMechanism, memory, slots=4)
    mechanism.attach(model.mapped)
    os.truncate(model.path, 50_000)
    mechanism.prefetch(2, (0, 1))
    for _ in range(2):
        with pytest.raises(ModelError, match="cut while it was"):
            mechanism.supply(2, (0,))
    memory.close()


def test_a_range_that_is_not_mapped_is_refused(model: MappedModel, memory: ModelMemory):
    (whole,) = model.mapped
    half = type(whole)(
        path=whole.path, address=whole.address, offset_bytes=0, size_bytes=3 * PAGE_BYTES
    )
    mechanism = a_mechanism(CacheMechanism, memory, slots=4)
    with pytest.raises(EngineRefused, match="did not map blk"):
        mechanism.attach((half,))


def test_keys_are_dropped_with_the_pages_that_only_they_used(tmp_path: Path):
    model = MappedModel(tmp_path / "m", expert_bytes=9_000)
    memory = ModelMemory(model.layout, threads=2, read_bytes=None)
    mechanism = a_mechanism(CacheMechanism, memory, slots=6)
    mechanism.attach(model.mapped)
    mechanism.supply(0, (2, 3, 4))
    mechanism.supply(1, (0,))
    mechanism.resize(3 * page_slot_bytes(model.layout)[0])  # 2 leaves, next to 3 which stays

    assert ExpertKey(0, 2) not in mechanism._policy
    assert model.holds(0, 3)
    assert not model.holds(0, 2)
    memory.close()
