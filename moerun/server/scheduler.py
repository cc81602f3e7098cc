"""Which models are in memory, and whose turn it is.

All state belongs to the event loop and is touched nowhere else, so there are no locks about it;
what takes long (loading, ending a process, looking at memory) happens in threads meanwhile. Models
are loaded one at a time, since each plan begins with what the others left free.

Knows: queues, keep-alive, reuse of a larger context, eviction by measured bytes, restarts.
Does not know: HTTP, plans, or processes.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from moerun.errors import EngineOutOfMemory, PlanError
from moerun.machine.description import DeviceId
from moerun.server.durations import FOREVER_S
from moerun.server.eviction import Resident, choose_evictions, room_beside, room_without
from moerun.server.refusals import ServerBusy
from moerun.server.runners import LoadedModel, LoadWishes, ModelLoader, ServedModel
from moerun.server.slots import Lease, Slot

Found = TypeVar("Found")

_RETRY_AFTER_S: Final = 2
_UNCLAIMED_S: Final = 5.0  # a model whose client left while it was loaded waits so long at least


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePolicy:
    """What the server was told: how long models stay, and how many requests may wait."""

    keep_alive_s: float = 300.0
    most_waiting: int = 512


class Scheduler:
    """Gives requests their turn. One for each server; used on one event loop."""

    def __init__(self, loader: ModelLoader, policy: SchedulePolicy | None = None) -> None:
        self._loader = loader
        self._policy = SchedulePolicy() if policy is None else policy
        self._slots: dict[str, Slot] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Future[None]] = set()
        self._waiting = 0
        self._is_closed = False
        self._turn_to_load = asyncio.Lock()
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="scheduler")

    @property
    def loaded(self) -> tuple[Slot, ...]:
        """The models in memory, the one that stays longest first."""
        usable = [slot for slot in self._slots.values() if slot.loaded.is_alive]
        return tuple(sorted(usable, key=self.left_s, reverse=True))

    @property
    def waiting(self) -> int:
        """How many requests wait for a model or for their turn."""
        return self._waiting

    def left_s(self, slot: Slot) -> float:
        """Return how long a model stays if nobody asks it anything more."""
        if slot.expires_at_s is None:
            return slot.keep_alive_s
        return max(0.0, slot.expires_at_s - asyncio.get_running_loop().time())

    def slot_of(self, model: ServedModel) -> Slot | None:
        """Return the loaded model, None when it is not in memory."""
        return self._slots.get(model.key)

    async def acquire(
        self, model: ServedModel, wishes: LoadWishes, keep_alive_s: float | None = None
    ) -> Lease:
        """Return a turn of the model, loading it first where it must be; ServerBusy, MoerunError.

        The caller releases it. `keep_alive_s` None keeps what the loaded model was given.
        """
        if self._waiting >= self._policy.most_waiting:
            raise ServerBusy(waiting=self._waiting, retry_after_s=_RETRY_AFTER_S)
        self._waiting += 1
        try:
            return await self._acquire(model, wishes, keep_alive_s)
        finally:
            self._waiting -= 1

    async def unload(self, model: ServedModel) -> bool:
        """Let a model leave as soon as nobody uses it; False when it is not in memory."""
        slot = self._slots.get(model.key)
        if slot is None:
            return False
        if slot.users == 0:
            await self._remove(slot)
        else:
            slot.keep_alive_s = 0.0
        return True

    async def close(self) -> None:
        """End every model, and wait until all processes are gone."""
        self._is_closed = True
        for load in tuple(self._loads.values()):
            await asyncio.wait([load])
        for slot in tuple(self._slots.values()):
            await self._remove(slot)
        while self._endings:
            await asyncio.wait(self._endings)
        self._threads.shutdown(wait=True)

    async def measure(self) -> None:
        """Look anew at what every model in memory holds."""
        await asyncio.gather(*(self._measure(slot) for slot in self.loaded))

    async def _acquire(
        self, model: ServedModel, wishes: LoadWishes, keep_alive_s: float | None
    ) -> Lease:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            slot = await self._join(model, wishes)
            loaded_s = loop.time() - begun_s
            try:
                await slot.turns.acquire()
            except BaseException:
                self._leave(slot)
                raise
            if slot.is_usable or (slot.is_leaving and slot.loaded.is_alive):
                break
            slot.turns.release()
            self._leave(slot)
        if keep_alive_s is not None:
            slot.keep_alive_s = keep_alive_s
        slot.last_used_s = loop.time()
        return Lease(slot, on_release=self._release, load_s=loaded_s)

    async def _join(self, model: ServedModel, wishes: LoadWishes) -> Slot:
        """Return the model's slot with this request among its users."""
        while True:
            slot = self._slots.get(model.key)
            if slot is None:
                await self._await_load(model, wishes)
            elif not slot.is_usable:
                if slot.is_leaving:
                    await self._change()
                else:  # it crashed: who uses it learns that from it
                    await self._remove(slot)
            elif _is_too_small(slot, wishes):
                if slot.users == 0:
                    await self._remove(slot)
                else:
                    slot.is_leaving = True  # newcomers wait, so that it becomes idle at all
                    await self._change()
            else:
                slot.users += 1
                self._stop_timer(slot)
                return slot

    async def _await_load(self, model: ServedModel, wishes: LoadWishes) -> None:
        """Wait for the model to be loaded; one who leaves meanwhile stops nobody else's load."""
        load = self._loads.get(model.key)
        if load is None:
            load = asyncio.create_task(self._load(model, wishes))
            self._loads[model.key] = load
            load.add_done_callback(lambda done: self._forget_load(model.key, done))
        await asyncio.shield(load)

    def _forget_load(self, key: str, load: asyncio.Task[None]) -> None:
        self._loads.pop(key, None)
        if not load.cancelled():
            load.exception()  # looked at, since everyone who asked may have left

    async def _load(self, model: ServedModel, wishes: LoadWishes) -> None:
        async with self._turn_to_load:
            while self._endings:  # what leaves still holds its memory
                await asyncio.wait(self._endings)
            loaded = await self._load_making_room(model, wishes)
            slot = Slot(model, wishes, loaded)
            slot.keep_alive_s = self._policy.keep_alive_s
            slot.last_used_s = asyncio.get_running_loop().time()
            self._slots[model.key] = slot
            await self._measure(slot)
            if slot.users == 0:
                self._start_timer(slot, max(_UNCLAIMED_S, slot.keep_alive_s))

    async def _load_making_room(self, model: ServedModel, wishes: LoadWishes) -> LoadedModel:
        while True:
            if self._is_closed:
                raise ServerBusy(waiting=self._waiting, retry_after_s=_RETRY_AFTER_S)
            room = await self._room()
            residents = self._residents()
            idle = [each for each in residents if each.is_idle]
            try:
                needs = await self._in_thread(
                    lambda: self._loader.needs(model, wishes, room_without(room, idle))  # noqa: B023
                )
            except PlanError:
                if len(idle) == len(residents):
                    raise  # even an empty machine would not do
                await self._change()
                continue
            leaving = choose_evictions(needs, room, residents)
            for key in [each.name for each in idle] if leaving is None else leaving:
                if (slot := self._slots.get(key)) is not None and slot.users == 0:
                    await self._remove(slot)
            try:
                room = await self._room()
                return await self._in_thread(lambda: self._loader.load(model, wishes, room))  # noqa: B023
            except (PlanError, EngineOutOfMemory):
                if not self._slots:
                    raise
                await self._free_one()

    async def _free_one(self) -> None:
        """Let the least recently used idle model leave, or wait until one is idle."""
        idle = [slot for slot in self._slots.values() if slot.users == 0]
        if idle:
            await self._remove(min(idle, key=lambda slot: slot.last_used_s))
        else:
            await self._change()

    async def _room(self) -> dict[DeviceId, int]:
        await self.measure()
        held = [
            (each.device, each.reclaimable_bytes)
            for slot in self._slots.values()
            for each in slot.held
        ]
        return room_beside(await self._in_thread(self._loader.room), held)

    def _residents(self) -> tuple[Resident, ...]:
        return tuple(
            Resident(
                name=key,
                last_used_s=slot.last_used_s,
                is_idle=slot.users == 0,
                frees_bytes=tuple((each.device, each.size_bytes) for each in slot.held),
            )
            for key, slot in self._slots.items()
        )

    async def _measure(self, slot: Slot) -> None:
        slot.held = await self._in_thread(slot.loaded.holdings)

    def _release(self, slot: Slot) -> None:
        slot.turns.release()
        self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        slot.users -= 1
        slot.last_used_s = asyncio.get_running_loop().time()
        if slot.users == 0:
            if slot.is_leaving or slot.has_failed or slot.keep_alive_s <= 0:
                self._begin_removal(slot)
            else:
                self._start_timer(slot, slot.keep_alive_s)
        self._notify()

    def _start_timer(self, slot: Slot, after_s: float) -> None:
        self._stop_timer(slot)
        loop = asyncio.get_running_loop()
        slot.expires_at_s = loop.time() + after_s
        if after_s < FOREVER_S:
            slot.timer = loop.call_later(after_s, self._expire, slot)

    def _stop_timer(self, slot: Slot) -> None:
        slot.expires_at_s = None
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    def _expire(self, slot: Slot) -> None:
        if slot.users == 0:
            self._begin_removal(slot)

    async def _remove(self, slot: Slot) -> None:
        """Take a model out of memory; its process is gone when this returns."""
        ending = self._begin_removal(slot)
        if ending is not None:
            await asyncio.shield(ending)

    def _begin_removal(self, slot: Slot) -> "asyncio.Future[None] | None":
        """End a model's process in a thread; None when that was begun before."""
        if self._slots.get(slot.model.key) is not slot:
            return None
        self._stop_timer(slot)
        del self._slots[slot.model.key]
        slot.is_leaving = True

        def end() -> None:
            slot.loaded.close()
            slot.threads.shutdown(wait=False)

        ending = asyncio.get_running_loop().run_in_executor(self._threads, end)
        self._endings.add(ending)
        ending.add_done_callback(self._ended)
        return ending

    def _ended(self, ending: "asyncio.Future[None]") -> None:
        self._endings.discard(ending)
        self._notify()

    async def _change(self) -> None:
        """Wait until a request has ended or a model has left."""
        await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _is_too_small(slot: Slot, wishes: LoadWishes) -> bool:
    """Whether a request wants more than a model was loaded with; a larger context is reused.

    What was wished and could not be had, as a context beyond the trained one, is not wished anew.
    """
    wanted = wishes.context_tokens or 0
    return wanted > slot.loaded.context_tokens and wanted > (slot.wishes.context_tokens or 0)
