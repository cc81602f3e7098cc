"""The guard of memory, fed with readings; only the last tests let its thread run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from moerun.errors import EngineOutOfMemory
from moerun.experts.budget import Budget, CacheBounds, Look
from moerun.experts.pressure import MemoryGuard, Reading, asleep_s, is_gap, look_at
from moerun.machine.pressure import MemoryPools, PoolReading
from moerun.units import MIB

BOUNDS = CacheBounds(floor_bytes=200 * MIB, ceiling_bytes=1600 * MIB)
RESERVE_BYTES = 100 * MIB


def never(budget: Budget, look: Look) -> float:
    return 3600.0


def a_pool(available_mib: float, **changes: object) -> PoolReading:
    pool = PoolReading(
        name="the machine",
        total_bytes=64 * RESERVE_BYTES,
        available_bytes=int(available_mib * MIB),
    )
    return replace(pool, **changes)  # type: ignore[arg-type]


def a_reading(*pools: PoolReading, at_s: float = 10.0, held_mib: int = 0, alarms: int = 0):
    return Reading(at_s=at_s, asleep_s=0.0, held_bytes=held_mib * MIB, pools=pools, alarms=alarms)


@dataclass
class FakeMemory:
    """A machine where others and the cache share some memory; clocks stand until they are set."""

    room_mib: int = 3000
    others_mib: int = 0
    stall_s: float = 0.0
    alarm_count: int = 0
    at_s: float = 1000.0
    slept_s: float = 0.0
    cache_bytes: int = BOUNDS.ceiling_bytes
    filled_bytes: int = BOUNDS.ceiling_bytes
    sizes_mib: list[int] = field(default_factory=list)
    reopened: int = 0
    is_closed: bool = False
    is_empty: bool = False
    resized: threading.Event = field(default_factory=threading.Event)

    @property
    def anonymous_bytes(self) -> int:
        return min(self.cache_bytes, self.filled_bytes)

    def resize(self, cache_bytes: int) -> int:
        self.cache_bytes = cache_bytes
        self.sizes_mib.append(cache_bytes // MIB)
        self.resized.set()
        return cache_bytes

    def read(self) -> tuple[PoolReading, ...]:
        if self.is_empty:
            return ()
        available_mib = max(0, self.room_mib - self.others_mib - self.anonymous_bytes // MIB)
        return (a_pool(available_mib, stall_s=self.stall_s),)

    def alarms(self) -> int:
        count, self.alarm_count = self.alarm_count, 0
        return count

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def guarding(memory: FakeMemory, bounds: CacheBounds = BOUNDS) -> Iterator[MemoryGuard]:
    guard = MemoryGuard(
        bounds,
        open_pools=lambda: memory,
        clock=lambda: memory.at_s,
        asleep=lambda: memory.slept_s,
        pace=never,
    )
    guard.attach(memory)
    try:
        yield guard
    finally:
        guard.close()


def looked(guard: MemoryGuard, memory: FakeMemory, *, seconds: float = 0.1) -> None:
    memory.at_s += seconds
    guard.look()


def test_rates_come_from_the_readings_before():
    history = (
        a_reading(a_pool(500, stall_s=7.0), at_s=10.0, held_mib=0),
        a_reading(a_pool(400, stall_s=7.1), at_s=10.9, held_mib=50),
        a_reading(a_pool(300, stall_s=7.5), at_s=11.0, held_mib=100),
    )
    (pool,) = look_at(history).pools
    assert pool.stall_fraction == pytest.approx(0.5)
    # 100 MiB less in a tenth of a second, 50 of them taken by the cache itself
    assert pool.falling_bytes_per_s == pytest.approx(500 * MIB)


def test_one_reading_has_no_rates():
    (pool,) = look_at((a_reading(a_pool(500, stall_s=7.0)),)).pools
    assert pool.stall_fraction == 0.0
    assert pool.falling_bytes_per_s == 0.0


def test_a_lowered_limit_is_no_fall_that_goes_on():
    history = (
        a_reading(a_pool(500, total_bytes=2000 * MIB)),
        a_reading(a_pool(300, total_bytes=1800 * MIB), at_s=10.1),
    )
    (pool,) = look_at(history).pools
    assert pool.falling_bytes_per_s == 0.0


def test_a_pool_that_was_not_there_before_has_no_rates():
    group = PoolReading(name="the control group", total_bytes=100, available_bytes=10)
    history = (a_reading(a_pool(500)), a_reading(a_pool(500), group, at_s=11.0))
    _, found = look_at(history).pools
    assert found.falling_bytes_per_s == 0.0


def test_a_signal_of_the_kernel_counts_for_groups_only():
    group = PoolReading(name="the control group", total_bytes=100, available_bytes=10)
    machine, found = look_at((a_reading(a_pool(500), group, alarms=2),)).pools
    assert machine.stall_fraction == 0.0
    assert found.stall_fraction == 1.0


@pytest.mark.parametrize(
    ("seconds", "slept_s", "expected"),
    [(0.1, 0.0, False), (1.9, 0.1, False), (2.1, 0.0, True), (0.1, 60.0, True)],
)
def test_sleep_and_long_gaps_are_told(seconds: float, slept_s: float, expected: bool):
    before = a_reading(at_s=10.0)
    after = replace(before, at_s=10.0 + seconds, asleep_s=slept_s)
    assert is_gap(before, after) is expected


def test_the_cache_gives_way_and_comes_back():
    memory = FakeMemory()
    with guarding(memory) as guard:
        looked(guard, memory)
        assert memory.sizes_mib == []
        assert guard.notes() == ()
        memory.others_mib = 1350
        looked(guard, memory)
        assert memory.cache_bytes < 1450 * MIB
        assert "gave way" in guard.notes()[0]
        memory.others_mib = 0
        for _ in range(60):
            looked(guard, memory, seconds=1.0)
        assert memory.cache_bytes == BOUNDS.ceiling_bytes
        assert memory.sizes_mib[1:] == sorted(memory.sizes_mib[1:])
        assert "is back at its 1.6 GiB" in guard.notes()[0]
        guard.check()


def test_it_begins_with_what_is_there():
    memory = FakeMemory(room_mib=1000, filled_bytes=0)
    with guarding(memory):
        assert memory.cache_bytes == 800 * MIB


def test_a_cache_that_is_to_stay_is_never_touched():
    memory = FakeMemory(room_mib=0)
    with guarding(memory, replace(BOUNDS, is_adaptive=False)) as guard:
        looked(guard, memory)
        guard.check()
        assert memory.sizes_mib == []
        assert guard.notes() == ()


def test_where_nothing_can_be_read_nothing_is_watched():
    memory = FakeMemory(is_empty=True)
    with guarding(memory) as guard:
        assert memory.is_closed
        looked(guard, memory)
        guard.check()
        assert memory.sizes_mib == []


def test_a_signal_takes_a_step_where_little_is_left():
    memory = FakeMemory(room_mib=1950)
    with guarding(memory) as guard:
        memory.at_s += 1.0
        looked(guard, memory)
        assert memory.sizes_mib == []
        group = PoolReading(name="g", total_bytes=64 * RESERVE_BYTES, available_bytes=350 * MIB)
        machine = memory.read()

        class WithGroup:
            def read(self) -> tuple[PoolReading, ...]:
                return (*machine, group)

            alarms, reopen, close = memory.alarms, memory.reopen, memory.close

        memory.alarm_count = 1
        watched = MemoryGuard(
            BOUNDS,
            open_pools=WithGroup,
            clock=lambda: memory.at_s,
            asleep=lambda: 0.0,
            pace=never,
        )
        watched.attach(memory)
        memory.alarm_count = 1
        looked(watched, memory, seconds=1.5)
        watched.close()
        assert memory.sizes_mib == [1500]


def test_waiting_during_sleep_is_no_pressure():
    memory = FakeMemory(room_mib=1950)  # 350 left: waiting would count
    with guarding(memory) as guard:
        looked(guard, memory, seconds=1.5)
        memory.slept_s, memory.stall_s = 900.0, 1.0
        looked(guard, memory)
        assert guard.gaps == 1
        assert memory.reopened == 1
        memory.at_s, memory.stall_s = memory.at_s + 30.0, 20.0  # stopped and continued
        guard.look()
        assert guard.gaps == 2
        for _ in range(12):
            looked(guard, memory)
        assert memory.sizes_mib == []
        for _ in range(12):
            memory.stall_s += 0.05
            looked(guard, memory)
        assert memory.sizes_mib == [1500]


def test_no_memory_even_for_the_smallest_cache_ends_the_answer():
    memory = FakeMemory()
    with guarding(memory) as guard:
        memory.others_mib = 2790
        for _ in range(20):
            looked(guard, memory)
            guard.check()
        for _ in range(20):
            looked(guard, memory)
        assert memory.cache_bytes == BOUNDS.floor_bytes
        with pytest.raises(EngineOutOfMemory, match=r"cache of experts, 0\.2 GiB") as raised:
            guard.check()
        assert "--ctx" in (raised.value.hint or "")
        memory.others_mib = 0
        looked(guard, memory)
        guard.check()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_answer_is_made():
    class Broken(FakeMemory):
        def read(self) -> tuple[PoolReading, ...]:
            if self.resized.is_set():
                raise RuntimeError("broken")
            return super().read()

    memory = Broken()
    guard = MemoryGuard(BOUNDS, open_pools=lambda: memory, pace=lambda budget, look: 0.001)
    guard.attach(memory)
    memory.resized.set()
    guard._thread.join(timeout=30)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="broken"):
        guard.check()
    guard.check()
    guard.close()


def test_its_thread_looks_by_itself_and_ends():
    memory = FakeMemory()
    guard = MemoryGuard(BOUNDS, open_pools=lambda: memory, pace=lambda budget, look: 0.001)
    guard.attach(memory)
    memory.others_mib = 1400
    assert memory.resized.wait(timeout=30)
    guard.close()
    assert memory.is_closed
    assert not [thread for thread in threading.enumerate() if thread.name == "memory-guard"]


def test_this_very_machine_can_be_watched():
    memory = FakeMemory(cache_bytes=MIB)
    bounds = CacheBounds(floor_bytes=MIB, ceiling_bytes=MIB)
    guard = MemoryGuard(bounds, open_pools=MemoryPools)
    guard.attach(memory)
    guard.look()
    guard.check()
    guard.close()
    assert asleep_s() > -1.0
