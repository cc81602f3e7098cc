"""The quantizations of a model side by side, and which of them to take.

Knows: the table and its words.
Does not know: how they were planned or chosen.
"""

from collections.abc import Iterator
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from moerun.codec import to_plain
from moerun.planning.advice import Advice, Option
from moerun.report.console import Page, labelled
from moerun.report.plain import printable
from moerun.units import format_gib

_GAP: Final = 2
_INDENT: Final = 13
_HEADING: Final = ("QUANTIZATION", "SIZE", "BITS", "VRAM", "RAM", "SSD", "CONTEXT", "VERDICT")


def advice_lines(title: str, advice: Advice, page: Page) -> Iterator[Text]:
    """Yield a row for each quantization, the largest first, and the recommendation."""
    yield Text(printable(title), style="bold")
    cells = [_HEADING, *map(_cells, advice.options)]
    widths = [max(map(cell_len, column)) + _GAP for column in zip(*cells, strict=True)]
    for option, row in zip((None, *advice.options), cells, strict=True):
        line = "".join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        is_chosen = option is not None and option.quantization == advice.recommended
        yield Text(line.rstrip(), style="bold" if is_chosen else "")
        if option is not None and option.refusal:
            yield from labelled("", printable(option.refusal), page, indent=_GAP, style="yellow")
    yield Text()
    chosen = advice.recommended or "none"
    yield from labelled("Recommended", f"{chosen}: {advice.because}", page, indent=_INDENT)


def advice_hint(name: str, advice: Advice) -> str | None:
    """Return one sentence where another quantization than the usual one suits the machine."""
    if not advice.differs:
        return None
    return (
        f"on this machine {advice.recommended} suits better than {advice.usual}: "
        f"{advice.because}; `moerun plan {name} --advise` compares all"
    )


def advice_facts(advice: Advice) -> dict[str, Any]:
    """Return the advice as plain values."""
    return {
        "options": to_plain(advice.options),
        "usual": advice.usual,
        "recommended": advice.recommended,
        "because": advice.because,
    }


def _cells(option: Option) -> tuple[str, ...]:
    return (
        option.quantization,
        format_gib(option.file_bytes),
        f"{option.bits_per_weight:.1f}",
        *map(_size, (option.vram_bytes, option.ram_bytes, option.ssd_bytes)),
        "-" if option.context_tokens is None else f"{option.context_tokens:,}",
        "too large" if option.verdict is None else str(option.verdict),
    )


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    return format_gib(size_bytes) if size_bytes else "0"
