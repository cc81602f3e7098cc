"""Plain sentences for standard error, and text from outside made safe to show.

Knows: how an error reads, and which characters must not reach a terminal.
Does not know: rich, exit codes, or where the text came from.
"""

from typing import Final

from moerun.errors import EngineRefused, MoerunError

_LOG_LINES_SHOWN: Final = 12


def printable(text: str) -> str:
    """Return text as one line without control characters.

    White space of any kind becomes one blank; what else is not printable (escape sequences,
    direction overrides, halves of characters) is written as its escape.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def error_lines(error: MoerunError) -> tuple[str, ...]:
    """Return one line with the error, the end of the engine's log if it has one, and its hint."""
    lines = [f"Error: {printable(error.message)}"]
    if isinstance(error, EngineRefused):
        tail = [printable(line) for line in error.log_tail.splitlines() if line.strip()]
        lines += [f"  | {line}" for line in tail[-_LOG_LINES_SHOWN:]]
    if error.hint:
        lines.append(f"Hint: {printable(error.hint)}")
    return tuple(lines)
