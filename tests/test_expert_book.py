"""The books of a cache with a bound in bytes."""

from random import Random

import pytest

from moerun.experts.book import CacheBook
from moerun.experts.interface import ExpertKey
from moerun.experts.order import PolicyName
from moerun.experts.policy import make_policy


def a_book(cache_bytes: int, slots: dict[int, int] | None = None) -> CacheBook:
    return CacheBook(
        make_policy(PolicyName.LRU), slot_bytes=slots or {0: 10, 1: 10}, cache_bytes=cache_bytes
    )


def test_a_request_tells_hits_misses_and_victims():
    book = a_book(40)
    first = book.request(0, (1, 2))
    assert first.misses == (ExpertKey(0, 1), ExpertKey(0, 2))
    assert (first.hits, first.victims) == ((), ())
    book.request(1, (5, 6))
    third = book.request(0, (2, 3))
    assert third.hits == (ExpertKey(0, 2),)
    assert third.entering == (ExpertKey(0, 3),)
    assert third.victims == (ExpertKey(0, 1),)
    assert book.held_bytes == 40


def test_what_is_asked_for_never_leaves_for_itself():
    book = a_book(25)
    book.request(0, (1,))
    request = book.request(0, (1, 2, 3, 4))
    assert request.hits == (ExpertKey(0, 1),)
    assert request.entering == (ExpertKey(0, 2),)
    assert request.passing == (ExpertKey(0, 3), ExpertKey(0, 4))
    assert book.held_bytes == 20


def test_a_large_expert_drives_out_as_many_small_ones_as_it_needs():
    book = a_book(45, slots={0: 10, 1: 25})
    book.request(0, (1, 2, 3, 4))
    request = book.request(1, (9,))
    assert request.victims == tuple(ExpertKey(0, expert) for expert in (1, 2))
    assert book.held_bytes == 45


def test_a_lower_bound_names_who_leaves():
    book = a_book(40)
    book.request(0, (1, 2, 3))
    assert book.resize(15) == (ExpertKey(0, 1), ExpertKey(0, 2))
    assert book.held_bytes == 10
    assert book.resize(40) == ()
    book.drop(ExpertKey(0, 3))
    assert (book.held_bytes, len(book.policy)) == (0, 0)


def test_foretold_experts_take_free_room_only_where_nothing_may_leave():
    book = a_book(30)
    book.request(0, (1, 2))
    told = book.foretell(1, (7, 8), may_drive_out=False)
    assert told.entering == (ExpertKey(1, 7),)
    assert told.passing == (ExpertKey(1, 8),)
    assert book.foretell(1, (7,)).hits == (ExpertKey(1, 7),)
    assert book.request(1, (7,)).hits == (ExpertKey(1, 7),)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", PolicyName)
def test_the_sums_hold_for_any_requests(name: PolicyName, seed: int):
    random = Random(seed)
    slots = {layer: random.choice((3, 7, 10)) for layer in range(random.randint(1, 5))}
    book = CacheBook(make_policy(name), slot_bytes=slots, cache_bytes=random.randint(0, 200))
    held: set[ExpertKey] = set()
    for _ in range(200):
        if random.random() < 0.05:
            held -= set(book.resize(random.randint(0, 200)))
        layer = random.choice(list(slots))
        experts = random.sample(range(16), random.randint(1, 8))
        request = book.request(layer, experts)
        assert set(request.hits) == held & {ExpertKey(layer, expert) for expert in experts}
        assert sorted(key.expert for key in request.hits + request.misses) == sorted(experts)
        assert set(request.victims) <= held - set(request.hits)
        held = (held - set(request.victims)) | set(request.entering)
        assert held == set(book.policy.held())
        assert book.held_bytes == sum(slots[key.layer] for key in held) <= book.cache_bytes
        if request.passing:  # there was truly no room: nothing else is held
            assert held <= set(request.hits + request.entering)


def test_foretold_experts_drive_out_what_is_wanted_least_but_nothing_that_is_kept():
    book = a_book(30)
    book.request(0, (1, 2, 3))

    told = book.foretell(1, (7, 8), keep={ExpertKey(0, 1)})

    assert told.entering == (ExpertKey(1, 7), ExpertKey(1, 8))
    assert set(told.victims) == {ExpertKey(0, 2), ExpertKey(0, 3)}
    assert book.held_bytes == 30


def test_a_smaller_bound_spares_what_is_in_use():
    book = a_book(30)
    book.request(0, (1, 2, 3))

    assert book.resize(10, keep={ExpertKey(0, 2)}) == (ExpertKey(0, 1), ExpertKey(0, 3))
    assert book.resize(0, keep={ExpertKey(0, 2)}) == ()
    assert book.held_bytes == 10
