"""What streaming does, for people: what lies where, what is read and waited for, and the heat map.

Knows: labels, columns and units.
Does not know: how anything was counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from rich.text import Text

from moerun.experts.counters import SlotCounters, SsdCacheUse, StreamingSample, Traffic
from moerun.machine.description import HOST, SSD
from moerun.report.console import Page, labelled
from moerun.report.heat_map import heat_lines
from moerun.report.plain import printable
from moerun.report.timing_view import format_duration, label_line
from moerun.runner.memory_report import MemoryReport, RowKind
from moerun.runner.records import RunnerRecord
from moerun.units import format_gib

_BLANK: Final = "-"
_INDENT: Final = 22
_BAR_CELLS: Final = 40
_MEGABYTE: Final = 1_000_000
_GIGABYTE: Final = 1_000_000_000
_WIDTHS: Final = (20, 17, 17, 17)
NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTier:
    """The experts of one tier; their count is None where only their bytes are known."""

    label: str
    held_bytes: int
    experts: int | None


def streaming_lines(
    sample: StreamingSample,
    page: Page,
    *,
    is_coloured: bool,
    elsewhere: Sequence[ExpertTier] = (),
    labels: Mapping[str, str] = NO_LABELS,
) -> Iterator[Text]:
    """Yield all of a sample; `elsewhere` are experts that do not stream, as those on GPUs.

    `labels` are the names of devices for people.
    """
    title = Text("experts", style="bold")
    title.append(f"  {sample.mechanism}, {sample.policy}", style="default not bold")
    yield title
    yield from _tier_lines(sample, page, elsewhere)
    yield Text()
    yield from _traffic_lines(sample)
    yield Text()
    for label, sentence in streaming_figures(sample, with_traffic=False, labels=labels):
        yield from labelled(f"{label}:", sentence, page, indent=_INDENT)
    if sample.heat:
        yield Text()
        yield from heat_lines(sample.heat, page, is_coloured=is_coloured)


def verbose_lines(sample: StreamingSample) -> tuple[str, ...]:
    """Return the counters as lines after the timing block."""
    return tuple(
        label_line(label, printable(sentence))
        for label, sentence in streaming_figures(sample, with_traffic=True)
    )


def expert_tiers(
    sample: StreamingSample, elsewhere: Sequence[ExpertTier] = ()
) -> tuple[ExpertTier, ...]:
    """Return where experts are, each once: those in RAM, and those on SSD alone."""
    return (
        *elsewhere,
        ExpertTier(label="ram", held_bytes=sample.held_bytes, experts=sample.held_experts),
        ExpertTier(
            label="ssd",
            held_bytes=sample.expert_bytes - sample.held_bytes,
            experts=sample.expert_count - sample.held_experts,
        ),
    )


def elsewhere_of(record: RunnerRecord, report: MemoryReport) -> tuple[ExpertTier, ...]:
    """Return the experts on devices that hold all of theirs."""
    labels = dict(record.labels)
    return tuple(
        ExpertTier(
            label=labels.get(device.device, device.device),
            held_bytes=row.planned_bytes,
            experts=None,
        )
        for device in report.devices
        if device.device not in (HOST, SSD)
        for row in device.rows
        if row.kind is RowKind.EXPERTS and row.planned_bytes
    )


def streaming_figures(
    sample: StreamingSample, *, with_traffic: bool, labels: Mapping[str, str] = NO_LABELS
) -> Iterator[tuple[str, str]]:
    """Yield label and sentence of every figure that has one value; `labels` name devices."""
    if with_traffic:
        yield "experts", f"{sample.mechanism}, {sample.policy}"
        yield "experts held", _held(sample)
        yield "expert hit rate", _split(sample, _hit_rate)
        yield "read from SSD", _split(sample, _read_rate)
        yield "waited for experts", _split(sample, _stall)
        yield (
            "experts in and out",
            (
                f"{sample.decode.experts_in + sample.prefill.experts_in:,} in, "
                f"{sample.decode.experts_out + sample.prefill.experts_out:,} out"
            ),
        )
    yield "why", printable(sample.because)
    if sample.slots is not None:
        yield from _slot_figures(sample, sample.slots, labels)
    if sample.slots is None or sample.cache_bytes < sample.expert_bytes:
        yield "cache", _cache(sample)
    yield "expert switch", _latency(sample)
    if sample.storage_bytes_per_s is not None:
        yield "SSD", _storage(sample)
    if sample.ssd_cache is not None:
        yield "SSD cache", _ssd_cache(sample.ssd_cache)
    yield "reading ahead", _preloading(sample)
    if sample.major_faults is not None:
        yield "page faults", f"{sample.major_faults:,} that waited for storage"
    yield "memory saved", _saved(sample)
    for note in sample.notes:
        yield "note", printable(note)


def saved_bytes(sample: StreamingSample) -> int:
    """Return what is not in memory that would be if the whole model were."""
    return max(0, sample.expert_bytes - sample.held_bytes)


def _tier_lines(
    sample: StreamingSample, page: Page, elsewhere: Sequence[ExpertTier]
) -> Iterator[Text]:
    tiers = expert_tiers(sample, elsewhere)
    total = sum(tier.held_bytes for tier in tiers) or 1
    for tier in tiers:
        share = tier.held_bytes / total
        cells = max(1, round(share * _BAR_CELLS)) if tier.held_bytes else 0
        line = Text(f"{printable(tier.label):<6}")
        line.append(
            page.glyphs.experts * cells, style="magenta" if tier.label == "ssd" else "green"
        )
        line.append(page.glyphs.margin * (_BAR_CELLS - cells), style="dim")
        count = "" if tier.experts is None else f"  {tier.experts:,} experts"
        line.append(f" {format_gib(tier.held_bytes)}  {share:.1%}{count}")
        yield line


def _traffic_lines(sample: StreamingSample) -> Iterator[Text]:
    columns = (sample.decode, sample.prefill, sample.recent)
    rows = (
        ("", "decode", "prefill", "last minute"),
        ("hit rate", *map(_hit_rate, columns)),
        ("experts in", *(_per_s(t.experts_in, t) for t in columns)),
        ("experts out", *(_per_s(t.experts_out, t) for t in columns)),
        ("read from SSD", *map(_read_rate, columns)),
        ("waited for experts", *map(_stall, columns)),
        ("tokens", *(f"{t.tokens:,}" for t in columns)),
    )
    for row in rows:
        cells = [row[0].ljust(_WIDTHS[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], _WIDTHS[1:], strict=True)]
        yield Text("".join(cells).rstrip())


def _held(sample: StreamingSample) -> str:
    return (
        f"{format_gib(sample.held_bytes)} of {format_gib(sample.expert_bytes)} in RAM "
        f"({sample.held_fraction:.1%}), {sample.held_experts:,} of {sample.expert_count:,}"
    )


def _cache(sample: StreamingSample) -> str:
    sentence = (
        f"{format_gib(sample.cache_bytes)} at most now, {format_gib(sample.minimum_bytes)} at "
        f"least, within {format_gib(sample.limit_bytes)} for the whole process"
    )
    if sample.resident_bytes is None:
        return sentence
    return f"{sentence}; the system has {format_gib(sample.resident_bytes)} of experts in memory"


def _slot_figures(
    sample: StreamingSample, slots: SlotCounters, labels: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield what slots hold, hit and move."""
    places = ", ".join(
        f"{format_gib(size_bytes)} on {printable(labels.get(device, device))}"
        for device, size_bytes in slots.device_bytes
    )
    yield (
        "slots",
        f"{slots.held_experts:,} of {slots.slots:,} in {slots.layers} layers hold an expert; "
        f"{places}",
    )
    if slots.hit_fraction is None:
        yield "slot hit rate", "no token used slots yet"
    else:
        yield (
            "slot hit rate",
            f"{slots.hit_fraction:.1%} of {slots.hits + slots.uploads:,} requests of "
            f"{slots.tokens:,} tokens",
        )
        yield "uploads", _uploads(slots)
    share = sample.unslotted_fraction
    if share is not None:
        yield "CPU share", f"{share:.1%} of requests went without slots, as prompts do"


def _uploads(slots: SlotCounters) -> str:
    tokens, rate = max(1, slots.tokens), slots.upload_bytes_per_s
    sentence = (
        f"{slots.uploads / tokens:.1f} experts/token, "
        f"{slots.upload_bytes / tokens / _MEGABYTE:.1f} MB/token, "
        f"{_short(slots.upload_s / tokens)}/token"
    )
    if rate is not None:
        sentence += f" at {rate / _GIGABYTE:.2f} GB/s"
    return sentence + ("" if slots.is_queued else ", one after another")


def _latency(sample: StreamingSample) -> str:
    latency = sample.latency
    if latency is None:
        return "no expert was missing yet"
    return (
        f"p50 {_short(latency.p50_s)}, p99 {_short(latency.p99_s)}, "
        f"longest {_short(latency.largest_s)}, of {latency.count:,}"
    )


def _storage(sample: StreamingSample) -> str:
    read_bytes, bytes_per_s = sample.storage_read_bytes or 0, sample.storage_bytes_per_s or 0.0
    return (
        f"{bytes_per_s / _GIGABYTE:.2f} GB/s while it was read past the page cache, "
        f"{format_gib(read_bytes)} in all"
    )


def _ssd_cache(use: SsdCacheUse) -> str:
    return printable(
        f"{format_gib(use.held_bytes)} of at most {format_gib(use.limit_bytes)} in {use.path}; "
        f"{format_gib(use.read_bytes)} read from it, {format_gib(use.written_bytes)} written to it"
    )


def _preloading(sample: StreamingSample) -> str:
    ahead = sample.preloading
    if ahead is None or ahead.accuracy_fraction is None:
        return "off" if ahead is None or not ahead.experts_per_layer else "nothing foretold yet"
    count = ahead.experts_per_layer
    return (
        f"{f'{count} experts of the next layer' if count else 'off now'}, "
        f"{ahead.accuracy_fraction:.1%} of {ahead.predicted:,} foretold right; "
        f"{format_gib(ahead.useful_bytes)} useful, {format_gib(ahead.wasted_bytes)} wasted"
    )


def _saved(sample: StreamingSample) -> str:
    return (
        f"{format_gib(saved_bytes(sample))} of the {format_gib(sample.full_loading_bytes)} "
        "that full loading holds"
    )


def _split(sample: StreamingSample, figure: Callable[[Traffic], str]) -> str:
    parts = [f"{figure(sample.decode)} in decode"]
    if sample.prefill.tokens:
        parts.append(f"{figure(sample.prefill)} in prefill")
    return ", ".join(parts)


def _hit_rate(traffic: Traffic) -> str:
    fraction = traffic.hit_fraction
    return _BLANK if fraction is None else f"{fraction:.1%}"


def _read_rate(traffic: Traffic) -> str:
    per_token = traffic.read_bytes_per_token
    return _BLANK if per_token is None else f"{per_token / _MEGABYTE:.1f} MB/token"


def _stall(traffic: Traffic) -> str:
    per_token = traffic.stall_s_per_token
    return _BLANK if per_token is None else f"{_short(per_token)}/token"


def _per_s(count: int, traffic: Traffic) -> str:
    return _BLANK if traffic.span_s <= 0 else f"{count / traffic.span_s:,.0f}/s"


def _short(duration_s: float) -> str:
    """Return a duration with three digits, which is as well as it is known."""
    if duration_s >= 1:
        return format_duration(round(duration_s, 2))
    milliseconds = duration_s * 1000
    return f"{milliseconds:.1f}ms" if milliseconds >= 0.1 else f"{milliseconds * 1000:.0f}µs"
