"""The table of models in memory, with ollama's columns and words.

Knows: how sizes, shares and times are written there, and that scripts cut it into words.
Does not know: where the figures come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moerun.report.plain import printable

_HEADERS: Final = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
_GAP: Final = "    "
_ID_LENGTH: Final = 12
_FOREVER_S: Final = 20 * 365.25 * 86_400
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningModel:
    """One model in memory; `expires_at_s` None is of a run that ends with its own process."""

    name: str
    digest: str
    size_bytes: int
    vram_bytes: int
    context_tokens: int
    expires_at_s: float | None
    pid: int


def ps_lines(models: Sequence[RunningModel], *, now_s: float) -> tuple[str, ...]:
    """Return the header and a line for each model; none is cut, however narrow the terminal."""
    rows = [_HEADERS, *(_row(model, now_s) for model in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADERS))]
    return tuple(
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def processor_text(size_bytes: int, vram_bytes: int) -> str:
    """Return how a model is shared between processor and GPUs."""
    if size_bytes == 0 or vram_bytes > size_bytes:
        return "Unknown"
    if vram_bytes == 0:
        return "100% CPU"
    if vram_bytes == size_bytes:
        return "100% GPU"
    cpu = round((size_bytes - vram_bytes) / size_bytes * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def size_text(size_bytes: int) -> str:
    """Return a decimal size as ollama writes it: one digit below ten, then cut to a whole."""
    for unit, suffix in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size_bytes >= unit:
            value = size_bytes / unit
            short = f"{value:.1f}".removesuffix(".0") if value < 10 else str(int(value))
            return f"{short} {suffix}"
    return f"{size_bytes} B"


def until_text(left_s: float) -> str:
    """Return how long a model stays, in words."""
    if left_s > _FOREVER_S:
        return "Forever"
    if left_s <= 0:
        return "Stopping..."
    return f"{_duration_text(left_s)} from now"


def _duration_text(seconds: float) -> str:
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole < _MINUTE_S:
        return f"{whole} second{'' if whole == 1 else 's'}"
    if whole < 2 * _MINUTE_S:
        return "About a minute"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} minutes"
    if whole < 2 * _HOUR_S:
        return "About an hour"
    if whole < 2 * _DAY_S:
        return f"{whole // _HOUR_S} hours"
    return f"{whole // _DAY_S} days"


def _row(model: RunningModel, now_s: float) -> tuple[str, ...]:
    expires_at_s = model.expires_at_s
    return (
        printable(model.name),
        model.digest[:_ID_LENGTH] or "-",
        size_text(model.size_bytes),
        processor_text(model.size_bytes, model.vram_bytes),
        str(model.context_tokens),
        "with its run" if expires_at_s is None else until_text(expires_at_s - now_s),
    )
