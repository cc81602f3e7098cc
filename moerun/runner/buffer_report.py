"""Each buffer as it was planned and as the engine's load log reports it.

Knows: which prediction stands beside which report.
Does not know: how either came about, or how they are shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from moerun.engine.arguments import BufferReport
from moerun.machine.description import SSD, DeviceId
from moerun.planning.plan import ChargeKind, Ledger

_COMPUTE = ("compute", "output")
_CHARGES = {
    "kv": (ChargeKind.KV_CACHE,),
    "recurrent": (ChargeKind.RECURRENT_STATE,),
    "compute": (ChargeKind.COMPUTE,),
    "slots": (ChargeKind.EXPERT_SLOTS,),
}
# The log prints MiB with two decimals (moerun/engine/load_log.py), so a report is right to this.
_ROUNDING_BYTES: Final = 5_243


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferRow:
    """One buffer, or all of one kind on one device where the plan does not tell them apart."""

    device: DeviceId
    name: str
    planned_bytes: int
    reported_bytes: int

    @property
    def drift_fraction(self) -> float | None:
        """How far the report is from the plan, as a share of the plan; None of nothing."""
        if not self.planned_bytes:
            return None
        return (self.reported_bytes - self.planned_bytes) / self.planned_bytes


def compare_buffers(
    ledger: Ledger, predicted: Iterable[BufferReport], reported: Iterable[BufferReport]
) -> tuple[BufferRow, ...]:
    """Return the rows: the weights of each buffer, then caches and compute of each device.

    `predicted` are the model buffers that the arguments lead to; the rest is in the ledger.
    """
    predicted, reported = tuple(predicted), tuple(reported)
    rows = [*_weights(predicted, reported), *_adapters(predicted, reported)]
    devices = {charge.device for charge in ledger.charges} | {
        buffer.device for buffer in reported if buffer.device is not None
    }
    for device in sorted(devices - {SSD}):
        for name, charges in _CHARGES.items():
            kinds = _COMPUTE if name == "compute" else (name,)
            row = BufferRow(
                device=device,
                name=name,
                planned_bytes=sum(ledger.kind_bytes(device, charge) for charge in charges),
                reported_bytes=_sum(b for b in reported if b.device == device and b.kind in kinds),
            )
            if row.planned_bytes or row.reported_bytes:
                rows.append(row)
    return tuple(rows)


def _weights(
    predicted: tuple[BufferReport, ...], reported: tuple[BufferReport, ...]
) -> list[BufferRow]:
    """Return a row for the mapped and one for the allocated weights of each device.

    Repacked weights leave the ordinary buffer for one of their own, and split models are mapped
    once for each file, so sums are compared.
    """
    weights = [b for b in (*predicted, *reported) if b.kind == "model"]
    keys = sorted({(b.device, is_mapped(b)) for b in weights if b.device is not None})
    return [
        BufferRow(
            device=device,
            name="mapped weights" if mapped else "weights",
            planned_bytes=_sum_weights(predicted, device, mapped=mapped),
            reported_bytes=_sum_weights(reported, device, mapped=mapped),
        )
        for device, mapped in keys
    ]


def _adapters(
    predicted: tuple[BufferReport, ...], reported: tuple[BufferReport, ...]
) -> list[BufferRow]:
    """Return a row for the adapters of each device that has any."""
    found = [b for b in (*predicted, *reported) if b.kind == "adapter" and b.device is not None]
    return [
        BufferRow(
            device=device,
            name="adapters",
            planned_bytes=_sum(b for b in predicted if (b.kind, b.device) == ("adapter", device)),
            reported_bytes=_sum(b for b in reported if (b.kind, b.device) == ("adapter", device)),
        )
        for device in sorted({b.device for b in found if b.device is not None})
    ]


def is_rounding(planned_bytes: int, reported_bytes: int) -> bool:
    """Whether a difference is no larger than the log's own rounding."""
    return planned_bytes != reported_bytes and (
        abs(planned_bytes - reported_bytes) <= _ROUNDING_BYTES
    )


def is_mapped(buffer: BufferReport) -> bool:
    """Whether a buffer is the loader's mapping of a file, not memory of its own.

    Belief: such a buffer is named `CPU_Mapped` (or with another device's name) —
    ggml_backend_cpu_buffer_from_ptr, ggml/src/ggml-backend.cpp @ 0.3.36 — checked by
    tests/engine/test_run_end_to_end.py.
    """
    return buffer.buffer.endswith("_Mapped")


def _sum_weights(buffers: tuple[BufferReport, ...], device: DeviceId, *, mapped: bool) -> int:
    chosen = (b for b in buffers if b.device == device and b.kind == "model")
    return _sum(b for b in chosen if is_mapped(b) is mapped)


def _sum(buffers: Iterable[BufferReport]) -> int:
    return sum(buffer.size_bytes for buffer in buffers)
