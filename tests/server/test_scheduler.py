"""Turns, keep-alive, restarts and eviction, on one event loop, with fakes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from moerun.engine.interface import AnswerPart, GenerationRequest, GenerationResult
from moerun.errors import DoesNotFit, EngineCrashed
from moerun.machine.description import HOST, DeviceId
from moerun.server.durations import FOREVER_S
from moerun.server.eviction import Resident, choose_evictions
from moerun.server.refusals import ServerBusy
from moerun.server.runners import LoadWishes
from moerun.server.scheduler import SchedulePolicy, Scheduler
from moerun.server.slots import Lease
from tests.server.fakes import FakeLoader, FakeShelf

SHELF = FakeShelf()
ALPHA, BETA, GAMMA = SHELF.all()
ANY = LoadWishes()
GPU = DeviceId("gpu:0")


def on_a_loop(
    test: Callable[[Scheduler, FakeLoader], Awaitable[None]],
    *,
    loader: FakeLoader | None = None,
    policy: SchedulePolicy | None = None,
) -> FakeLoader:
    used = FakeLoader() if loader is None else loader

    async def run() -> None:
        scheduler = Scheduler(used, policy)
        try:
            await asyncio.wait_for(test(scheduler, used), 20)
        finally:
            await scheduler.close()

    asyncio.run(run())
    assert not used.alive
    return used


async def ask(lease: Lease, prompt: str) -> str:
    text = ""
    async with aclosing(lease.generate(GenerationRequest(prompt=prompt))) as events:
        async for event in events:
            if isinstance(event, AnswerPart):
                text += event.text
    return text


async def ask_model(scheduler: Scheduler, model=ALPHA, prompt="say hello", keep=None) -> str:
    lease = await scheduler.acquire(model, ANY, keep)
    try:
        return await ask(lease, prompt)
    finally:
        lease.release()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_model_is_loaded_once_for_all_who_ask_at_once():
    async def test(scheduler, loader):
        answers = await asyncio.gather(
            *(ask_model(scheduler, prompt=f"say word{i}") for i in range(20))
        )
        assert answers == [f"word{i} " for i in range(20)]
        assert len(loader.loaded) == 1
        assert loader.loaded[0].most_at_once <= loader.sequences

    on_a_loop(test)


def test_nothing_kept_is_gone_after_the_answer():
    async def test(scheduler, loader):
        await ask_model(scheduler, keep=0.0)
        await until(lambda: not loader.alive)
        assert scheduler.loaded == ()

    on_a_loop(test)


def test_time_begins_anew_with_each_answer_and_runs_out():
    async def test(scheduler, loader):
        await ask_model(scheduler, keep=FOREVER_S)
        slot = scheduler.slot_of(ALPHA)
        assert scheduler.left_s(slot) == FOREVER_S
        await ask_model(scheduler, keep=0.02)
        await until(lambda: not loader.alive)

    on_a_loop(test)


def test_a_larger_context_is_reused_and_a_smaller_one_loaded_again():
    async def test(scheduler, loader):
        for tokens, loads in ((1000, 1), (500, 1), (None, 1), (2000, 2), (1500, 2)):
            lease = await scheduler.acquire(ALPHA, LoadWishes(context_tokens=tokens))
            lease.release()
            assert len(loader.loaded) == loads

    on_a_loop(test)


def test_a_context_that_no_load_can_give_is_not_loaded_for_again_and_again():
    async def test(scheduler, loader):
        for _ in range(3):
            lease = await scheduler.acquire(ALPHA, LoadWishes(context_tokens=1_000_000))
            lease.release()
        assert len(loader.loaded) == 1

    on_a_loop(test)


def test_a_crash_ends_its_own_answer_and_the_next_is_made_by_a_fresh_runner():
    async def test(scheduler, loader):
        for round_number in range(1, 6):
            with pytest.raises(EngineCrashed):
                await ask_model(scheduler, prompt="crash")
            assert await ask_model(scheduler) == "hello "
            assert len(loader.loaded) == round_number + 1
            await until(lambda: len(loader.alive) == 1)

    on_a_loop(test)


def test_a_runner_that_died_unasked_is_noticed_before_it_is_used():
    async def test(scheduler, loader):
        await ask_model(scheduler)
        loader.loaded[0].is_alive = False
        assert await ask_model(scheduler) == "hello "
        assert len(loader.loaded) == 2

    on_a_loop(test)


def test_an_answer_that_nobody_wants_is_cancelled_and_its_turn_comes_back():
    async def test(scheduler, loader):
        lease = await scheduler.acquire(ALPHA, ANY)
        events = lease.generate(GenerationRequest(prompt="forever"))
        await anext(events)
        await events.aclose()
        await until(lambda: scheduler.slot_of(ALPHA).users == 0)
        assert loader.loaded[0].now_at_once == 0

    on_a_loop(test)


def test_a_full_queue_refuses_and_lets_in_again():
    async def test(scheduler, loader):
        lease = await scheduler.acquire(ALPHA, ANY)
        waiting = asyncio.create_task(scheduler.acquire(ALPHA, ANY))
        await until(lambda: scheduler.waiting == 1)
        with pytest.raises(ServerBusy):
            await scheduler.acquire(ALPHA, ANY)
        lease.release()
        (await waiting).release()
        assert await ask_model(scheduler) == "hello "

    on_a_loop(test, loader=FakeLoader(sequences=1), policy=SchedulePolicy(most_waiting=1))


def test_who_leaves_the_queue_takes_no_turn():
    async def test(scheduler, loader):
        lease = await scheduler.acquire(ALPHA, ANY)
        leaver = asyncio.create_task(scheduler.acquire(ALPHA, ANY))
        await until(lambda: scheduler.waiting == 1)
        leaver.cancel()
        await asyncio.wait([leaver])
        lease.release()
        assert await ask_model(scheduler) == "hello "
        await until(lambda: scheduler.slot_of(ALPHA).users == 0)

    on_a_loop(test, loader=FakeLoader(sequences=1))


def test_the_least_recently_used_idle_model_leaves_when_bytes_lack():
    async def test(scheduler, loader):
        for model in (ALPHA, BETA, ALPHA, GAMMA):
            await ask_model(scheduler, model)
            await until(lambda: all(slot.users == 0 for slot in scheduler.loaded))
        assert {runner.name for runner in loader.alive} == {"alpha", "gamma"}

    on_a_loop(test, loader=FakeLoader(total_bytes=250))


def test_models_stay_beside_one_another_while_their_bytes_fit():
    async def test(scheduler, loader):
        for model in (ALPHA, BETA, GAMMA):
            await ask_model(scheduler, model)
        assert len(loader.alive) == 3

    on_a_loop(test, loader=FakeLoader(total_bytes=300))


def test_a_load_waits_for_a_busy_model_rather_than_ending_its_answer():
    async def test(scheduler, loader):
        lease = await scheduler.acquire(ALPHA, ANY)
        events = lease.generate(GenerationRequest(prompt="forever"))
        await anext(events)
        other = asyncio.create_task(ask_model(scheduler, BETA))
        await asyncio.sleep(0.02)
        assert not other.done()
        assert [runner.name for runner in loader.alive] == ["alpha"]
        await events.aclose()
        assert await other == "hello "
        assert [runner.name for runner in loader.alive] == ["beta"]

    on_a_loop(test, loader=FakeLoader(total_bytes=150))


def test_what_never_fits_is_refused_and_waits_for_nobody():
    async def test(scheduler, loader):
        with pytest.raises(DoesNotFit):
            await ask_model(scheduler, ALPHA)

    on_a_loop(test, loader=FakeLoader(total_bytes=10))


def test_who_leaves_during_a_load_stops_nobody_else():
    async def test(scheduler, loader):
        loader.delay.clear()
        first = asyncio.create_task(ask_model(scheduler))
        second = asyncio.create_task(ask_model(scheduler))
        await until(lambda: scheduler.waiting == 2)
        first.cancel()
        await asyncio.wait([first])
        loader.delay.set()
        assert await second == "hello "
        assert len(loader.loaded) == 1

    on_a_loop(test)


def test_the_result_comes_last():
    async def test(scheduler, loader):
        lease = await scheduler.acquire(ALPHA, ANY)
        events = [e async for e in lease.generate(GenerationRequest(prompt="say a b"))]
        assert isinstance(events[-1], GenerationResult)
        assert len(events) == 3

    on_a_loop(test)


def a_resident(name: str, used_s: float, idle: bool = True, **frees: int) -> Resident:
    devices = {"host": HOST, "gpu": GPU}
    freed = tuple((devices[device], size) for device, size in frees.items())
    return Resident(name=name, last_used_s=used_s, is_idle=idle, frees_bytes=freed)


def test_only_who_frees_what_lacks_is_evicted():
    residents = (a_resident("old", 1.0, host=50), a_resident("new", 2.0, gpu=80))
    needs, room = {GPU: 100, HOST: 10}, {GPU: 30, HOST: 20}
    assert choose_evictions(needs, room, residents) == ("new",)


def test_no_more_leave_than_must():
    residents = tuple(a_resident(str(i), float(i), host=10) for i in range(5))
    assert choose_evictions({HOST: 25}, {HOST: 8}, residents) == ("0", "1")
    assert choose_evictions({HOST: 5}, {HOST: 8}, residents) == ()


def test_who_is_busy_stays():
    residents = (a_resident("busy", 1.0, idle=False, host=100), a_resident("idle", 2.0, host=10))
    assert choose_evictions({HOST: 20}, {HOST: 10}, residents) == ("idle",)
    assert choose_evictions({HOST: 50}, {HOST: 10}, residents) is None
