"""Experts in the page cache: the book and the system agree, whatever the disk reads ahead."""

import os
import sys
from pathlib import Path
from random import Random

import pytest

from moerun.experts import memory_map
from moerun.experts.cache import CacheMechanism
from moerun.experts.layout import page_slot_bytes
from moerun.experts.model_memory import ModelMemory
from moerun.experts.order import PolicyName
from moerun.experts.paging import PagingMechanism
from moerun.experts.policy import make_policy
from tests.mapped_experts import MappedModel, forget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is Linux's")

SLOTS = 6


class Paged:
    """A model whose matrices neither begin nor end with a page, with nothing of it in memory."""

    def __init__(self, path: Path, *, slots: int = SLOTS) -> None:
        self.model = MappedModel(path, expert_bytes=50_000)
        self.memory = ModelMemory(self.model.layout, threads=2, read_bytes=None)
        self.slot_bytes = page_slot_bytes(self.model.layout)[0]
        self.mechanism = self.paging(slots)
        forget(path)
        self.mechanism.attach(self.model.mapped)
        if self.mechanism.resident_bytes():
            pytest.skip("this file system keeps files in memory")

    def paging(self, slots: int) -> PagingMechanism:
        policy = make_policy(PolicyName.LRU)
        return PagingMechanism(self.memory, policy, cache_bytes=slots * self.slot_bytes)

    def take(self, layer: int, expert: int) -> None:
        """Do what the system does when memory is short."""
        for matrix in self.memory.matrices[layer]:
            first, last = matrix.core_span(expert)
            memory_map.drop(first, last)
            descriptor = self.memory.reader.descriptor(matrix.file)
            memory_map.drop_from_page_cache(descriptor, first + matrix.delta, last - first)


@pytest.fixture
def paged(tmp_path: Path):
    paged = Paged(tmp_path / "m")
    yield paged
    paged.memory.close()


def test_no_page_is_resident_that_is_in_no_book(paged: Paged):
    random = Random(3)
    for _ in range(200):
        layer, experts = random.randrange(3), random.sample(range(8), 2)
        paged.mechanism.supply(layer, experts)
        assert all(paged.model.holds(layer, expert) for expert in experts)
        assert paged.mechanism.resident_bytes() <= paged.mechanism.held_bytes()
    assert paged.mechanism.held_bytes() == SLOTS * paged.slot_bytes
    paged.mechanism.resize(2 * paged.slot_bytes)
    assert paged.mechanism.resident_bytes() <= 2 * paged.slot_bytes


def test_what_the_system_took_is_a_miss_and_is_read_again(paged: Paged):
    paged.mechanism.supply(0, (1, 2))
    assert paged.model.holds(0, 1)
    assert paged.model.holds(0, 2)
    assert paged.mechanism.supply(0, (1, 2)).misses == 0
    paged.take(0, 1)
    paged.take(0, 2)
    # One of a request is looked at, and once it is gone, all of the next.
    found = [paged.mechanism.supply(0, (1, 2)) for _ in range(2)]
    assert [(supplied.hits, supplied.misses) for supplied in found] == [(1, 1), (1, 1)]
    assert found[0].read_bytes == 2 * paged.model.layout.tensors[0].expert_bytes
    assert paged.model.holds(0, 1)
    assert paged.model.holds(0, 2)
    assert paged.mechanism.supply(0, (1, 2)).hits == 2


def test_what_is_on_its_way_was_not_taken(paged: Paged):
    for layer in range(3):
        paged.mechanism.prefetch(layer, (3, 4))
        supplied = paged.mechanism.supply(layer, (3, 4))
        assert (supplied.hits, supplied.misses) == (2, 0)
        assert paged.model.holds(layer, 3)


def test_after_a_cache_only_the_file_s_own_pages_are_advised(paged: Paged):
    policy = make_policy(PolicyName.LRU)
    cache = CacheMechanism(paged.memory, policy, cache_bytes=SLOTS * paged.slot_bytes)
    before = [paged.memory.file_span(matrix) for matrix in paged.memory.matrices[1]]
    cache.attach(paged.model.mapped)
    cache.supply(1, range(8))
    cache.detach()
    again = paged.paging(SLOTS)
    again.attach(paged.model.mapped)
    for experts in ((0, 7), (1, 6)):
        again.supply(1, experts)
        assert all(paged.model.holds(1, expert) for expert in experts)
    for matrix, (first, last) in zip(paged.memory.matrices[1], before, strict=True):
        inner = paged.memory.inner_span(matrix)
        assert paged.memory.file_span(matrix) == inner
        assert first <= inner[0] <= inner[1] <= last


def test_of_a_file_that_is_not_ours_the_system_tells_nothing(paged: Paged):
    if os.geteuid() != 0:
        pytest.skip("only root can look at a file as somebody else")
    path = paged.model.path
    os.chown(path, 1234, 1234)
    path.chmod(0o644)
    for folder in path.parents[:3]:  # pytest's own, which nobody else may enter
        folder.chmod(0o755)
    assert memory_map.tells_residency(str(path))
    os.seteuid(4321)
    try:
        assert path.stat().st_uid == 1234
        assert not memory_map.tells_residency(str(path))
    finally:
        os.seteuid(0)
