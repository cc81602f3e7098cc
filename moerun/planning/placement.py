"""The candidates of one situation: sets of GPUs, packed, with the host checked.

Knows: capacities, and the order in which candidates are preferred.
Does not know: which context is tried next, or how a plan is written down.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from math import inf
from typing import Final

from moerun.machine.description import HOST, Gpu
from moerun.model.description import ExpertPart
from moerun.planning import streaming
from moerun.planning.candidate import Candidate, HostNeed, Rank, is_pipelined
from moerun.planning.cargo import Cargo, PartBytes, fill_from_the_end, sum_bytes
from moerun.planning.fixed_charges import Work
from moerun.planning.packing import Bay, Freight, Run, packings
from moerun.planning.situation import (
    Problem,
    Situation,
    gpu_charges,
    host_charges,
    tied_copy_bytes,
)
from moerun.planning.slot_packing import SlotRun, slot_runs
from moerun.planning.strategy import Tier
from moerun.planning.streaming import CacheRoom
from moerun.planning.value import Held, standing

# Above this many GPUs only the first one, two, three and so on are tried together.
EVERY_SUBSET_UP_TO: Final = 4
MAX_DEVICES: Final = 16  # llama_max_devices - src/llama.cpp @ llama-cpp-python 0.3.36


def best_candidate(at: Situation) -> Candidate | None:
    """Return the placement with the least off the GPUs, then the fewest devices.

    None when no set of GPUs can hold what is pinned to it; a candidate that does not fit the host
    (`fits` is false) is the one that lacks least.
    """
    best: Candidate | None = None
    nearest: Candidate | None = None
    for least, devices, has_staging in sorted(_attempts(at), key=lambda attempt: attempt[0]):
        if best is not None and least > best.rank:
            break  # the others promise even less
        for found in _candidates(at, devices, has_staging=has_staging):
            if found.fits and (best is None or found.rank < best.rank):
                best = found
            if not found.fits and (nearest is None or found.short_bytes < nearest.short_bytes):
                nearest = found
    return best or nearest


def _attempts(at: Situation) -> Iterator[tuple[Rank, tuple[Gpu, ...], bool]]:
    """Yield sets of GPUs, without and with staging, and a rank that none of them can beat."""
    load = at.problem.cargo
    dense, movable = at.freight.dense_sums_bytes[-1], at.freight.expert_sums_bytes[-1]
    held = sum_bytes(load.host_parts)
    for devices in device_sets(at.problem):
        count = len(devices)
        if at.problem.slots is not None:
            if devices:  # no slots without a device, and no batches without staging
                yield ((0, 0, 0, 0, 0), count, 0, -inf), devices, True
            continue
        if not devices:
            output = load.output_bytes + tied_copy_bytes(at.problem)
            yield ((dense + output, movable + held, 0, 0, 0), 0, 0, -inf), (), False
            continue
        for has_staging in (False, True):
            room = sum(max(0, left) for left in _capacities(at, devices, has_staging=has_staging))
            if not has_staging and (room < dense + movable or held or load.pins_host_matrices):
                continue  # not everything can be on these GPUs
            host_dense = max(0, dense - room)
            host_experts = movable if host_dense else max(0, dense + movable - room)
            cost = (host_dense, host_experts + held, 0, 0, 0)
            yield (cost, count, 0, -inf), devices, has_staging


def device_sets(problem: Problem) -> Iterator[tuple[Gpu, ...]]:
    """Yield the sets of GPUs to try, smallest first; each has every GPU that is pinned to."""
    gpus = tuple(problem.machine.gpu(room.device) for room in problem.rooms.gpus)[:MAX_DEVICES]
    pinned = {gpu.id for gpu in gpus if problem.cargo.pinned_bytes(gpu.id)}
    for count in range(len(gpus) + 1):
        some = combinations(gpus, count) if len(gpus) <= EVERY_SUBSET_UP_TO else [gpus[:count]]
        for chosen in some:
            if pinned <= {gpu.id for gpu in chosen}:
                # remote devices first: the local ones hold the last layers and the output
                yield tuple(sorted(chosen, key=lambda gpu: not gpu.is_remote))


def _candidates(
    at: Situation, devices: tuple[Gpu, ...], *, has_staging: bool
) -> Iterator[Candidate]:
    """Yield the ways to use a set of GPUs, one for each family of packings that can."""
    capacities = _capacities(at, devices, has_staging=has_staging)
    host = at.problem.machine.host
    bays = tuple(
        Bay(capacity_bytes=capacity, standing=standing(gpu, host))
        for gpu, capacity in zip(devices, capacities, strict=True)
    )
    if at.problem.slots is not None:
        slots = slot_runs(at.freight, bays, at.problem.slots)
        ways = [] if slots is None else [(tuple(each.run for each in slots), slots)]
    else:
        ways = [(runs, ()) for runs in (packings(at.freight, bays) if devices else ((),))]
    for runs, slots in ways:
        found = _candidate(at, devices, runs, capacities, has_staging=has_staging, slots=slots)
        if found is not None:
            yield found


def _candidate(
    at: Situation,
    devices: tuple[Gpu, ...],
    runs: tuple[Run, ...],
    capacities: tuple[int, ...],
    *,
    has_staging: bool,
    slots: tuple[SlotRun, ...],
) -> Candidate | None:
    load = at.problem.cargo
    host_layers = runs[0].first if runs else load.layer_count
    left = _left_over(load, runs)
    multiplies = host_layers or any(left) or load.pins_host_matrices
    if devices and not has_staging and multiplies:
        return None  # something stays on the host, so large batches need staging
    need = _host_need(
        at,
        host_layers=host_layers,
        devices=devices,
        left=left,
        is_pipelined=is_pipelined(len(devices), has_staging=has_staging),
    )
    if slots and at.problem.slots is not None:
        staged = at.problem.slots.staged_bytes * len(devices)
        need = replace(need, staging_bytes=need.staging_bytes + staged)
    used = sum(
        _usable_bytes(at, gpu, has_staging=has_staging) - capacity + _run_bytes(at.freight, run)
        for gpu, capacity, run in zip(devices, capacities, runs, strict=True)
        if gpu.shares_host_memory
    )
    found = _with_host(
        at, devices, runs, need=need, left=left, pool_gpu_bytes=used, staged=has_staging
    )
    return _with_slots(found, slots) if slots else found


def _with_slots(candidate: Candidate, slots: tuple[SlotRun, ...]) -> Candidate:
    return replace(
        candidate,
        slots=slots,
        held=tuple(
            replace(held, expert_bytes=held.expert_bytes + each.hit_bytes)
            for held, each in zip(candidate.held, slots, strict=True)
        ),
        fits=candidate.fits and not any(each.short_bytes for each in slots),
    )


def _capacities(at: Situation, devices: tuple[Gpu, ...], *, has_staging: bool) -> tuple[int, ...]:
    """Return what is left on each device for layers and experts; negative when nothing fits."""
    return tuple(
        _usable_bytes(at, gpu, has_staging=has_staging)
        - _taken_bytes(
            at,
            gpu,
            has_output=gpu is devices[-1],
            has_staging=has_staging,
            is_pipelined=is_pipelined(len(devices), has_staging=has_staging),
        )
        for gpu in devices
    )


def _usable_bytes(at: Situation, gpu: Gpu, *, has_staging: bool) -> int:
    """Return what a GPU may be charged; of a pool, less what the host needs."""
    problem = at.problem
    usable = problem.rooms.gpu(gpu.id).usable_bytes
    if problem.rooms.pool_bytes is None or not gpu.shares_host_memory:
        return usable
    anything = problem.cargo.vram_parts if has_staging else ()
    need = _host_need(at, host_layers=0, devices=(gpu,), left=anything)
    host_bytes = problem.rooms.host.margin_bytes + need.total_bytes
    return min(usable, problem.rooms.pool_bytes - host_bytes)


def _taken_bytes(
    at: Situation, gpu: Gpu, *, has_output: bool, has_staging: bool, is_pipelined: bool
) -> int:
    """Return what a GPU is charged before any layer that is free to move."""
    load = at.problem.cargo
    charges = gpu_charges(
        at, gpu, has_output=has_output, has_staging=has_staging, is_pipelined=is_pipelined
    )
    taken = load.pinned_bytes(gpu.id) + load.repeated_bytes
    taken += sum(sized.size_bytes for _, sized in charges)
    if has_output:
        taken += load.output_bytes + load.tied_bytes
    return taken


def _run_bytes(freight: Freight, run: Run) -> int:
    return _dense_bytes(freight, run) + run.expert_bytes


def _dense_bytes(freight: Freight, run: Run) -> int:
    return freight.dense_sums_bytes[run.end] - freight.dense_sums_bytes[run.first]


def _left_over(load: Cargo, runs: tuple[Run, ...]) -> tuple[PartBytes, ...]:
    """Return the expert parts of each layer that are on no GPU and not pinned."""
    on_gpu: dict[int, set[ExpertPart]] = {}
    for run in runs:
        for index, parts in run.experts:
            on_gpu.setdefault(index, set()).update(part for part, _ in parts)
    return tuple(
        tuple(item for item in free if item[0] not in on_gpu.get(index, ())) + held
        for index, (free, held) in enumerate(zip(load.vram_parts, load.host_parts, strict=True))
    )


def _host_need(
    at: Situation,
    *,
    host_layers: int,
    devices: tuple[Gpu, ...],
    left: tuple[PartBytes, ...],
    is_pipelined: bool = False,
) -> HostNeed:
    problem = at.problem
    load = problem.cargo
    fixed = load.input_bytes + load.pinned_bytes(HOST)
    work = Work.EXPERTS if any(left) else Work.INPUTS
    if load.pins_host_matrices:
        work |= Work.EXPERTS | Work.LAYERS | Work.OUTPUT
    if host_layers:
        work |= Work.EXPERTS | Work.LAYERS
    if not devices:
        work |= Work.OUTPUT
    charges = host_charges(at, devices, work=work, is_pipelined=is_pipelined)
    fixed += sum(sized.size_bytes for _, sized in charges)
    if host_layers:
        fixed += load.repeated_bytes
    staging = 0
    has_ram = Tier.RAM in problem.strategy.hierarchy
    if not has_ram and problem.model.expert_count and streaming.obstacle(problem) is not None:
        staging = sum_bytes(left) * problem.model.experts_used // problem.model.expert_count
    return HostNeed(
        work=work,
        fixed_bytes=fixed,
        layer_bytes=at.freight.dense_sums_bytes[host_layers],
        output_bytes=0 if devices else load.output_bytes + tied_copy_bytes(problem),
        staging_bytes=staging,
    )


def _with_host(
    at: Situation,
    devices: tuple[Gpu, ...],
    runs: tuple[Run, ...],
    *,
    need: HostNeed,
    left: tuple[PartBytes, ...],
    pool_gpu_bytes: int,
    staged: bool,
) -> Candidate:
    """Fill RAM with the experts that are left, from the last layer on; the rest is on SSD."""
    problem = at.problem
    room = problem.rooms.host.usable_bytes
    if problem.rooms.pool_bytes is not None:
        room = min(
            room, problem.rooms.pool_bytes - problem.rooms.host.margin_bytes - pool_gpu_bytes
        )
    expert_room = room - need.total_bytes if Tier.RAM in problem.strategy.hierarchy else 0
    limit = problem.cargo.ram_expert_limit_bytes
    if limit is not None:
        pinned = problem.cargo.pinned_expert_bytes.get(HOST, 0)
        expert_room = min(expert_room, limit - pinned)
    ram = fill_from_the_end(left, max(0, expert_room), split_layers=problem.strategy.split_layers)
    fits = need.total_bytes <= room
    nothing = tuple(() for _ in left)
    has_room = ram == left and not streaming.is_forced(problem)
    cache = _cache(
        problem,
        nothing if has_room else left,  # what pins put on SSD streams beside what RAM holds
        room - need.total_bytes - (sum_bytes(ram) if has_room else 0),
        host_layers=runs[0].first if runs else problem.cargo.layer_count,
    )
    missed = None
    if cache is not None and not (cache.is_enough or streaming.is_forced(problem)):
        cache, missed = None, cache
    if cache is not None:
        ram = ram if has_room else nothing
        fits = fits and cache.is_enough
    if not problem.may_use_ssd and ram != left:
        ram, fits = left, False
    ram_bytes = sum_bytes(ram)
    return Candidate(
        devices=tuple(gpu.id for gpu in devices),
        runs=runs,
        host_layers=runs[0].first if runs else problem.cargo.layer_count,
        has_staging=staged,
        need=need,
        room_bytes=room,
        ram_parts=ram,
        ssd_parts=tuple(
            tuple(item for item in whole if item not in kept)
            for whole, kept in zip(left, ram, strict=True)
        ),
        ram_expert_bytes=ram_bytes,
        ssd_expert_bytes=sum_bytes(left) - ram_bytes,
        held=tuple(
            Held(
                standing=standing(gpu, problem.machine.host),
                dense_bytes=_dense_bytes(at.freight, run)
                + (problem.cargo.output_bytes + problem.cargo.tied_bytes) * (gpu is devices[-1]),
                expert_bytes=run.expert_bytes,
            )
            for gpu, run in zip(devices, runs, strict=True)
        ),
        bandwidth_bytes_per_s=min(
            (gpu.memory_bandwidth_bytes_per_s or 0.0 for gpu in devices), default=0.0
        ),
        fits=fits,
        cache=cache,
        missed_cache=missed,
    )


def _cache(
    problem: Problem, left: tuple[PartBytes, ...], room_bytes: int, *, host_layers: int
) -> CacheRoom | None:
    """Return the cache through which experts may stream, None where they are mapped or held."""
    if Tier.SSD not in problem.strategy.hierarchy or streaming.obstacle(problem) is not None:
        return None
    return streaming.cache_room(problem, left, max(0, room_bytes), host_layers=host_layers)
