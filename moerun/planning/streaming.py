"""Whether experts stream from SSD through a bounded cache in RAM, and how large that cache is.

A cache below the experts of one token hits nothing at all: each is driven out before it is asked
for again. One and a half tokens' experts are the least that is worth having, and all experts that
one micro-batch may need of a layer have to lie in it side by side.

Knows: the floor of a cache, what its room is, and what forbids streaming.
Does not know: which experts are held, or how they are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from moerun.machine.description import HOST, SSD
from moerun.model.description import Layer, Tensor, TensorRole
from moerun.planning.cargo import PartBytes
from moerun.planning.obstacles import StreamingNeeds, streaming_ability
from moerun.planning.situation import Problem
from moerun.planning.strategy import AllocationPolicy, LoadMode, StreamingMode, Tier

_LEAST_CYCLES_PARTS: Final = (3, 2)  # of the experts of one token
# The page tables of what is held: 8 bytes for each page of 4 KiB.
_PAGE_TABLE_PART: Final = 512
_PAGE_BYTES: Final = 4096
_ROUTER_VALUE_BYTES: Final = 4  # F32, whatever the file holds


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """What a cache may take and must take.

    `cycle_bytes` are the experts of one token, `expert_bytes` all that stream. Beside the cache
    lie `beside_bytes`: copies of routers, by which experts are foretold, and small tensors of the
    experts (biases, scales), which do not stream. `is_share` says that a wanted share of the
    experts bounds the cache, not memory.
    """

    cache_bytes: int
    minimum_bytes: int
    cycle_bytes: int
    expert_bytes: int
    beside_bytes: int
    is_share: bool

    @property
    def is_enough(self) -> bool:
        """Whether the room is above the floor."""
        return self.cache_bytes >= self.minimum_bytes


def is_forced(problem: Problem) -> bool:
    """Whether streaming was asked for by name, rather than left to the plan."""
    strategy = problem.strategy
    asked = (StreamingMode.PAGING, StreamingMode.CACHE)
    return strategy.load_mode is LoadMode.STREAM or strategy.streaming in asked


def streaming_mode(problem: Problem) -> StreamingMode:
    """Return which mechanism runs: an SSD cache is filled and read by reads of our own alone.

    What is on SSD below slots in VRAM comes through the page cache: what the slots hold need not
    be held in RAM a second time, and the system drops what is not read.
    """
    strategy = problem.strategy
    asked = strategy.streaming
    if strategy.ssd_cache_path is not None and asked in (StreamingMode.AUTO, StreamingMode.SLOTS):
        return StreamingMode.CACHE
    return StreamingMode.PAGING if asked is StreamingMode.SLOTS else asked


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
    model, asked = problem.model, streaming_mode(problem)
    ability = streaming_ability(
        problem.machine,
        StreamingNeeds(
            expert_bytes=model.expert_bytes,
            model_bytes=model.file_bytes,
            matrices=sum(len(layer.expert_tensors) for layer in model.layers),
            has_ssd_cache=problem.strategy.ssd_cache_path is not None,
        ),
    )
    may_run = set(ability.mechanisms)
    if asked in (StreamingMode.PAGING, StreamingMode.CACHE):
        may_run &= {asked}
    return None if may_run else "; ".join(ability.because)


def cache_room(
    problem: Problem, left: Sequence[PartBytes], room_bytes: int, *, host_layers: int
) -> CacheRoom | None:
    """Return the cache for the experts that are left over or pinned to SSD; None without any.

    `room_bytes` is what the host has left beside all else; the first `host_layers` are computed
    there. A cache larger than all experts would hold nothing more, and without RAM in the
    hierarchy it is as small as can be.
    """
    used = max(1, problem.model.experts_used)
    batch = used * problem.strategy.ubatch_tokens
    cycle_bytes = union_bytes = everything_bytes = expert_bytes = beside_bytes = 0
    for layer, parts in zip(problem.model.layers, left, strict=True):
        here = set(_off_gpus(problem, layer, parts))
        matrices = [t for t in layer.routed_matrices(problem.model.expert_count) if t in here]
        beside_bytes += sum(tensor.size_bytes for tensor in here.difference(matrices))
        if not matrices:
            continue
        count = matrices[0].shape[-1]
        slot_bytes = sum(_slot_bytes(matrix.size_bytes, count) for matrix in matrices)
        expert_bytes += sum(matrix.size_bytes for matrix in matrices)
        everything_bytes += slot_bytes * count
        cycle_bytes += slot_bytes * min(used, count)
        union_bytes = max(union_bytes, slot_bytes * min(batch, count))
        beside_bytes += _router_bytes(problem, layer, host_layers)
    if not expert_bytes:
        return None
    numerator, denominator = _LEAST_CYCLES_PARTS
    minimum_bytes = min(max(cycle_bytes * numerator // denominator, union_bytes), everything_bytes)
    usable_bytes = room_bytes - room_bytes // _PAGE_TABLE_PART - beside_bytes
    cache_bytes = max(0, min(usable_bytes, everything_bytes))
    share_bytes = _share_bytes(problem)
    is_share = share_bytes is not None and share_bytes < cache_bytes
    if share_bytes is not None:
        cache_bytes = min(cache_bytes, share_bytes)
    if Tier.RAM not in problem.strategy.hierarchy:
        cache_bytes = min(cache_bytes, minimum_bytes)
    return CacheRoom(
        cache_bytes=cache_bytes // _PAGE_BYTES * _PAGE_BYTES,
        minimum_bytes=minimum_bytes,
        cycle_bytes=cycle_bytes,
        expert_bytes=expert_bytes,
        beside_bytes=beside_bytes,
        is_share=is_share,
    )


def _off_gpus(problem: Problem, layer: Layer, parts: PartBytes) -> Iterator[Tensor]:
    """Yield a layer's tensors of experts that no GPU and no pin to RAM holds."""
    free = {part for part, _ in parts}
    for tensor in layer.expert_tensors:
        device = problem.pinning.devices.get(tensor.name)
        if device == SSD or (device is None and tensor.part in free):
            yield tensor


def _share_bytes(problem: Problem) -> int | None:
    """Return how much of the experts a cache may hold by the wanted share; None for no bound."""
    limit_bytes = problem.cargo.ram_expert_limit_bytes
    if limit_bytes is None:
        return None
    return max(0, limit_bytes - problem.cargo.pinned_expert_bytes.get(HOST, 0))


def _router_bytes(problem: Problem, layer: Layer, host_layers: int) -> int:
    """Return what is copied of a router to foretell experts: all that is not F32 on the host."""
    if problem.strategy.preload_experts == 0:
        return 0
    return sum(
        prod(tensor.shape) * _ROUTER_VALUE_BYTES
        for tensor in layer.tensors
        if tensor.role is TensorRole.ROUTER
        and (layer.index >= host_layers or tensor.encoding != "F32")
    )


def _slot_bytes(matrix_bytes: int, count: int) -> int:
    """Return the whole pages that one expert of a matrix touches at most."""
    return (-(-matrix_bytes // count // _PAGE_BYTES) + 1) * _PAGE_BYTES
