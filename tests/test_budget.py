"""How large the cache may be: a table of single looks, and properties over whole histories."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from moerun.errors import PlanError
from moerun.experts.budget import (
    Budget,
    CacheBounds,
    Look,
    Pool,
    after_a_gap,
    first_budget,
    next_budget,
    next_look_s,
)
from moerun.units import MIB

BOUNDS = CacheBounds(floor_bytes=200 * MIB, ceiling_bytes=1600 * MIB)
# 64 parts of 6400 MiB: the reserve is 100 MiB, a step of growing 100 MiB as well.
TOTAL_BYTES = 6400 * MIB


def a_pool(available_mib: float, **changes: object) -> Pool:
    pool = Pool(
        name="the machine", total_bytes=TOTAL_BYTES, available_bytes=int(available_mib * MIB)
    )
    return replace(pool, **changes)  # type: ignore[arg-type]


def a_look(*pools: Pool, at_s: float = 100.0, held_mib: int = 0) -> Look:
    return Look(at_s=at_s, held_bytes=held_mib * MIB, pools=pools)


def a_budget(cache_mib: int, **changes: object) -> Budget:
    return replace(Budget(cache_bytes=cache_mib * MIB, changed_at_s=0.0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now_mib", "available_mib", "held_mib", "then_mib"),
    [
        (1600, 2000, 0, 1600),  # slack 400, but the ceiling is reached
        (1600, 400, 1600, 1600),  # full, and 400 left
        (1600, 150, 1600, 1600),  # inside the band nothing changes
        (1600, 50, 1600, 1450),  # 50 left of 100: until 200 are left
        (1600, 0, 1600, 1400),
        (1600, 600, 600, 1000),  # not full yet: what it would take counts
        (1600, 0, 200, 200),  # all the way to the floor
        (1000, 299, 1000, 1000),  # not above the band
        (1000, 301, 1000, 1100),  # a step
        (1550, 400, 1550, 1600),  # the last step is shorter
        (200, 50, 200, 200),  # at the floor it stays
        (1000, 1000, 0, 800),  # of page cache nothing is held that is not available
    ],
)
def test_one_look(now_mib: int, available_mib: int, held_mib: int, then_mib: int):
    look = a_look(a_pool(available_mib), held_mib=held_mib)
    assert next_budget(a_budget(now_mib), BOUNDS, look).cache_bytes == then_mib * MIB


def test_what_is_missing_at_the_floor_is_said():
    short = next_budget(a_budget(250), BOUNDS, a_look(a_pool(20), held_mib=250))
    assert short.cache_bytes == BOUNDS.floor_bytes
    assert short.missing_bytes == 130 * MIB
    assert short.because is not None
    assert "at its least" in short.because
    assert "130.0 MiB" not in short.because.replace("0.1 GiB", "")
    assert not short.has_run_out
    freed = next_budget(short, BOUNDS, a_look(a_pool(400), held_mib=200))
    assert freed.missing_bytes == 0


def test_no_memory_even_for_the_floor_is_an_end_after_a_while_only():
    budget = a_budget(200)
    for tenth in range(29):
        budget = next_budget(
            budget, BOUNDS, a_look(a_pool(10), held_mib=200, at_s=100 + tenth / 10)
        )
        assert not budget.has_run_out
    assert next_budget(budget, BOUNDS, a_look(a_pool(10), held_mib=200, at_s=103)).has_run_out
    swapping = a_pool(10, swap_bytes=500 * MIB)
    assert not next_budget(budget, BOUNDS, a_look(swapping, held_mib=200, at_s=103)).has_run_out
    again = next_budget(budget, BOUNDS, a_look(a_pool(60), held_mib=200, at_s=103))
    assert again.short_since_s is None


def test_the_tightest_pool_decides_and_is_named():
    group = Pool(name="the control group", total_bytes=TOTAL_BYTES, available_bytes=50 * MIB)
    for pools in ((a_pool(9000), group), (group, a_pool(9000))):
        budget = next_budget(a_budget(1600), BOUNDS, a_look(*pools, held_mib=1600))
        assert budget.cache_bytes == 1450 * MIB
        assert budget.because is not None
        assert budget.because.startswith("the control group has only")


def test_growing_waits_after_a_change_and_longer_after_a_shrink():
    look = a_look(a_pool(900), held_mib=1000, at_s=11.0)
    assert next_budget(a_budget(1000, changed_at_s=9.5), BOUNDS, look).cache_bytes == 1000 * MIB
    assert next_budget(a_budget(1000, changed_at_s=9.0), BOUNDS, look).cache_bytes == 1100 * MIB
    shrunk = a_budget(1000, changed_at_s=9.0, shrunk_at_s=1.5)
    assert next_budget(shrunk, BOUNDS, look).cache_bytes == 1000 * MIB
    assert next_budget(shrunk, BOUNDS, replace(look, at_s=11.5)).cache_bytes == 1100 * MIB


def test_shrinking_never_waits():
    budget = a_budget(1600, changed_at_s=100.0, shrunk_at_s=100.0)
    look = a_look(a_pool(0), held_mib=1600, at_s=100.0)
    assert next_budget(budget, BOUNDS, look).cache_bytes == 1400 * MIB


def test_a_fall_is_taken_to_go_on():
    falling = a_pool(250, falling_bytes_per_s=1000 * MIB)
    budget = next_budget(a_budget(1600), BOUNDS, a_look(falling, held_mib=1600))
    assert budget.cache_bytes == (1600 - 150) * MIB  # 50 would be left in a fifth of a second
    at_once = a_pool(450, falling_bytes_per_s=90_000 * MIB)
    bounded = next_budget(a_budget(1600), BOUNDS, a_look(at_once, held_mib=1600))
    assert bounded.cache_bytes == (1600 - 150) * MIB  # of a sudden fall four reserves count
    rising = a_pool(250, falling_bytes_per_s=-1000 * MIB)
    calm = next_budget(a_budget(1600), BOUNDS, a_look(rising, held_mib=1600))
    assert calm.cache_bytes == 1600 * MIB


def test_waiting_tasks_count_only_where_little_is_left():
    waiting = a_pool(350, stall_fraction=0.5)
    budget = next_budget(a_budget(1000), BOUNDS, a_look(waiting, held_mib=1000))
    assert budget.cache_bytes == 900 * MIB
    soon = a_look(waiting, held_mib=900, at_s=100.5)
    assert next_budget(budget, BOUNDS, soon).cache_bytes == 900 * MIB
    elsewhere = a_pool(5000, stall_fraction=0.5)
    grown = next_budget(a_budget(1000), BOUNDS, a_look(elsewhere, held_mib=1000))
    assert grown.cache_bytes == 1100 * MIB


def test_a_conservative_budget_never_moves():
    bounds = replace(BOUNDS, is_adaptive=False)
    for available_mib in (0, 50, 9000):
        look = a_look(a_pool(available_mib), held_mib=1000)
        assert next_budget(a_budget(1000), bounds, look) == a_budget(1000)


def test_without_anything_to_read_nothing_moves():
    assert next_budget(a_budget(1000), BOUNDS, a_look()) == a_budget(1000)


def test_a_gap_begins_all_waiting_anew():
    short = a_budget(200, shrunk_at_s=1.0, short_since_s=1.0, has_run_out=True)
    woken = after_a_gap(short, 5000.0)
    assert not woken.has_run_out
    look = a_look(a_pool(900), held_mib=200, at_s=5001.0)
    assert next_budget(woken, BOUNDS, look).cache_bytes == 200 * MIB
    assert not next_budget(woken, BOUNDS, a_look(a_pool(0), held_mib=200, at_s=5001.0)).has_run_out


@pytest.mark.parametrize(
    ("available_mib", "falling_mib_per_s", "expected_s"),
    [
        (9000, 0, 0.5),  # nobody takes that in half a second
        (512, 0, 0.25),
        (50, 0, 0.05),
        (-50, 0, 0.05),
        (9000, 100, 0.1),
        (204.8, 100, 0.05),
        (0, 100, 0.01),
    ],
)
def test_the_less_is_left_the_sooner_the_next_look(
    available_mib: float, falling_mib_per_s: int, expected_s: float
):
    pool = a_pool(available_mib, falling_bytes_per_s=falling_mib_per_s * MIB)
    look = a_look(pool, a_pool(20_000), held_mib=1600)
    assert next_look_s(a_budget(1600), look) == pytest.approx(expected_s)


def test_the_first_budget_is_the_ceiling_or_what_is_left():
    assert first_budget(BOUNDS, a_look(a_pool(5000))).cache_bytes == 1600 * MIB
    assert first_budget(BOUNDS, a_look(a_pool(1000))).cache_bytes == 800 * MIB
    assert first_budget(BOUNDS, a_look(a_pool(300))).cache_bytes == 200 * MIB
    assert first_budget(BOUNDS, a_look(a_pool(5000))).because is None


def test_a_floor_above_the_ceiling_is_refused_with_the_numbers():
    bounds = CacheBounds(floor_bytes=3000 * MIB, ceiling_bytes=1024 * MIB)
    with pytest.raises(PlanError, match=r"1\.0 GiB and needs 2\.9 GiB"):
        first_budget(bounds, a_look(a_pool(5000)))


@pytest.mark.parametrize(
    ("total_mib", "reserve_mib"), [(512, 24), (1024, 24), (6400, 100), (1 << 20, 512)]
)
def test_the_reserve_is_a_share_within_bounds(total_mib: int, reserve_mib: int):
    assert a_pool(0, total_bytes=total_mib * MIB).reserve_bytes == reserve_mib * MIB


CHUNKS = [range(start, start + 150) for start in range(0, 1500, 150)]
in_chunks = pytest.mark.parametrize(
    "seeds",
    [CHUNKS[0], *(pytest.param(chunk, marks=pytest.mark.many) for chunk in CHUNKS[1:])],
    ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}",
)


def any_bounds(chance: random.Random) -> CacheBounds:
    floor_bytes = chance.randrange(1 << chance.randrange(20, 36))
    return CacheBounds(
        floor_bytes=floor_bytes, ceiling_bytes=floor_bytes + chance.randrange(1 << 36)
    )


def any_budget(chance: random.Random, bounds: CacheBounds) -> Budget:
    return Budget(
        cache_bytes=chance.randint(bounds.floor_bytes, bounds.ceiling_bytes),
        changed_at_s=chance.uniform(0, 100),
        shrunk_at_s=chance.choice([None, chance.uniform(0, 100)]),
    )


def any_pool(chance: random.Random) -> Pool:
    total_bytes = chance.randrange(1 << chance.randrange(24, 40)) + 1
    return Pool(
        name="p",
        total_bytes=total_bytes,
        available_bytes=chance.randint(0, total_bytes),
        stall_fraction=chance.choice([0.0, 0.0, 0.05, 0.3, 1.0]),
        falling_bytes_per_s=chance.choice([0.0, -1e9, chance.uniform(0, 4e9)]),
    )


def any_look(chance: random.Random, budget: Budget) -> Look:
    return Look(
        at_s=chance.uniform(100, 130),
        held_bytes=chance.randint(0, budget.cache_bytes),
        pools=tuple(any_pool(chance) for _ in range(chance.randrange(1, 4))),
    )


@in_chunks
def test_it_stays_within_its_bounds_and_more_memory_never_means_less_cache(seeds: range):
    for seed in seeds:
        chance = random.Random(seed)
        bounds = any_bounds(chance)
        now = any_budget(chance, bounds)
        look = any_look(chance, now)
        budget = next_budget(now, bounds, look)
        assert bounds.floor_bytes <= budget.cache_bytes <= bounds.ceiling_bytes, seed
        index = chance.randrange(len(look.pools))
        more_bytes = chance.randrange(1 << chance.randrange(1, 36))
        richer = tuple(
            replace(pool, available_bytes=pool.available_bytes + more_bytes) if i == index else pool
            for i, pool in enumerate(look.pools)
        )
        better = next_budget(now, bounds, replace(look, pools=richer))
        assert better.cache_bytes >= budget.cache_bytes, seed
        assert better.missing_bytes <= budget.missing_bytes, seed


@in_chunks
@pytest.mark.parametrize("follows", [True, False], ids=["memory follows", "the same reading"])
def test_under_constant_conditions_it_never_turns_round(follows: bool, seeds: range):
    """Whether what the cache gives back shows in the next reading or not."""
    for seed in seeds:
        chance = random.Random(seed)
        bounds = any_bounds(chance)
        budget = any_budget(chance, bounds)
        look = replace(any_look(chance, budget), at_s=100.0)
        others = look.held_bytes
        sizes = [budget.cache_bytes]
        for tick in range(100):
            held = min(budget.cache_bytes, others) if follows else look.held_bytes
            pools = tuple(
                replace(
                    pool,
                    available_bytes=max(0, pool.available_bytes + look.held_bytes - held)
                    if follows
                    else pool.available_bytes,
                    falling_bytes_per_s=0.0,
                )
                for pool in look.pools
            )
            moment = replace(look, at_s=100.0 + tick, held_bytes=held, pools=pools)
            budget = next_budget(budget, bounds, moment)
            sizes.append(budget.cache_bytes)
        steps = [after - before for before, after in pairwise(sizes)]
        assert all(step >= 0 for step in steps) or all(step <= 0 for step in steps), seed


@in_chunks
def test_it_comes_to_rest_and_leaves_the_reserve(seeds: range):
    for seed in seeds:
        chance = random.Random(seed)
        bounds = any_bounds(chance)
        budget = any_budget(chance, bounds)
        total_bytes = bounds.ceiling_bytes * 2 + 1
        room_bytes = chance.randrange(total_bytes)
        for tick in range(60):
            held_bytes = min(budget.cache_bytes, room_bytes)
            pool = Pool(name="p", total_bytes=total_bytes, available_bytes=room_bytes - held_bytes)
            look = Look(at_s=200.0 + 2 * tick, held_bytes=held_bytes, pools=(pool,))
            budget = next_budget(budget, bounds, look)
        settled = next_budget(budget, bounds, replace(look, at_s=1000.0))
        assert settled.cache_bytes == budget.cache_bytes, seed
        left_bytes = room_bytes - budget.cache_bytes
        assert left_bytes >= pool.reserve_bytes or budget.cache_bytes == bounds.floor_bytes, seed
