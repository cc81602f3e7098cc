"""Whether experts stream from SSD through a bounded cache in RAM, and how large that cache is.

A cache below the experts of one token hits nothing at all: each is driven out before it is asked
for again. One and a half tokens' experts are the least that is worth having, and all experts that
one micro-batch may need of a layer have to lie in it side by side.

Knows: the floor of a cache, what its room is, and what forbids streaming.
Does not know: which experts are held, or how they are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moerun.machine.description import HOST
from moerun.planning.cargo import PartBytes
from moerun.planning.obstacles import StreamingNeeds, streaming_ability
from moerun.planning.situation import Problem
from moerun.planning.strategy import AllocationPolicy, LoadMode, StreamingMode

_LEAST_CYCLES_PARTS: Final = (3, 2)  # of the experts of one token
# The page tables of what is held: 8 bytes for each page of 4 KiB.
_PAGE_TABLE_PART: Final = 512
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """What a cache may take and must take; `cycle_bytes` are the experts of one token."""

    cache_bytes: int
    minimum_bytes: int
    cycle_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether the room is above the floor."""
        return self.cache_bytes >= self.minimum_bytes


def is_forced(problem: Problem) -> bool:
    """Whether streaming was asked for by name, rather than left to the plan."""
    strategy = problem.strategy
    asked = (StreamingMode.PAGING, StreamingMode.CACHE)
    return strategy.load_mode is LoadMode.STREAM or strategy.streaming in asked


def obstacle(problem: Problem) -> str | None:
    """Return in a sentence why nothing streams on this machine by this strategy; None if it may."""
    strategy = problem.strategy
    if strategy.streaming is StreamingMode.OFF:
        return "streaming is off, so the system's page cache alone decides what stays"
    if strategy.load_mode not in (None, LoadMode.STREAM):
        return f"the load mode is {strategy.load_mode}, so the system decides what stays"
    if strategy.allocation_policy is AllocationPolicy.CONSERVATIVE and not is_forced(problem):
        return "the conservative policy moves nothing after loading"
    return _hindered(problem)


def _hindered(problem: Problem) -> str | None:
    """Return what of the machine stands in the way of every mechanism that may run, or None."""
    model, asked = problem.model, problem.strategy.streaming
    ability = streaming_ability(
        problem.machine,
        StreamingNeeds(
            expert_bytes=model.expert_bytes,
            model_bytes=model.file_bytes,
            matrices=sum(len(layer.expert_tensors) for layer in model.layers),
        ),
    )
    may_run = set(ability.mechanisms)
    if asked in (StreamingMode.PAGING, StreamingMode.CACHE):
        may_run &= {asked}
    return None if may_run else "; ".join(ability.because)


def cache_room(problem: Problem, left: Sequence[PartBytes], room_bytes: int) -> CacheRoom | None:
    """Return the cache for the experts that are left over; None where nothing is left.

    `room_bytes` is what the host has left beside all else. A cache larger than all experts would
    hold nothing more.
    """
    model = problem.model
    if not any(left) or not model.expert_count:
        return None
    used, count = max(1, model.experts_used), model.expert_count
    batch = min(count, used * problem.strategy.ubatch_tokens)
    slots = [sum(_slot_bytes(size, count) for _, size in parts) for parts in left if parts]
    cycle_bytes = sum(slot * min(used, count) for slot in slots)
    numerator, denominator = _LEAST_CYCLES_PARTS
    minimum_bytes = max(cycle_bytes * numerator // denominator, max(slots) * batch)
    everything_bytes = sum(slot * count for slot in slots)
    usable_bytes = max(0, room_bytes - room_bytes // _PAGE_TABLE_PART)
    return CacheRoom(
        cache_bytes=min(usable_bytes, everything_bytes),
        minimum_bytes=min(minimum_bytes, everything_bytes),
        cycle_bytes=cycle_bytes,
    )


def pinned_to_ram(problem: Problem) -> int:
    """Return the bytes of experts that pins hold in RAM beside any cache."""
    return problem.cargo.pinned_expert_bytes.get(HOST, 0)


def _slot_bytes(part_bytes: int, count: int) -> int:
    """Return the whole pages that one expert of a matrix touches at most."""
    return (-(-part_bytes // count // _PAGE_BYTES) + 1) * _PAGE_BYTES
