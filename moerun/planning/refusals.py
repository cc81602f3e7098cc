"""Saying no: what is missing, what takes the most, and which changes were tried and fit.

Knows: the changes worth trying, and that each is planned again before it is offered.
Does not know: how errors are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from moerun.errors import DoesNotFit, PinConflict
from moerun.machine.description import HOST, DeviceId
from moerun.planning.assembly import layer_placements, ledger
from moerun.planning.candidate import Candidate
from moerun.planning.contexts import Choice, choose_context, ladder
from moerun.planning.plan import Charge, ChargeKind, Confidence, Remedy, Shortfall
from moerun.planning.situation import Problem, Situation, gpu_charges, pose
from moerun.planning.slot_packing import SlotRun
from moerun.planning.slots import is_asked
from moerun.planning.strategy import LoadMode, Strategy, StreamingMode, Tier, Toggle
from moerun.planning.streaming import CacheRoom
from moerun.units import MIB, format_gib

_OFFERED: Final = 3
_SMALL_MARGIN_BYTES: Final = 512 * MIB
_SMALL_UBATCH_TOKENS: Final = 128
_FLOOR: Final = "those of one and a half tokens, and all that a micro-batch needs of a layer"


def refuse(problem: Problem, choice: Choice) -> NoReturn:
    """Raise PinConflict where pins are the cause, DoesNotFit with checked remedies otherwise."""
    if choice.candidate is None:
        raise _overfilled(problem, choice.at)
    if problem.strategy.pins and _fits(problem, replace(problem.strategy, pins=())):
        raise PinConflict(
            f"{_what_is_missing(problem, choice.at, choice.candidate)}; without the pins it fits",
            hint="drop pins to the cpu, or pin fewer tensors",
        )
    if choice.candidate.short_slot_bytes:
        raise _slots_do_not_fit(problem, choice, choice.candidate)
    cache = choice.candidate.cache
    if cache is not None and cache.is_share and not cache.is_enough:
        raise _share_below_floor(problem, cache)
    if _has_no_place(problem, choice.candidate):
        raise _no_place(problem, choice, choice.candidate)
    remedies = tuple(_checked_remedies(problem, choice))
    shortfall = Shortfall(
        device=HOST,
        needed_bytes=choice.candidate.room_bytes + choice.candidate.short_bytes,
        available_bytes=choice.candidate.room_bytes,
        largest_charges=_largest(choice.at, choice.candidate, HOST),
        would_fit=remedies,
    )
    raise DoesNotFit(
        _what_is_missing(problem, choice.at, choice.candidate),
        shortfalls=(shortfall,),
        hint=_hint(remedies, choice.candidate.short_bytes),
    )


def _has_no_place(problem: Problem, candidate: Candidate) -> bool:
    """Whether experts are left that no tier may hold, however much memory there is."""
    if problem.may_use_ssd or not candidate.ram_expert_bytes:
        return False
    return Tier.RAM not in problem.strategy.hierarchy or candidate.short_bytes <= 0


def _no_place(problem: Problem, choice: Choice, candidate: Candidate) -> DoesNotFit | PinConflict:
    """Say which experts find no room in VRAM while the strategy closes the tiers below."""
    left, total = candidate.ram_expert_bytes, problem.cargo.expert_bytes
    limit = problem.cargo.ram_expert_limit_bytes
    told = (
        f"{format_gib(left)} of the {format_gib(total)} of experts of {problem.model.name} find no "
        "room in VRAM, and "
    )
    if Tier.RAM in problem.strategy.hierarchy and limit is not None:
        return PinConflict(
            f"{told}expert_residency allows {format_gib(limit)} of them in RAM, and nothing may "
            "stay on SSD; raise the share in RAM or let experts stay on SSD"
        )
    remedies = tuple(_checked_remedies(problem, choice))
    device = candidate.devices[-1] if candidate.devices else HOST
    return DoesNotFit(
        f"{told}neither RAM nor SSD may hold them",
        shortfalls=(
            Shortfall(
                device=device,
                needed_bytes=total,
                available_bytes=total - left,
                largest_charges=_largest(choice.at, candidate, device),
                would_fit=remedies,
            ),
        ),
        hint=_hint(remedies, left),
    )


def _slots_do_not_fit(problem: Problem, choice: Choice, candidate: Candidate) -> DoesNotFit:
    """Say how many slots are wanted, what they take, and what is left for them."""
    wish = problem.slots
    assert wish is not None, "a candidate lacks room for slots"
    remedies = tuple(_checked_remedies(problem, choice))
    least, labels = wish.least_slots, ", ".join(map(problem.machine.label, candidate.devices))
    needed = least * wish.slot_bytes
    left = max(0, needed - candidate.short_slot_bytes)
    why = "expert_slots asks for them; beyond what is free, a driver would spill to RAM unsaid"
    if not problem.strategy.expert_slots:
        why = f"a token uses {problem.model.experts_used} of each layer, and fewer hardly hit"
    device = max(zip(candidate.slots, candidate.devices, strict=True), key=_shortage)[1]
    return DoesNotFit(
        f"{least} slots for experts in each layer of {problem.model.name} take "
        f"{format_gib(needed)}, and {format_gib(left)} are left on {labels} beside dense weights, "
        f"{choice.at.context_tokens:,} tokens of context, buffers and margin ({why})",
        shortfalls=(
            Shortfall(
                device=device,
                needed_bytes=needed,
                available_bytes=left,
                largest_charges=_largest(choice.at, candidate, device),
                would_fit=remedies,
            ),
        ),
        hint=_hint(remedies, candidate.short_slot_bytes),
    )


def _shortage(pair: tuple[SlotRun, DeviceId]) -> int:
    return pair[0].short_bytes


def _share_below_floor(problem: Problem, cache: CacheRoom) -> PinConflict:
    """Say that a wanted share in RAM is too small for the cache that was asked for."""
    total = problem.cargo.expert_bytes
    return PinConflict(
        f"expert_residency leaves {format_gib(cache.cache_bytes)} of the {format_gib(total)} of "
        f"experts of {problem.model.name} to a cache in RAM, which has to have "
        f"{format_gib(cache.minimum_bytes)} ({_FLOOR})",
        hint="raise the share in RAM, lower --ubatch, or pass --streaming off",
    )


def _what_is_missing(problem: Problem, at: Situation, candidate: Candidate) -> str:
    needed = candidate.room_bytes + candidate.short_bytes
    margin = problem.rooms.host.margin_bytes
    what = "what every token needs" if problem.may_use_ssd else "what stays off the GPUs"
    if candidate.cache is not None:
        what += (
            f", and the {format_gib(candidate.cache.minimum_bytes)} that a cache of experts has to "
            f"have ({_FLOOR})"
        )
    return (
        f"{problem.model.name} does not fit: {what} with {at.context_tokens:,} tokens of context "
        f"takes {format_gib(needed)} of RAM, and {format_gib(max(0, candidate.room_bytes))} may be "
        f"used ({problem.rooms.host.budget.because}, less a margin of {format_gib(margin)})"
    )


def _hint(remedies: tuple[Remedy, ...], short_bytes: int) -> str:
    if remedies:
        return "this was checked to fit: " + "; or ".join(
            f"{remedy.flag} ({remedy.explanation})" for remedy in remedies
        )
    return (
        f"no setting makes it fit; {format_gib(short_bytes)} more memory would, "
        "or a smaller quantization of the model"
    )


def _overfilled(problem: Problem, at: Situation) -> PinConflict:
    """Say which GPU has more pinned to it than it can take."""
    for room in problem.rooms.gpus:
        pinned = problem.cargo.pinned_bytes(room.device)
        if not pinned:
            continue
        charges = gpu_charges(
            at, problem.machine.gpu(room.device), has_output=False, has_staging=False
        )
        fixed = sum(sized.size_bytes for _, sized in charges)
        left = max(0, room.usable_bytes - fixed)
        if pinned > left:
            return PinConflict(
                f"the pins put {format_gib(pinned)} on {problem.machine.label(room.device)}, and "
                f"{format_gib(left)} are left there ({room.budget.because}, less a margin of "
                f"{format_gib(room.margin_bytes)} and {format_gib(fixed)} for driver and compute "
                "buffers); pin fewer tensors"
            )
    labels = ", ".join(
        problem.machine.label(room.device)
        for room in problem.rooms.gpus
        if problem.cargo.pinned_bytes(room.device)
    )
    return PinConflict(
        f"the pins leave no room on {labels} for a layer or the output beside them; pin fewer "
        "tensors, or to fewer GPUs"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    remedy: Remedy
    strategy: Strategy


def _checked_remedies(problem: Problem, choice: Choice) -> Iterator[Remedy]:
    """Yield the first few changes with which the model was planned and fits."""
    shorter = _shorter_contexts(problem.strategy, choice.at.context_tokens)
    longest = next((change for change in shorter if _fits(problem, change.strategy)), None)
    found = 0 if longest is None else 1
    if longest is not None:
        yield longest.remedy
    for change in _changes(problem.strategy):
        if found < _OFFERED and _fits(problem, change.strategy):
            yield change.remedy
            found += 1


def _changes(strategy: Strategy) -> Iterator[_Change]:
    for added in ((Tier.RAM,), (Tier.SSD,), (Tier.RAM, Tier.SSD)):
        if not set(added) & set(strategy.hierarchy):
            tiers = tuple(t for t in Tier if t in (*strategy.hierarchy, *added))
            yield _Change(
                remedy=Remedy(
                    flag="--hierarchy " + ",".join(tiers),
                    explanation=f"experts that find no room may lie in {' or '.join(added)}",
                ),
                strategy=replace(strategy, hierarchy=tiers),
            )
    if strategy.streaming in (StreamingMode.PAGING, StreamingMode.CACHE):
        yield _Change(
            remedy=Remedy(
                flag="--streaming auto", explanation="the system reads what it maps instead"
            ),
            strategy=replace(strategy, streaming=StreamingMode.AUTO),
        )
    if strategy.expert_slots:
        yield _Change(
            remedy=Remedy(flag="--expert-slots auto", explanation="as many slots as fit"),
            strategy=replace(strategy, expert_slots=None),
        )
    elif is_asked(strategy):
        yield _Change(
            remedy=Remedy(
                flag="--streaming auto", explanation="whole layers of experts in VRAM instead"
            ),
            strategy=replace(strategy, streaming=StreamingMode.AUTO),
        )
    if strategy.load_mode not in (None, LoadMode.MMAP):
        yield _Change(
            remedy=Remedy(flag="--load-mode mmap", explanation="the file is mapped, not copied"),
            strategy=replace(strategy, load_mode=LoadMode.MMAP),
        )
    if strategy.ram_limit is not None:
        yield _Change(
            remedy=Remedy(flag="--ram auto", explanation="all available memory may be used"),
            strategy=replace(strategy, ram_limit=None),
        )
    if strategy.vram_limit is not None:
        yield _Change(
            remedy=Remedy(flag="--vram auto", explanation="all free VRAM may be used"),
            strategy=replace(strategy, vram_limit=None),
        )
    yield from _smaller(strategy)


def _shorter_contexts(strategy: Strategy, context_tokens: int) -> Iterator[_Change]:
    """Yield contexts below a fixed one, longest first."""
    if strategy.context_tokens is None:
        return
    for tokens in reversed(ladder(context_tokens)):
        if tokens < context_tokens:
            yield _Change(
                remedy=Remedy(flag=f"--ctx {tokens}", explanation=f"{tokens:,} tokens of context"),
                strategy=replace(strategy, context_tokens=tokens),
            )


def _smaller(strategy: Strategy) -> Iterator[_Change]:
    is_default = (strategy.kv_encoding_k, strategy.kv_encoding_v) == ("F16", "F16")
    if is_default and strategy.flash_attention is not Toggle.OFF:
        yield _Change(
            remedy=Remedy(flag="--kv-type q8_0", explanation="KV cache of half the size"),
            strategy=replace(strategy, kv_encoding_k="Q8_0", kv_encoding_v="Q8_0"),
        )
    margin = strategy.host_margin_bytes
    if (strategy.default_host_margin_bytes if margin is None else margin) > _SMALL_MARGIN_BYTES:
        yield _Change(
            remedy=Remedy(flag="--host-margin 512M", explanation="less memory is kept free"),
            strategy=replace(strategy, host_margin_bytes=_SMALL_MARGIN_BYTES),
        )
    if strategy.ubatch_tokens > _SMALL_UBATCH_TOKENS:
        yield _Change(
            remedy=Remedy(
                flag=f"--ubatch {_SMALL_UBATCH_TOKENS}",
                explanation="smaller compute buffers, prompts are read slower",
            ),
            strategy=replace(strategy, ubatch_tokens=_SMALL_UBATCH_TOKENS),
        )


def _fits(problem: Problem, strategy: Strategy) -> bool:
    """Whether the model fits with another strategy: plans it."""
    try:
        return choose_context(pose(problem.model, problem.machine, strategy, problem.measured)).fits
    except PinConflict:
        return False


def _largest(at: Situation, candidate: Candidate, device: DeviceId) -> tuple[Charge, ...]:
    """Return the kinds of charge that take the most memory on a device, largest first."""
    written = ledger(at, candidate, layer_placements(at, candidate))
    charges = [
        Charge(device=device, kind=kind, size_bytes=size, confidence=Confidence.DERIVED)
        for kind, size in written.by_kind(device)
        if kind is not ChargeKind.MARGIN
    ]
    return tuple(sorted(charges, key=lambda charge: -charge.size_bytes)[:4])
