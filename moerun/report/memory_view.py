"""What a runner was planned to use, what the engine reports and what the system sees, for people.

Knows: bars, columns and labels.
Does not know: how anything was sampled or compared.
"""

from collections.abc import Iterable
from typing import Final, assert_never

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moerun.machine.description import HOST, SSD, DeviceId
from moerun.report.console import BLOCKS, Glyphs
from moerun.report.plain import printable
from moerun.report.timing_view import format_duration
from moerun.runner.buffer_report import is_rounding
from moerun.runner.memory_report import (
    DeviceMemory,
    HostUse,
    MemoryReport,
    MemoryRow,
    RowKind,
)
from moerun.runner.records import RunnerRecord
from moerun.units import format_gib

_BAR_CELLS: Final = 40
_STYLES: Final = {
    RowKind.DENSE: "cyan",
    RowKind.EXPERTS: "green",
    RowKind.SLOTS: "bright_green",
    RowKind.KV: "magenta",
    RowKind.COMPUTE: "yellow",
    RowKind.RUNTIME: "bright_black",
}
_BLANK: Final = "-"


def runner_lines(
    runners: Iterable[tuple[RunnerRecord, MemoryReport]], *, now_s: float
) -> tuple[Text, ...]:
    """Return a head and one line for each runner."""
    rows = [("MODEL", "PID", "RAM", "CONTEXT", "RUNNING FOR")]
    rows += [
        (
            printable(record.model_name),
            str(record.pid),
            _size(report.host.resident_bytes if report.host is not None else None),
            f"{record.context_tokens:,}",
            format_duration(max(0, round(now_s - record.started_at_s))),
        )
        for record, report in runners
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return tuple(
        Text(
            "    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
        for row in rows
    )


def memory_view(
    record: RunnerRecord, report: MemoryReport, *, glyphs: Glyphs = BLOCKS, is_first: bool = True
) -> RenderableType:
    """Return one runner: a bar and a table for each device, then the host's use told twice."""
    head = Text("" if is_first else "\n")
    head.append(printable(record.mode), style="bold")
    head.append(f"\npid {record.pid}, engine {record.engine_version}")
    labels = dict(record.labels)
    parts: list[RenderableType] = [head]
    for device in report.devices:
        parts += [Text(), _bar(device, labels, glyphs), _table(device, glyphs)]
    if report.host is not None:
        parts += [Text(), _host(report.host)]
    return Group(*parts)


def _glyph(kind: RowKind, glyphs: Glyphs) -> str:
    """Return the shade of a use, so that bars read without colour, too."""
    match kind:
        case RowKind.DENSE:
            return glyphs.dense
        case RowKind.EXPERTS | RowKind.SLOTS:
            return glyphs.experts
        case RowKind.KV:
            return glyphs.state
        case RowKind.COMPUTE | RowKind.RUNTIME:
            return glyphs.fixed
        case _:
            assert_never(kind)


def _bar(device: DeviceMemory, labels: dict[DeviceId, str], glyphs: Glyphs) -> Text:
    """Return the device's rows as shares of a bar, as the engine reports them."""
    text = Text(f"{_label(device.device, labels):<6}")
    sizes = [(row.kind, row.reported_bytes or row.planned_bytes) for row in device.rows]
    total = sum(size for _, size in sizes)
    used_cells = 0
    for kind, size in sizes:
        cells = round(_BAR_CELLS * size / total) if total else 0
        cells = min(max(cells, 1), _BAR_CELLS - used_cells)
        text.append(_glyph(kind, glyphs) * cells, style=_STYLES[kind])
        used_cells += cells
    text.append(f"{' ' * (_BAR_CELLS - used_cells)} {format_gib(total)}")
    return text


def _table(device: DeviceMemory, glyphs: Glyphs) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    # What lies on SSD is observed where it is used: as pages of the file in memory.
    seen = "in RAM now" if device.device == SSD else "observed"
    for name in ("planned", "reported", "differs", seen):
        table.add_column(name, justify="right")
    for row in device.rows:
        table.add_row(
            Text(f"  {_glyph(row.kind, glyphs)} {row.kind}", style=_STYLES[row.kind]),
            format_gib(row.planned_bytes),
            _size(row.reported_bytes),
            _difference(row),
            _size(row.observed_bytes),
        )
    table.add_row(
        "    together",
        format_gib(device.planned_bytes),
        _size(device.reported_bytes),
        "",
        _size(device.observed_bytes),
    )
    if device.unaccounted_bytes is not None:
        table.add_row("    unaccounted", "", "", "", format_gib(device.unaccounted_bytes))
    return table


def _difference(row: MemoryRow) -> str:
    if row.reported_bytes is None or not row.planned_bytes:
        return _BLANK
    if is_rounding(row.planned_bytes, row.reported_bytes):
        return "rounding"
    return f"{(row.reported_bytes - row.planned_bytes) / row.planned_bytes * 100:+.2f}%"


def _host(host: HostUse) -> Text:
    lines = [f"host memory of the process: {format_gib(host.resident_bytes)} resident"]
    if host.private_bytes is not None:
        lines.append(f"  {format_gib(host.private_bytes)} private: caches, compute, the program")
    if host.file_backed_bytes is not None:
        of_model = (
            f", {format_gib(host.model_resident_bytes)} of it the model"
            if host.model_resident_bytes is not None
            else ""
        )
        lines.append(
            f"  {format_gib(host.file_backed_bytes)} pages of files{of_model}; "
            "the system may drop and share them"
        )
    if host.proportional_bytes is not None:
        lines.append(f"  {format_gib(host.proportional_bytes)} with shared pages by their share")
    if host.swapped_bytes:
        lines.append(f"  {format_gib(host.swapped_bytes)} swapped out")
    return Text("\n".join(lines))


def _label(device: DeviceId, labels: dict[DeviceId, str]) -> str:
    if device == HOST:
        return "ram"
    return "ssd" if device == SSD else labels.get(device, device)


def _size(size_bytes: int | None) -> str:
    return _BLANK if size_bytes is None else format_gib(size_bytes)
