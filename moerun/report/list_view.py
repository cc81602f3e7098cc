"""The models of this machine as a table, in ollama's columns with SOURCE behind them.

Knows: columns, sizes in decimal units, times relative to now.
Does not know: where models lie, or what time it is.
"""

from dataclasses import dataclass
from typing import Any, Final

from moerun.report.plain import printable

_GAP: Final = "    "
_ID_DIGITS: Final = 12
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRow:
    """One model; `age_s` is the time since it changed. What is not known is None."""

    name: str
    digest: str | None
    size_bytes: int
    modified_at_s: float
    age_s: float
    source: str
    path: str | None
    architecture: str | None = None
    quantization: str | None = None
    parameter_count: int | None = None
    expert_count: int | None = None
    experts_used: int | None = None
    trouble: str | None = None


def list_lines(rows: tuple[ListRow, ...]) -> tuple[str, ...]:
    """Return a heading and one line for each model."""
    cells = [("NAME", "ID", "SIZE", "MODIFIED", "SOURCE")]
    cells += [
        (
            printable(row.name),
            (row.digest or "-")[:_ID_DIGITS],
            short_size(row.size_bytes),
            f"{duration(row.age_s)} ago",
            row.source,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return tuple(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def list_document(rows: tuple[ListRow, ...]) -> list[dict[str, Any]]:
    """Return the rows as data, without a schema number."""
    return [
        {
            "name": row.name,
            "id": (row.digest or "")[:_ID_DIGITS] or None,
            "digest": row.digest,
            "size_bytes": row.size_bytes,
            "modified_at_s": row.modified_at_s,
            "source": row.source,
            "path": row.path,
            "architecture": row.architecture,
            "quantization": row.quantization,
            "parameter_count": row.parameter_count,
            "expert_count": row.expert_count,
            "experts_used": row.experts_used,
            "error": row.trouble,
        }
        for row in rows
    ]


def short_size(size_bytes: int) -> str:
    """Return a size as ollama lists it: below 10 with one decimal, above it cut to a whole."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size_bytes >= factor:
            value = size_bytes / factor
            if value >= 10:
                return f"{int(value)} {unit}"
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} B"


def duration(age_s: float) -> str:
    """Return a time in words, as ollama rounds it."""
    if age_s < 1:
        return "Less than a second"
    if age_s < _MINUTE_S:
        return _count(age_s, "second")
    if age_s < 2 * _MINUTE_S:
        return "About a minute"
    if age_s < _HOUR_S:
        return _count(age_s / _MINUTE_S, "minute")
    if age_s < 2 * _HOUR_S:
        return "About an hour"
    if age_s < 2 * _DAY_S:
        return _count(age_s / _HOUR_S, "hour")
    days = age_s / _DAY_S
    if days < 14:
        return _count(days, "day")
    if days < 60:
        return _count(days / 7, "week")
    return _count(days / 30, "month") if days < 730 else _count(days / 365, "year")


def _count(number: float, unit: str) -> str:
    whole = int(number)
    return f"{whole} {unit}{'' if whole == 1 else 's'}"
