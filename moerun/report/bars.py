"""One bar for each device: what a plan charges to it, by kind, beside what is left.

Knows: shades, colours and words for kinds of charges.
Does not know: how charges were found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from rich.text import Text

from moerun.machine.description import HOST, SSD, DeviceId, Machine, StorageKind
from moerun.model.description import Model
from moerun.planning.plan import ChargeKind, Plan
from moerun.planning.strategy import Tier
from moerun.planning.summary import tier_of
from moerun.report.console import Glyphs, Page, flow
from moerun.report.plain import printable
from moerun.units import format_gib

TIER_STYLES: Final = {Tier.VRAM: "green", Tier.RAM: "yellow", Tier.SSD: "magenta"}
_INDENT: Final = 6
_STORAGE_NAMES: Final = {
    StorageKind.NVME: "NVMe",
    StorageKind.SSD: "SSD",
    StorageKind.DISK: "disk",
    StorageKind.NETWORK: "network storage",
    StorageKind.UNKNOWN: "storage",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a bar, and the words for it below the bar."""

    glyph: str
    style: str
    size_bytes: int
    words: str


def device_lines(model: Model, machine: Machine, plan: Plan, page: Page) -> Iterator[Text]:
    """Yield heading, bar and figures of every device that the plan knows."""
    for gpu in machine.gpus:
        name = printable(gpu.name)
        if gpu.id in plan.devices:
            yield from _memory_lines(machine, plan, gpu.id, name, page)
        else:
            yield _heading(machine.label(gpu.id), f"{name}, not used", "", page)
    host = printable(machine.host.processor) or machine.host.system
    yield from _memory_lines(machine, plan, HOST, host, page)
    yield from _storage_lines(model, machine, plan, page)


def cell_counts(sizes: tuple[int, ...], cells: int) -> tuple[int, ...]:
    """Share cells by size; what is not zero gets at least one as long as there are enough."""
    total = sum(sizes)
    if not total:
        return tuple(0 for _ in sizes)
    counts = [max(1, size * cells // total) if size else 0 for size in sizes]
    while sum(counts) > cells and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
    # What rounding left over goes to those who lost most by it.
    losses = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * cells % total))
    for index in losses[: max(0, cells - sum(counts))]:
        counts[index] += 1
    return tuple(counts)


def device_segments(
    machine: Machine, plan: Plan, device: DeviceId, glyphs: Glyphs
) -> tuple[Segment, ...]:
    """Return the stretches of a device's bar; they add up to all of its memory."""
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for kind, size in plan.ledger.by_kind(device):
        look = _look(kind, device, glyphs)
        groups.setdefault(look, []).append((_kind_words(kind, device), size))
    segments = [
        Segment(
            glyph=glyph,
            style=style,
            size_bytes=sum(size for _, size in found),
            words=", ".join(f"{words} {format_gib(size)}" for words, size in found),
        )
        for (glyph, style), found in groups.items()
    ]
    budget = next((b for b in plan.budgets if b.device == device), None)
    total_bytes = budget.total_bytes if budget is not None else 0
    usable_bytes = budget.budget_bytes if budget is not None else 0
    sharers = _sharers(machine, plan, device)
    shared_bytes = sum(plan.ledger.total_bytes(sharer) for sharer in sharers)
    free_bytes = max(0, usable_bytes - plan.ledger.total_bytes(device) - shared_bytes)
    taken_bytes = max(0, total_bytes - usable_bytes)
    taken = "above the limit" if _is_limited(machine, device, usable_bytes) else "in use now"
    names = " and ".join(machine.label(sharer) for sharer in sharers)
    return (
        *segments,
        _plain_segment(glyphs.shared, shared_bytes, f"used by {names}"),
        _plain_segment(glyphs.free, free_bytes, "free"),
        _plain_segment(glyphs.taken, taken_bytes, taken),
    )


def _memory_lines(
    machine: Machine, plan: Plan, device: DeviceId, name: str, page: Page
) -> Iterator[Text]:
    segments = device_segments(machine, plan, device, page.glyphs)
    total_bytes = sum(segment.size_bytes for segment in segments)
    used = f"{format_gib(plan.ledger.used_bytes(device))} of {format_gib(total_bytes)}"
    yield _heading(machine.label(device), name, used, page)
    yield _bar(segments, page)
    yield from flow((_words(s) for s in segments if s.size_bytes), page, indent=_INDENT)


def _storage_lines(model: Model, machine: Machine, plan: Plan, page: Page) -> Iterator[Text]:
    on_ssd_bytes = plan.ledger.total_bytes(SSD)
    if not on_ssd_bytes:
        return
    glyphs = page.glyphs
    segments = (
        Segment(
            glyph=glyphs.experts,
            style=TIER_STYLES[Tier.SSD],
            size_bytes=on_ssd_bytes,
            words="experts, "
            + ("read as they are needed" if plan.streaming is None else "streamed through RAM"),
        ),
        Segment(
            glyph=glyphs.free,
            style="",
            size_bytes=max(0, model.file_bytes - on_ssd_bytes),
            words="in memory",
        ),
    )
    share = f"{format_gib(on_ssd_bytes)} of {format_gib(model.file_bytes)}"
    name = f"{_STORAGE_NAMES[machine.storage.kind]} {printable(machine.storage.path)}"
    yield _heading(machine.label(SSD), name, share, page)
    yield _bar(segments, page)
    yield from flow((_words(segments[0]),), page, indent=_INDENT)


def _plain_segment(glyph: str, size_bytes: int, words: str) -> Segment:
    return Segment(
        glyph=glyph,
        style="dim",
        size_bytes=size_bytes,
        words=f"{words} {format_gib(size_bytes)}",
    )


def _sharers(machine: Machine, plan: Plan, device: DeviceId) -> tuple[DeviceId, ...]:
    """Return the devices of the plan whose charges lie in the same memory."""
    if device != HOST:
        return (HOST,) if machine.gpu(device).shares_host_memory else ()
    return tuple(used for used in plan.devices if machine.gpu(used).shares_host_memory)


def _is_limited(machine: Machine, device: DeviceId, usable_bytes: int) -> bool:
    """Whether a limit, not other programs, keeps the rest of the device from us."""
    if device == HOST:
        return usable_bytes < machine.host.available_bytes
    return usable_bytes < machine.gpu(device).free_bytes


def _look(kind: ChargeKind, device: DeviceId, glyphs: Glyphs) -> tuple[str, str]:
    match kind:
        case ChargeKind.DENSE_WEIGHTS:
            return glyphs.dense, "blue"
        case ChargeKind.EXPERT_WEIGHTS:
            return glyphs.experts, TIER_STYLES[tier_of(device)]
        case ChargeKind.EXPERT_CACHE | ChargeKind.EXPERT_SLOTS:
            return glyphs.experts, TIER_STYLES[tier_of(device)]
        case ChargeKind.KV_CACHE | ChargeKind.RECURRENT_STATE:
            return glyphs.state, "cyan"
        case ChargeKind.COMPUTE | ChargeKind.RUNTIME | ChargeKind.STAGING:
            return glyphs.fixed, ""  # the terminal's own colour: white is lost on white
        case ChargeKind.MARGIN:
            return glyphs.margin, "dim"
        case _:
            assert_never(kind)


def _kind_words(kind: ChargeKind, device: DeviceId) -> str:
    match kind:
        case ChargeKind.DENSE_WEIGHTS:
            return "dense"
        case ChargeKind.EXPERT_WEIGHTS:
            return "experts"
        case ChargeKind.KV_CACHE:
            return "KV cache"
        case ChargeKind.RECURRENT_STATE:
            return "state"
        case ChargeKind.COMPUTE:
            return "compute"
        case ChargeKind.RUNTIME:
            return "program" if device == HOST else "driver"
        case ChargeKind.STAGING:
            return "staging"
        case ChargeKind.EXPERT_CACHE:
            return "cache of experts"
        case ChargeKind.EXPERT_SLOTS:
            return "slots for experts"
        case ChargeKind.MARGIN:
            return "margin"
        case _:
            assert_never(kind)


def _heading(label: str, name: str, figures: str, page: Page) -> Text:
    """Return label and name, with figures at the right end; a long name is cut."""
    room = page.columns - _INDENT - len(figures) - 2
    if page.wraps and len(name) > room:
        name = name[: max(0, room - 3)] + "..."
    line = Text(label.ljust(_INDENT), style="bold")
    line.append(name, style="default not bold")
    gap = max(2, page.columns - line.cell_len - len(figures))
    if figures:
        line.append(" " * gap + figures, style="default not bold")
    return line


def _bar(segments: tuple[Segment, ...], page: Page) -> Text:
    cells = page.columns - _INDENT
    line = Text(" " * _INDENT)
    counts = cell_counts(tuple(segment.size_bytes for segment in segments), cells)
    for segment, count in zip(segments, counts, strict=True):
        line.append(segment.glyph * count, style=segment.style)
    line.rstrip()
    return line


def _words(segment: Segment) -> Text:
    """Return a glyph and its words; free memory has no glyph to show."""
    text = Text()
    if segment.glyph.strip():
        text.append(segment.glyph, style=segment.style)
        text.append(" ")
    text.append(segment.words)
    return text
