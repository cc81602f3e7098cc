"""What each device may be charged: free memory, limits, margins, and memory that is shared.

Knows: how limits, margins and the reserve for a desktop combine into a budget.
Does not know: models, or what will be placed.
"""

from dataclasses import dataclass
from typing import Final

from moerun.machine.description import HOST, WINDOWS, DeviceId, Gpu, Machine
from moerun.planning.plan import Budget
from moerun.planning.strategy import Limit, Strategy, Tier
from moerun.units import MIB, format_gib

# Windows moves a program's memory out of VRAM when its desktop wants more than it has now.
WINDOWS_DESKTOP_BYTES: Final = 512 * MIB
_LENT_MARGIN_PARTS: Final = 16  # of what a worker lends, one stays free


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A budget, and how much of it is kept free as a margin."""

    budget: Budget
    margin_bytes: int

    @property
    def device(self) -> DeviceId:
        """Return whose room it is."""
        return self.budget.device

    @property
    def usable_bytes(self) -> int:
        """Return what may be charged beside the margin; never negative."""
        return max(0, self.budget.budget_bytes - self.margin_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The rooms of the GPUs that may be used, in the machine's order, and of the host.

    `pool_bytes` bounds the sum of all charges where a GPU shares the host's memory.
    """

    gpus: tuple[Room, ...]
    host: Room
    pool_bytes: int | None = None

    def gpu(self, device: DeviceId) -> Room:
        """Return the room of one GPU; KeyError when it may not be used."""
        for room in self.gpus:
            if room.device == device:
                return room
        raise KeyError(device)


def rooms(machine: Machine, strategy: Strategy) -> Rooms:
    """Return the budgets that the machine and the strategy leave."""
    gpus = usable_gpus(machine, strategy)
    pool = shared_pool_bytes(machine) if any(gpu.shares_host_memory for gpu in gpus) else None
    return Rooms(
        gpus=tuple(_gpu_room(machine, strategy, gpu) for gpu in gpus),
        host=_host_room(machine, strategy, pool),
        pool_bytes=pool,
    )


def usable_gpus(machine: Machine, strategy: Strategy) -> tuple[Gpu, ...]:
    """Return the GPUs that a plan may use, in the machine's order.

    A GPU inside the processor shares the host's memory, so it adds nothing beside a card of its
    own; llama.cpp leaves it out as well - src/llama.cpp @ llama-cpp-python 0.3.36.
    """
    if Tier.VRAM not in strategy.hierarchy:
        return ()
    shared = [gpu.id for gpu in machine.gpus if gpu.shares_host_memory]
    has_card = any(not gpu.shares_host_memory and not gpu.is_remote for gpu in machine.gpus)
    left_out = shared if has_card else shared[1:]
    return tuple(gpu for gpu in machine.gpus if gpu.id not in left_out)


def shared_pool_bytes(machine: Machine) -> int:
    """Return what a GPU and the host may use together where they share memory."""
    limits = [
        gpu.working_set_limit_bytes or gpu.total_bytes
        for gpu in machine.gpus
        if gpu.shares_host_memory
    ]
    return min([machine.host.available_bytes, *limits])


def vram_limit_of(machine: Machine, strategy: Strategy, device: DeviceId) -> Limit | None:
    """Return the limit on one GPU: the only one given, or the one at its position."""
    limits = strategy.vram_limit
    if not limits:
        return None
    if len(limits) == 1:
        return limits[0]
    position = [gpu.id for gpu in machine.gpus].index(device)
    return limits[position] if position < len(limits) else None


def _gpu_room(machine: Machine, strategy: Strategy, gpu: Gpu) -> Room:
    free = min(gpu.free_bytes, gpu.total_bytes)
    because = f"{format_gib(free)} are free"
    if gpu.shares_host_memory:
        free = min(free, shared_pool_bytes(machine))
        because = f"{format_gib(free)} of memory shared with the host"
    limit = vram_limit_of(machine, strategy, gpu.id)
    bound = free if limit is None else limit.resolve(gpu.total_bytes)
    if bound < free:
        because = f"vram_limit is {limit}"
    margin = strategy.gpu_margin_bytes
    if margin is None:
        # the driver's limit for shared memory is a margin already, the host keeps another
        margin = 0 if gpu.shares_host_memory else strategy.default_gpu_margin_bytes
        if gpu.is_remote:  # what is lent is lent to one alone, and its worker has its own margin
            margin = min(margin, gpu.total_bytes // _LENT_MARGIN_PARTS)
    if _shows_desktop(machine, gpu):
        margin += WINDOWS_DESKTOP_BYTES
        because += f", {format_gib(WINDOWS_DESKTOP_BYTES)} more are left to the Windows desktop"
    return _room(gpu.id, free, min(free, bound), gpu.total_bytes, margin, because)


def _shows_desktop(machine: Machine, gpu: Gpu) -> bool:
    """Whether a Windows desktop may be drawn by it: taken to be the first card of its own."""
    own = [other for other in machine.gpus if not other.is_remote and not other.shares_host_memory]
    return machine.host.system == WINDOWS and bool(own) and own[0].id == gpu.id


def _host_room(machine: Machine, strategy: Strategy, pool: int | None) -> Room:
    available = min(machine.host.available_bytes, machine.host.total_bytes)
    because = f"{format_gib(available)} are available"
    bound = available
    if strategy.ram_limit is not None:
        bound = strategy.ram_limit.resolve(machine.host.total_bytes)
        if bound < available:
            because = f"ram_limit is {strategy.ram_limit}"
    if pool is not None and pool < min(available, bound):
        bound = pool
        because = f"{format_gib(pool)} are shared with the GPU"
    total = machine.host.total_bytes
    margin = strategy.host_margin_of(total)
    return _room(HOST, available, min(available, bound), total, margin, because)


def _room(device: DeviceId, free: int, budget: int, total: int, margin: int, because: str) -> Room:
    """Return the room; what a limit leaves free already counts towards the margin."""
    return Room(
        budget=Budget(device=device, budget_bytes=budget, total_bytes=total, because=because),
        margin_bytes=min(budget, max(0, margin - (free - budget))),
    )
