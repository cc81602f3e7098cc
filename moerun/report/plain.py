"""Plain sentences for standard error, and text from outside made safe to show.

Knows: how an error reads, and which characters must not reach a terminal.
Does not know: rich, exit codes, or where the text came from.
"""

from collections.abc import Iterator
from typing import Final

from moerun.errors import DoesNotFit, EngineRefused, MoerunError

_LOG_LINES_SHOWN: Final = 12


def printable(text: str) -> str:
    """Return text as one line without control characters.

    White space of any kind becomes one blank; what else is not printable (escape sequences,
    direction overrides, halves of characters) is written as its escape.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def error_lines(error: MoerunError) -> tuple[str, ...]:
    """Return one line with the error, what it has to show for itself, and its hint.

    The engine's refusal shows the end of its log, a model that does not fit what takes the most.
    """
    lines = [f"Error: {printable(error.message)}"]
    if isinstance(error, EngineRefused):
        tail = [printable(line) for line in error.log_tail.splitlines() if line.strip()]
        lines += [f"  | {line}" for line in tail[-_LOG_LINES_SHOWN:]]
    if isinstance(error, DoesNotFit):
        lines += [f"  | {line}" for line in _shortfall_lines(error)]
    if error.hint:
        lines.append(f"Hint: {printable(error.hint)}")
    return tuple(lines)


def _shortfall_lines(error: DoesNotFit) -> Iterator[str]:
    from moerun.planning.plan import Shortfall  # imported when there is one: start-up is cheap
    from moerun.units import format_gib

    for shortfall in error.shortfalls:
        if not isinstance(shortfall, Shortfall) or not shortfall.largest_charges:
            continue
        charges = (
            f"{charge.kind.replace('_', ' ')} {format_gib(charge.size_bytes)}"
            for charge in shortfall.largest_charges
        )
        missing = format_gib(shortfall.needed_bytes - shortfall.available_bytes)
        yield f"{missing} are missing; what is needed: {', '.join(charges)}"
