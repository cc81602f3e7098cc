"""The engine's buffers beside the planned ones, as lines after the timing block.

Knows: columns.
Does not know: how buffers were read.
"""

from collections.abc import Callable, Iterable

from moerun.machine.description import DeviceId
from moerun.report.timing_view import label_line
from moerun.runner.buffer_report import BufferRow
from moerun.units import format_gib


def buffer_lines(rows: Iterable[BufferRow], label: Callable[[DeviceId], str]) -> tuple[str, ...]:
    """Return one line for each buffer: device and use, planned, reported, difference."""
    return tuple(
        label_line(
            f"{label(row.device)} {row.name}",
            f"planned {format_gib(row.planned_bytes)}, reported {format_gib(row.reported_bytes)}"
            + (f" ({row.drift_fraction * 100:+.2f}%)" if row.drift_fraction is not None else ""),
        )
        for row in rows
    )
