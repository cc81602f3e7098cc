"""Plain tables: upper-case headings, no rules, columns that scripts can cut.

Knows: how rows are aligned and written.
Does not know: where the rows come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from moerun.report.console import Page, labelled
from moerun.report.plain import printable
from moerun.units import format_gib

_GAP: Final = 2
_ABSENT: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model, and how it would be placed; sums are None where it cannot be planned.

    `source` is where it is known from: a file, or the catalogue, whose sizes are derived; then
    `path` is what would be downloaded.
    """

    name: str
    path: str
    verdict: str
    source: str = "file"
    quantization: str | None = None
    file_bytes: int | None = None
    vram_bytes: int | None = None
    ram_bytes: int | None = None
    ssd_bytes: int | None = None
    context_tokens: int | None = None
    error: str | None = None


def model_lines(rows: tuple[ModelRow, ...], page: Page) -> Iterator[Text]:
    """Yield a heading and one row for each model.

    Why a model cannot be planned stands below its row, and in a pipe at the end of it.
    """
    cells = [("NAME", "SIZE", "VRAM", "RAM", "SSD", "CONTEXT", "SOURCE", "VERDICT")]
    cells += [
        (
            printable(row.name),
            _size(row.file_bytes),
            _size(row.vram_bytes),
            _size(row.ram_bytes),
            _size(row.ssd_bytes),
            _ABSENT if row.context_tokens is None else f"{row.context_tokens:,}",
            row.source,
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(map(cell_len, column)) + _GAP for column in zip(*cells, strict=True)]
    errors = ["", *(printable(row.error or "") for row in rows)]
    for row_cells, error in zip(cells, errors, strict=True):
        line = "".join(
            set_cell_size(cell, width) for cell, width in zip(row_cells, widths, strict=True)
        )
        if error and not page.wraps:
            line += error
        yield Text(line.rstrip())
        if error and page.wraps:
            yield from labelled("", error, page, indent=_GAP, style="yellow")


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return _ABSENT
    return format_gib(size_bytes) if size_bytes else "0"
