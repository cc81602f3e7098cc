"""The engine's buffers beside the planned ones, as lines after the timing block.

Knows: columns.
Does not know: how buffers were read.
"""

from collections.abc import Callable, Iterable

from moerun.machine.description import DeviceId
from moerun.report.timing_view import label_line
from moerun.runner.buffer_report import BufferRow, is_rounding
from moerun.units import format_gib


def buffer_lines(rows: Iterable[BufferRow], label: Callable[[DeviceId], str]) -> tuple[str, ...]:
    """Return one line for each buffer: device and use, planned, reported, difference."""
    return tuple(
        label_line(
            f"{label(row.device)} {row.name}",
            f"planned {format_gib(row.planned_bytes)}, reported {format_gib(row.reported_bytes)}"
            f" ({difference_text(row.planned_bytes, row.reported_bytes)})",
        )
        for row in rows
    )


def difference_text(planned_bytes: int, reported_bytes: int) -> str:
    """Return how far a report is from the plan; small ones are the rounding of the log."""
    if is_rounding(planned_bytes, reported_bytes):
        return "equal but for the log's rounding"
    if not planned_bytes:
        return "not planned"
    return f"{(reported_bytes - planned_bytes) / planned_bytes * 100:+.2f}%"
