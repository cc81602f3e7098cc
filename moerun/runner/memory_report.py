"""What was planned, what the engine reported and what the system sees, side by side.

The engine reports one buffer for all weights of a device. Expert bytes are exact from the header,
so the report gives experts what the plan gives them and dense weights the rest. A mapped host
buffer spans the file from the first weight to the last that the processor uses: experts left on
SSD are in it, and weights between them that lie on GPUs, which are no memory of the host's.

What can be observed is coarser: on a GPU one figure for the process, on the host the private
memory (caches, compute, the program itself) and the pages of the model's files that are in memory
now. `unaccounted_bytes` is what is observed and no row explains; it is negative while buffers are
reserved and not touched yet.

A cache of experts lays private memory over the mapping. Such pages are counted once, as the
private memory they are, and explained by the weights that they hold.

Knows: how ledger, buffers and samples are compared.
Does not know: where they come from, or how they are shown.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from moerun.engine.arguments import BufferReport
from moerun.experts.counters import StreamingSample
from moerun.machine.description import HOST, SSD, DeviceId, is_gpu
from moerun.planning.plan import ChargeKind, Ledger
from moerun.planning.strategy import StreamingMode
from moerun.runner.buffer_report import is_mapped
from moerun.runner.statistics import MemorySample


class RowKind(StrEnum):
    """What memory is used for, as `stat` shows it."""

    DENSE = "dense"
    EXPERTS = "experts"
    SLOTS = "slots"
    KV = "kv"
    COMPUTE = "compute"
    RUNTIME = "runtime"


CHARGES_OF_ROW: Final = {
    RowKind.DENSE: (ChargeKind.DENSE_WEIGHTS,),
    RowKind.EXPERTS: (ChargeKind.EXPERT_WEIGHTS, ChargeKind.EXPERT_CACHE),
    RowKind.SLOTS: (ChargeKind.EXPERT_SLOTS,),
    RowKind.KV: (ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE),
    RowKind.COMPUTE: (ChargeKind.COMPUTE,),
    RowKind.RUNTIME: (ChargeKind.RUNTIME, ChargeKind.STAGING),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """One use on one device; None where the engine or the system does not tell it apart."""

    device: DeviceId
    kind: RowKind
    planned_bytes: int
    reported_bytes: int | None
    observed_bytes: int | None = None

    @property
    def drift_fraction(self) -> float | None:
        """How far the report is from the plan, as a share of the plan."""
        if self.reported_bytes is None or not self.planned_bytes:
            return None
        return (self.reported_bytes - self.planned_bytes) / self.planned_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """One device: its rows and their sums. Of `ssd`, what is observed is in RAM at present.

    `observed_bytes` is of this process; on the host it is what it holds privately plus the
    model's pages that count as RAM. `mean` and `peak` are over all samples.
    """

    device: DeviceId
    rows: tuple[MemoryRow, ...]
    planned_bytes: int
    reported_bytes: int | None
    observed_bytes: int | None
    peak_bytes: int | None
    mean_bytes: float | None
    unaccounted_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """Host memory of the process, told twice; see `MemorySample`."""

    resident_bytes: int
    private_bytes: int | None
    file_backed_bytes: int | None
    model_resident_bytes: int | None
    proportional_bytes: int | None
    swapped_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """All devices that the plan or the engine names, and the host's use."""

    devices: tuple[DeviceMemory, ...]
    host: HostUse | None

    @property
    def drift_fraction(self) -> float | None:
        """The largest difference between plan and report of any row, None without a report."""
        drifts = [row.drift_fraction for device in self.devices for row in device.rows]
        known = [abs(drift) for drift in drifts if drift is not None]
        return max(known) if known else None


def compare(
    ledger: Ledger,
    buffers: tuple[BufferReport, ...],
    samples: tuple[MemorySample, ...],
    *,
    earlier_peak: MemorySample | None = None,
    streaming: StreamingSample | None = None,
) -> MemoryReport:
    """Lay plan, report and observation side by side; the last sample is the one shown.

    `earlier_peak` counts for the peaks alone. `streaming` tells which experts are in memory.
    """
    named = {charge.device for charge in ledger.charges if charge.kind is not ChargeKind.MARGIN}
    named |= {buffer.device for buffer in buffers if buffer.device is not None}
    devices = sorted(named, key=lambda device: (device == SSD, device == HOST, device))
    return MemoryReport(
        devices=tuple(
            _device(device, ledger, buffers, samples, earlier_peak, streaming) for device in devices
        ),
        host=_host_use(samples[-1]) if samples else None,
    )


def _device(
    device: DeviceId,
    ledger: Ledger,
    buffers: tuple[BufferReport, ...],
    samples: tuple[MemorySample, ...],
    earlier_peak: MemorySample | None,
    streaming: StreamingSample | None,
) -> DeviceMemory:
    observed = [_observed_bytes(device, sample, ledger, buffers) for sample in samples]
    known = [size_bytes for size_bytes in observed if size_bytes is not None]
    peaks = known.copy()
    if earlier_peak is not None:
        earlier_bytes = _observed_bytes(device, earlier_peak, ledger, buffers)
        peaks += [earlier_bytes] if earlier_bytes is not None else []
    last = samples[-1] if samples else None
    rows = tuple(
        row
        for kind in RowKind
        if (row := _row(device, kind, ledger, buffers, last, streaming)).planned_bytes
        or row.reported_bytes
    )
    rest_bytes = _rest_bytes(device, rows, last, ledger, buffers, streaming)
    rows, unaccounted_bytes = _split_rest(rows, rest_bytes)
    reported = [row.reported_bytes for row in rows if row.reported_bytes is not None]
    return DeviceMemory(
        device=device,
        rows=rows,
        planned_bytes=sum(row.planned_bytes for row in rows),
        reported_bytes=sum(reported) if reported else None,
        observed_bytes=observed[-1] if observed else None,
        peak_bytes=max(peaks) if peaks else None,
        mean_bytes=sum(known) / len(known) if known else None,
        unaccounted_bytes=unaccounted_bytes,
    )


def _row(
    device: DeviceId,
    kind: RowKind,
    ledger: Ledger,
    buffers: tuple[BufferReport, ...],
    sample: MemorySample | None,
    streaming: StreamingSample | None,
) -> MemoryRow:
    planned_bytes = sum(ledger.kind_bytes(device, charge) for charge in CHARGES_OF_ROW[kind])
    observed_bytes = None
    if device == SSD and kind is RowKind.EXPERTS and sample is not None:
        observed_bytes = _observed_bytes(SSD, sample, ledger, buffers)
    if device == HOST and kind is RowKind.EXPERTS and streaming is not None:
        observed_bytes = _expert_bytes_in_memory(streaming)
    return MemoryRow(
        device=device,
        kind=kind,
        planned_bytes=planned_bytes,
        reported_bytes=_reported_bytes(device, kind, planned_bytes, ledger, buffers),
        observed_bytes=observed_bytes,
    )


def _reported_bytes(
    device: DeviceId,
    kind: RowKind,
    planned_bytes: int,
    ledger: Ledger,
    buffers: tuple[BufferReport, ...],
) -> int | None:
    """Return the engine's own figure; None for what it never reports."""
    if not buffers:
        return None
    match kind:
        case RowKind.RUNTIME:
            return None
        case RowKind.SLOTS:
            return _sum(buffers, device, "slots")
        case RowKind.KV:
            return _sum(buffers, device, "kv", "recurrent")
        case RowKind.COMPUTE:
            return _sum(buffers, device, "compute", "output")
        case RowKind.EXPERTS if ledger.kind_bytes(device, ChargeKind.EXPERT_CACHE):
            return None
        case RowKind.EXPERTS | RowKind.DENSE:
            experts_bytes, dense_bytes = _split_weights(device, ledger, buffers)
            return experts_bytes if kind is RowKind.EXPERTS else dense_bytes


def _split_weights(
    device: DeviceId, ledger: Ledger, buffers: tuple[BufferReport, ...]
) -> tuple[int, int]:
    """Return the reported weights of a device as (experts, dense)."""
    experts_bytes = ledger.kind_bytes(device, ChargeKind.EXPERT_WEIGHTS)
    if device == SSD:
        # A part of the mapped host buffer: what remains of it after the host's own weights.
        host_bytes = _weights_bytes(HOST, ledger)
        return min(experts_bytes, max(0, _sum(buffers, HOST, "model") - host_bytes)), 0
    reported_bytes = _sum(buffers, device, "model")
    if device == HOST:
        reported_bytes -= _split_weights(SSD, ledger, buffers)[0]
    experts_bytes = min(experts_bytes, reported_bytes)
    dense_bytes = reported_bytes - experts_bytes
    if device == HOST and _has_map(buffers):
        dense_bytes = min(dense_bytes, ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS))
    return experts_bytes, dense_bytes


def _observed_bytes(
    device: DeviceId, sample: MemorySample, ledger: Ledger, buffers: tuple[BufferReport, ...]
) -> int | None:
    """Return what the system or driver sees of this process on a device."""
    if is_gpu(device):
        seen = sample.gpu(device)
        return seen.process_bytes if seen is not None else None
    model_bytes = sample.model_resident_bytes
    if model_bytes is None:
        return sample.resident_bytes if device == HOST else None
    # Which pages of the mapping are whose is not told: the host's weights, needed for each token,
    # are taken to be there first.
    host_bytes = _weights_bytes(HOST, ledger) + ledger.kind_bytes(HOST, ChargeKind.EXPERT_CACHE)
    host_model_bytes = min(model_bytes, host_bytes) if _has_map(buffers) else 0
    if device == SSD:
        return model_bytes - host_model_bytes
    return sample.resident_bytes - (model_bytes - host_model_bytes)


def _rest_bytes(
    device: DeviceId,
    rows: tuple[MemoryRow, ...],
    sample: MemorySample | None,
    ledger: Ledger,
    buffers: tuple[BufferReport, ...],
    streaming: StreamingSample | None,
) -> int | None:
    """Return what is observed on a device beyond the buffers; None where nothing is observed."""
    if sample is None or device == SSD:
        return None
    explained = {
        row.kind: row.planned_bytes if row.reported_bytes is None else row.reported_bytes
        for row in rows
        if row.kind is not RowKind.RUNTIME
    }
    if is_gpu(device):
        seen = _observed_bytes(device, sample, ledger, buffers)
        return None if seen is None else seen - sum(explained.values())
    if sample.private_bytes is None:
        return None
    if _has_map(buffers):
        # Mapped weights are not private memory; what was copied beside the map is.
        mapped_bytes = sum(b.size_bytes for b in buffers if _is_mapped(b))
        weights_bytes = max(0, _sum(buffers, HOST, "model") - mapped_bytes)
        overlay_bytes = _overlay_bytes(ledger, streaming)
        explained[RowKind.DENSE], explained[RowKind.EXPERTS] = weights_bytes, overlay_bytes
    return sample.private_bytes - sum(explained.values())


def _overlay_bytes(ledger: Ledger, streaming: StreamingSample | None) -> int:
    """Return the private memory that streaming has laid over the mapping.

    Dense weights lie in such memory always, experts where they are in a cache of their own; in
    pages of the file where the page cache is their store.
    """
    if streaming is None:
        return 0
    overlay_bytes = ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS)
    if streaming.mechanism == StreamingMode.CACHE:
        overlay_bytes += _expert_bytes_in_memory(streaming)
    return overlay_bytes


def _expert_bytes_in_memory(streaming: StreamingSample) -> int:
    """Return what the system has of the experts in memory, what the books say where it is mute."""
    if streaming.resident_bytes is None:
        return streaming.held_bytes
    return streaming.resident_bytes


def _split_rest(
    rows: tuple[MemoryRow, ...], rest_bytes: int | None
) -> tuple[tuple[MemoryRow, ...], int | None]:
    """Give the runtime row what the plan allows it of the rest; what then remains is unaccounted.

    A negative remainder is memory that was reserved and not touched yet.
    """
    if rest_bytes is None:
        return rows, None
    planned_bytes = sum(row.planned_bytes for row in rows if row.kind is RowKind.RUNTIME)
    runtime_bytes = min(max(rest_bytes, 0), planned_bytes)
    observed = tuple(
        replace(row, observed_bytes=runtime_bytes) if row.kind is RowKind.RUNTIME else row
        for row in rows
    )
    return observed, rest_bytes - runtime_bytes


def _host_use(sample: MemorySample) -> HostUse:
    return HostUse(
        resident_bytes=sample.resident_bytes,
        private_bytes=sample.private_bytes,
        file_backed_bytes=sample.file_backed_bytes,
        model_resident_bytes=sample.model_resident_bytes,
        proportional_bytes=sample.proportional_bytes,
        swapped_bytes=sample.swapped_bytes,
    )


def _weights_bytes(device: DeviceId, ledger: Ledger) -> int:
    return ledger.kind_bytes(device, ChargeKind.DENSE_WEIGHTS) + ledger.kind_bytes(
        device, ChargeKind.EXPERT_WEIGHTS
    )


def _sum(buffers: tuple[BufferReport, ...], device: DeviceId, *kinds: str) -> int:
    return sum(b.size_bytes for b in buffers if b.device == device and b.kind in kinds)


def _is_mapped(buffer: BufferReport) -> bool:
    return buffer.device == HOST and is_mapped(buffer)


def _has_map(buffers: tuple[BufferReport, ...]) -> bool:
    return any(_is_mapped(buffer) for buffer in buffers)
