"""What a recording came to: how much was recorded, and how uneven the routing is.

Knows: words and the shape of the document.
Does not know: how routing was recorded.
"""

from collections.abc import Iterator
from typing import Any, Final

from rich.text import Text

from moerun.codec import to_plain
from moerun.experts.route_figures import RouteFigures
from moerun.report.console import Page, labelled
from moerun.report.plain import printable

SCHEMA: Final = 1
_INDENT: Final = 9


def trace_lines(path: str, figures: RouteFigures, page: Page) -> Iterator[Text]:
    """Yield the file, what it holds, and what its routing is like."""
    rows = [
        (
            "written",
            f"{printable(path)}: {_count(figures.turns, 'prompt')} of "
            f"{figures.prompt_tokens:,} tokens, {figures.answer_tokens:,} tokens of answers, "
            f"{_count(figures.layer_count, 'layer')}",
        )
    ]
    if figures.used_fraction is not None:
        rows.append(("experts", f"{_percent(figures.used_fraction)} were used at all"))
    if figures.top_tenth_fraction is not None:
        rows.append(
            (
                "uneven",
                f"the tenth that was used most took {_percent(figures.top_tenth_fraction)} of "
                "the answers' requests",
            )
        )
    if figures.repeated_fraction is not None:
        rows.append(
            (
                "repeated",
                f"{_percent(figures.repeated_fraction)} were for experts of the token before",
            )
        )
    for label, sentence in rows:
        yield from labelled(label, sentence, page, indent=_INDENT, style="bold")


def trace_document(path: str, figures: RouteFigures) -> dict[str, Any]:
    """Return the same as a document."""
    return {"schema": SCHEMA, "path": path, **to_plain(figures)}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.0f}%"
