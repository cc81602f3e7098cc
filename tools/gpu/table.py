"""The measured rows as a table of `docs/gpu.md`, between its two markers.

Knows: columns, and where the table stands.
Does not know: how a row was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- measured -->"
END: Final = "<!-- /measured -->"
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of one model. Absent figures could not be had; `failure` says why there are none."""

    placement: str
    free_bytes: int | None = None
    expert_fraction: float | None = None
    planned_bytes: int | None = None
    seen_bytes: int | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """How fast experts reach the card."""

    expert_bytes: int
    pinned_bytes_per_s: float
    storage_to_card_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one run of the check found, with what it ran on."""

    hardware: str
    command: str
    model: str
    rows: tuple[Row, ...]
    transfers: Transfers | None = None


def table_lines(report: Report) -> list[str]:
    """Return the section: where it was measured, the table, the transfers."""
    lines = [
        f"Hardware: {report.hardware}. Model: {report.model}.",
        f"Command: `{report.command}`.",
        "",
        "| free VRAM | placement | experts in VRAM | planned | seen by NVML | prefill | decode |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row_line(row) for row in report.rows]
    if report.transfers is not None:
        found = report.transfers
        lines += [
            "",
            f"Pinned memory to the card, asynchronous: {found.pinned_bytes_per_s / 1e9:.1f} GB/s. "
            f"SSD to the card: {found.storage_to_card_s * 1000:.2f} ms for an expert of "
            f"{found.expert_bytes / 1e6:.2f} MB.",
        ]
    return lines


def write_table(path: Path, report: Report) -> None:
    """Put the section between the markers of the document; ValueError where they are not."""
    write_between(path, table_lines(report), begin=BEGIN, end=END)


def write_between(path: Path, lines: Sequence[str], *, begin: str, end: str) -> None:
    """Put lines between two markers of a document; ValueError where they are not."""
    text = path.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path} has no place for the table: {begin} and {end}")
    section = "\n".join(["", *lines, ""])
    path.write_text(f"{before}{begin}{section}{end}{after}", encoding="utf-8")


def _row_line(row: Row) -> str:
    if row.failure is not None:
        rate = [row.failure.replace("|", "/").replace("\n", " "), "-"]
    else:
        rate = [_rate(row.prefill_tokens_per_s), _rate(row.decode_tokens_per_s)]
    share = "-" if row.expert_fraction is None else f"{row.expert_fraction * 100:.0f}%"
    cells = [
        _size(row.free_bytes),
        row.placement,
        share,
        _size(row.planned_bytes),
        _size(row.seen_bytes),
        *rate,
    ]
    return f"| {' | '.join(cells)} |"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / _GIB:.2f} GiB"


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tok/s"
