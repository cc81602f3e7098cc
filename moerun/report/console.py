"""Where answers are printed: how wide, in which characters, with or without colour.

Knows: terminals, pipes, and encodings that lack the block characters.
Does not know: what is printed.
"""

import errno
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

_PIPE_COLUMNS: Final = 80
_FEWEST_COLUMNS: Final = 40
_GAP: Final = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """The characters of bars and separators; each kind of charge has a shade of its own."""

    dense: str
    experts: str
    state: str
    fixed: str
    margin: str
    taken: str
    shared: str
    free: str
    separator: str


BLOCKS: Final = Glyphs(
    dense="█",
    experts="▓",
    state="▒",
    fixed="░",
    margin="·",
    taken="╌",
    shared="▞",
    free=" ",
    separator=" · ",
)
ASCII: Final = Glyphs(
    dense="#",
    experts="=",
    state="+",
    fixed="-",
    margin=".",
    taken="/",
    shared="%",
    free=" ",
    separator=" - ",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What there is to print on. Without `wraps`, sentences stay on one line however long."""

    columns: int = _PIPE_COLUMNS
    wraps: bool = True
    glyphs: Glyphs = BLOCKS


class AnswerConsole(Console):
    """A console that leaves a closed pipe to the command line; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Let the error go on."""
        raise BrokenPipeError(errno.EPIPE, "the reader of the output is gone")


def open_console(stream: TextIO | None = None) -> Console:
    """Return a console on standard output; colour by what is there, and by NO_COLOR."""
    return AnswerConsole(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)


def page_of(console: Console) -> Page:
    """Return what a console offers; a pipe has 80 columns for bars and wraps no sentence."""
    encoding = (getattr(console.file, "encoding", None) or "utf-8").lower()
    glyphs = BLOCKS if encoding.startswith("utf") else ASCII
    if not console.is_terminal:
        return Page(columns=_PIPE_COLUMNS, wraps=False, glyphs=glyphs)
    return Page(columns=max(_FEWEST_COLUMNS, console.width), glyphs=glyphs)


def is_coloured(console: Console) -> bool:
    """Whether what is printed may have colours; a picture needs many of them to be one."""
    return (
        console.is_terminal
        and not console.no_color
        and console.color_system
        not in (
            None,
            "standard",
            "windows",
        )
    )


def print_lines(console: Console, lines: Iterable[Text]) -> None:
    """Print lines as they are, never cropped."""
    for line in lines:
        console.print(line, soft_wrap=True)


def flow(items: Iterable[Text], page: Page, *, indent: int, gap: str = _GAP) -> Iterator[Text]:
    """Yield lines of the items side by side, broken between items, all at the same indent."""
    line: Text | None = None
    for item in items:
        columns = line.cell_len + len(gap) + item.cell_len if line is not None else 0
        if line is not None and page.wraps and columns > page.columns:
            yield line
            line = None
        if line is None:
            line = Text(" " * indent)
        else:
            line.append(gap)
        line.append_text(item)
    if line is not None:
        yield line


def labelled(label: str, sentence: str, page: Page, *, indent: int, style: str = "") -> list[Text]:
    """Return a label and a sentence beside it, wrapped at the indent where the page wraps."""
    lines = _wrapped(sentence, page.columns - indent) if page.wraps else [sentence]
    first = Text(label.ljust(indent), style=style)
    first.append(lines[0], style="default")
    return [first, *(Text(" " * indent + line) for line in lines[1:])]


def _wrapped(sentence: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(
        sentence, max(20, columns), break_long_words=False, break_on_hyphens=False
    ) or [""]
