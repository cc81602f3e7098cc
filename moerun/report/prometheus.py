"""The running models as Prometheus reads them: its text format, version 0.0.4.

Names begin with `moerun_`, units are base units (bytes, seconds, shares of 1), counters end in
`_total`.

Knows: names, types, labels and their escapes.
Does not know: how anything was measured, or who scrapes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from moerun.experts.counters import SlotCounters, StreamingSample, Traffic
from moerun.report.streaming_view import (
    ExpertTier,
    elsewhere_of,
    expert_tiers,
    saved_bytes,
)
from moerun.runner.memory_report import MemoryReport
from moerun.runner.records import RunnerRecord

Labels = tuple[tuple[str, str], ...]

# name: type and help, in the order in which they are printed
_METRICS: Final = {
    "moerun_runner_info": ("gauge", "A running model; what describes it is in the labels."),
    "moerun_start_time_seconds": ("gauge", "When the runner started, in seconds since 1970."),
    "moerun_context_tokens": ("gauge", "Tokens that the context holds."),
    "moerun_memory_planned_bytes": ("gauge", "Memory by device and use, as planned."),
    "moerun_memory_reported_bytes": ("gauge", "Memory by device and use, as the engine reports."),
    "moerun_memory_observed_bytes": ("gauge", "Memory of the process by device, as observed."),
    "moerun_host_resident_bytes": ("gauge", "Host memory of the process."),
    "moerun_host_private_bytes": ("gauge", "Host memory that is no page of a file."),
    "moerun_host_model_pages_bytes": ("gauge", "Pages of the model's files in memory."),
    "moerun_expert_limit_bytes": ("gauge", "Bound of all host memory of the process."),
    "moerun_expert_cache_bytes": ("gauge", "Bytes that experts may take in RAM now."),
    "moerun_expert_tier_bytes": ("gauge", "Bytes of experts by tier, each expert once."),
    "moerun_expert_tier_experts": ("gauge", "Experts by tier, each once."),
    "moerun_expert_resident_bytes": ("gauge", "Expert pages in memory, as the system tells."),
    "moerun_expert_saved_bytes": ("gauge", "Memory saved against full loading."),
    "moerun_storage_read_bytes_total": ("counter", "Bytes read past the page cache."),
    "moerun_storage_busy_seconds_total": (
        "counter",
        "Time in which at least one such read was under way.",
    ),
    "moerun_ssd_cache_bytes": ("gauge", "Bytes of the model that lie in the SSD cache."),
    "moerun_ssd_cache_read_bytes_total": ("counter", "Bytes read from the SSD cache."),
    "moerun_ssd_cache_written_bytes_total": ("counter", "Bytes copied to the SSD cache."),
    "moerun_expert_hits_total": ("counter", "Requests for experts that were held."),
    "moerun_expert_misses_total": ("counter", "Requests for experts that had to be read."),
    "moerun_expert_read_bytes_total": ("counter", "Bytes of experts read from storage."),
    "moerun_expert_swaps_in_total": ("counter", "Experts that came into RAM."),
    "moerun_expert_swaps_out_total": ("counter", "Experts that left RAM."),
    "moerun_expert_stall_seconds_total": ("counter", "Time that tokens waited for experts."),
    "moerun_tokens_total": ("counter", "Tokens that went through all layers."),
    "moerun_expert_recent_hit_ratio": ("gauge", "Share of requests held, over the last minute."),
    "moerun_expert_switch_quantile_seconds": (
        "gauge",
        "Time from the request for a missing expert until it could be used; quantile 1 is the "
        "longest.",
    ),
    "moerun_expert_switches_total": ("counter", "Missing experts whose time was taken."),
    "moerun_prefetch_predicted_total": ("counter", "Experts that were foretold."),
    "moerun_prefetch_correct_total": ("counter", "Foretold experts that the router chose."),
    "moerun_prefetch_read_bytes_total": ("counter", "Bytes read ahead."),
    "moerun_prefetch_useful_bytes_total": ("counter", "Bytes read ahead that were used."),
    "moerun_expert_slots": ("gauge", "Slots for experts in the memory of devices."),
    "moerun_expert_slots_held": ("gauge", "Slots that hold an expert."),
    "moerun_expert_slot_bytes": ("gauge", "Memory of a device that slots take."),
    "moerun_expert_slot_tokens_total": ("counter", "Tokens that used slots."),
    "moerun_expert_slot_hits_total": ("counter", "Requests for experts that were in a slot."),
    "moerun_expert_slot_uploads_total": ("counter", "Experts that were uploaded to a slot."),
    "moerun_expert_slot_upload_bytes_total": ("counter", "Bytes uploaded to slots."),
    "moerun_expert_slot_upload_seconds_total": ("counter", "Time that tokens waited for that."),
    "moerun_major_page_faults_total": ("counter", "Page faults that waited for storage."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """One line: a name, its labels, and a number."""

    name: str
    value: float
    labels: Labels = field(default=())


def prometheus_text(runners: Iterable[tuple[RunnerRecord, MemoryReport]]) -> str:
    """Return all values, those of one name together below their type and help."""
    by_name: dict[str, list[str]] = {}
    for record, report in runners:
        whose = (("model", record.model_name), ("pid", str(record.pid)))
        for value in _values(record, report):
            labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in whose + value.labels)
            line = f"{value.name}{{{labels}}} {_number(value.value)}"
            by_name.setdefault(value.name, []).append(line)
    lines: list[str] = []
    for name, (kind, sentence) in _METRICS.items():
        if found := by_name.pop(name, None):
            lines += [f"# HELP {name} {sentence}", f"# TYPE {name} {kind}", *found]
    assert not by_name, f"these have no type: {sorted(by_name)}"
    return "".join(f"{line}\n" for line in lines)


def _values(record: RunnerRecord, report: MemoryReport) -> Iterator[_Value]:
    sample = record.last_streaming
    about = (
        ("mode", record.mode),
        ("load_mode", record.load_mode),
        ("engine_version", record.engine_version),
        ("mechanism", sample.mechanism if sample is not None else ""),
        ("policy", sample.policy if sample is not None else ""),
    )
    yield _Value(name="moerun_runner_info", value=1, labels=about)
    yield _Value(name="moerun_start_time_seconds", value=record.started_at_s)
    yield _Value(name="moerun_context_tokens", value=record.context_tokens)
    yield from _memory_values(record, report)
    if sample is not None:
        devices = {str(device): label for device, label in record.labels}
        yield from _streaming_values(sample, elsewhere_of(record, report), devices)


def _memory_values(record: RunnerRecord, report: MemoryReport) -> Iterator[_Value]:
    names = dict(record.labels)
    for device in report.devices:
        label = ("device", names.get(device.device, device.device))
        for row in device.rows:
            labels = (label, ("use", row.kind.value))
            yield _Value(name="moerun_memory_planned_bytes", value=row.planned_bytes, labels=labels)
            if row.reported_bytes is not None:
                yield _Value(
                    name="moerun_memory_reported_bytes", value=row.reported_bytes, labels=labels
                )
        if device.observed_bytes is not None:
            yield _Value(
                name="moerun_memory_observed_bytes", value=device.observed_bytes, labels=(label,)
            )
    if report.host is not None:
        yield _Value(name="moerun_host_resident_bytes", value=report.host.resident_bytes)
        if report.host.private_bytes is not None:
            yield _Value(name="moerun_host_private_bytes", value=report.host.private_bytes)
        if report.host.model_resident_bytes is not None:
            yield _Value(
                name="moerun_host_model_pages_bytes", value=report.host.model_resident_bytes
            )


def _streaming_values(
    sample: StreamingSample, elsewhere: tuple[ExpertTier, ...], devices: Mapping[str, str]
) -> Iterator[_Value]:
    yield _Value(name="moerun_expert_limit_bytes", value=sample.limit_bytes)
    yield _Value(name="moerun_expert_cache_bytes", value=sample.cache_bytes)
    for tier in expert_tiers(sample, elsewhere):
        labels = (("tier", tier.label),)
        yield _Value(name="moerun_expert_tier_bytes", value=tier.held_bytes, labels=labels)
        if tier.experts is not None:
            yield _Value(name="moerun_expert_tier_experts", value=tier.experts, labels=labels)
    if sample.resident_bytes is not None:
        yield _Value(name="moerun_expert_resident_bytes", value=sample.resident_bytes)
    yield _Value(name="moerun_expert_saved_bytes", value=saved_bytes(sample))
    if sample.storage_read_bytes is not None and sample.storage_busy_s is not None:
        yield _Value(name="moerun_storage_read_bytes_total", value=sample.storage_read_bytes)
        yield _Value(name="moerun_storage_busy_seconds_total", value=sample.storage_busy_s)
    if (cache := sample.ssd_cache) is not None:
        yield _Value(name="moerun_ssd_cache_bytes", value=cache.held_bytes)
        yield _Value(name="moerun_ssd_cache_read_bytes_total", value=cache.read_bytes)
        yield _Value(name="moerun_ssd_cache_written_bytes_total", value=cache.written_bytes)
    yield from _traffic_values("decode", sample.decode)
    yield from _traffic_values("prefill", sample.prefill)
    if sample.recent.hit_fraction is not None:
        yield _Value(name="moerun_expert_recent_hit_ratio", value=sample.recent.hit_fraction)
    if sample.latency is not None:
        name = "moerun_expert_switch_quantile_seconds"
        for quantile, time_s in (
            ("0.5", sample.latency.p50_s),
            ("0.99", sample.latency.p99_s),
            ("1", sample.latency.largest_s),
        ):
            yield _Value(name=name, value=time_s, labels=(("quantile", quantile),))
        yield _Value(name="moerun_expert_switches_total", value=sample.latency.count)
    if sample.preloading is not None:
        ahead = sample.preloading
        yield _Value(name="moerun_prefetch_predicted_total", value=ahead.predicted)
        yield _Value(name="moerun_prefetch_correct_total", value=ahead.correct)
        yield _Value(name="moerun_prefetch_read_bytes_total", value=ahead.read_bytes)
        yield _Value(name="moerun_prefetch_useful_bytes_total", value=ahead.useful_bytes)
    if sample.slots is not None:
        yield from _slot_values(sample.slots, devices)
    if sample.major_faults is not None:
        yield _Value(name="moerun_major_page_faults_total", value=sample.major_faults)


def _slot_values(slots: SlotCounters, devices: Mapping[str, str]) -> Iterator[_Value]:
    for device, size_bytes in slots.device_bytes:
        labels = (("device", devices.get(device, device)),)
        yield _Value(name="moerun_expert_slot_bytes", value=size_bytes, labels=labels)
    for name, value in (
        ("moerun_expert_slots", slots.slots),
        ("moerun_expert_slots_held", slots.held_experts),
        ("moerun_expert_slot_tokens_total", slots.tokens),
        ("moerun_expert_slot_hits_total", slots.hits),
        ("moerun_expert_slot_uploads_total", slots.uploads),
        ("moerun_expert_slot_upload_bytes_total", slots.upload_bytes),
        ("moerun_expert_slot_upload_seconds_total", slots.upload_s),
    ):
        yield _Value(name=name, value=value)


def _traffic_values(phase: str, traffic: Traffic) -> Iterator[_Value]:
    labels = (("phase", phase),)
    for name, value in (
        ("moerun_expert_hits_total", traffic.hits),
        ("moerun_expert_misses_total", traffic.misses),
        ("moerun_expert_read_bytes_total", traffic.read_bytes),
        ("moerun_expert_swaps_in_total", traffic.experts_in),
        ("moerun_expert_swaps_out_total", traffic.experts_out),
        ("moerun_expert_stall_seconds_total", traffic.stall_s),
        ("moerun_tokens_total", traffic.tokens),
    ):
        yield _Value(name=name, value=value, labels=labels)


def _escaped(text: str) -> str:
    """Return a label's value as the format wants it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
