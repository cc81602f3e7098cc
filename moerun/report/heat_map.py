"""Layers by experts as two pictures side by side: what is held, and how often each was used.

A cell stands for as many experts as the width asks for. With colour one character shows two layers,
the upper and the lower half of a block; without, its shade shows one row of layers.

Knows: cells, shades, colours and their legend.
Does not know: how uses were counted, or where the lines go.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

from rich.text import Text

from moerun.experts.counters import LayerHeat
from moerun.report.console import ASCII, Page

_GAP: Final = "  "
_MOST_ROWS: Final = 32
_MOST_USED_FROM: Final = 0.975  # of all cells, by their uses
_HALF_BLOCK: Final = "▀"
_SHADES: Final = " ░▒▓█"
_ASCII_SHADES: Final = " .:*#"
# From nothing to all, each dark enough beside its neighbour to be told from it on 256 colours.
_HELD_COLOURS: Final = ("#1c1c1c", "#123a24", "#17623a", "#1f8f52", "#2bc06c", "#5cf29b")
_USE_COLOURS: Final = ("#1c1c1c", "#3b0f45", "#7a1c4b", "#c03a3a", "#ef7d21", "#fcd44f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Values from 0 to 1, a row for each layer or group of layers, and what they mean."""

    title: str
    rows: tuple[tuple[float, ...], ...]
    colours: tuple[str, ...]

    @property
    def columns(self) -> int:
        """How wide the picture is."""
        return len(self.rows[0])


def heat_lines(heat: Sequence[LayerHeat], page: Page, *, is_coloured: bool) -> Iterator[Text]:
    """Yield the two pictures with their titles and a legend; nothing when there are no layers."""
    if not heat:
        return
    label_width = len(str(heat[-1].layer)) + 2
    room = (page.columns - label_width - len(_GAP)) // 2
    per_row = 1 if is_coloured else -(-len(heat) // _MOST_ROWS)
    held, used = _held(heat, room, per_row), _used(heat, room, per_row)
    yield _titles(held, used, label_width)
    step = 2 if is_coloured else 1
    for index in range(0, len(held.rows), step):
        line = Text()
        line.append(f"{heat[index * per_row].layer:>{label_width - 1}} ", style="dim")
        line.append_text(_cells(held, index, page, is_coloured=is_coloured))
        line.append(_GAP)
        line.append_text(_cells(used, index, page, is_coloured=is_coloured))
        yield line
    yield from _legend(heat, held, used, page, is_coloured=is_coloured)


def group_starts(count: int, columns: int) -> tuple[int, ...]:
    """Return where groups of equal size begin, so that they fit; the last may be smaller."""
    size = -(-count // max(1, columns))
    return tuple(range(0, count, size))


def _held(heat: Sequence[LayerHeat], columns: int, per_row: int) -> Picture:
    return Picture(
        title="held in RAM",
        rows=_rows(heat, columns, per_row, lambda layer: [float(h) for h in layer.is_held]),
        colours=_HELD_COLOURS,
    )


def _used(heat: Sequence[LayerHeat], columns: int, per_row: int) -> Picture:
    rows = _rows(heat, columns, per_row, lambda layer: [float(u) for u in layer.uses])
    cells = sorted(value for row in rows for value in row)
    # Few experts are used very often: by the root the others stay visible, and the few share the
    # last shade.
    most = cells[int(_MOST_USED_FROM * (len(cells) - 1))] or cells[-1] or 1.0
    scaled = tuple(tuple(min(1.0, sqrt(value / most)) for value in row) for row in rows)
    return Picture(title="uses", rows=scaled, colours=_USE_COLOURS)


def _rows(
    heat: Sequence[LayerHeat],
    columns: int,
    per_row: int,
    values_of: Callable[[LayerHeat], Sequence[float]],
) -> tuple[tuple[float, ...], ...]:
    """Return the mean of each group of experts, and of each group of layers."""
    starts = group_starts(max(len(layer.uses) for layer in heat), columns)
    size = starts[1] - starts[0] if len(starts) > 1 else max(len(layer.uses) for layer in heat)
    rows = []
    for first in range(0, len(heat), per_row):
        group = [values_of(layer) for layer in heat[first : first + per_row]]
        row = []
        for start in starts:
            cell = [value for values in group for value in values[start : start + size]]
            row.append(sum(cell) / len(cell) if cell else 0.0)
        rows.append(tuple(row))
    return tuple(rows)


def _titles(held: Picture, used: Picture, label_width: int) -> Text:
    line = Text(" " * label_width)
    line.append(held.title.ljust(held.columns))
    line.append(f"{_GAP}{used.title}")
    return line


def _cells(picture: Picture, index: int, page: Page, *, is_coloured: bool) -> Text:
    upper = picture.rows[index]
    if not is_coloured:
        shades = _shades(page)
        return Text("".join(shades[_step(value, len(shades))] for value in upper))
    lower = picture.rows[index + 1] if index + 1 < len(picture.rows) else None
    line = Text()
    for column, value in enumerate(upper):
        style = _colour(picture, value)
        if lower is not None:
            style += f" on {_colour(picture, lower[column])}"
        line.append(_HALF_BLOCK, style=style)
    return line


def _legend(
    heat: Sequence[LayerHeat], held: Picture, used: Picture, page: Page, *, is_coloured: bool
) -> Iterator[Text]:
    experts = max(len(layer.uses) for layer in heat)
    cell = -(-experts // held.columns)
    line = Text("one cell is 1 expert" if cell == 1 else f"one cell is {cell} experts")
    line.append(f" of 1 layer of {len(heat)}" if is_coloured else _layers_of_a_row(heat, held))
    line.append("; from none to all, from unused to most used: ")
    if is_coloured:
        for picture in (held, used):
            for colour in picture.colours:
                line.append("█", style=colour)
            line.append(" ")
    else:
        line.append(f"[{_shades(page)}]")
    line.rstrip()
    yield line


def _layers_of_a_row(heat: Sequence[LayerHeat], held: Picture) -> str:
    per_row = -(-len(heat) // len(held.rows))
    return f" of {per_row} layer{'s' if per_row > 1 else ''} of {len(heat)}"


def _colour(picture: Picture, value: float) -> str:
    return picture.colours[_step(value, len(picture.colours))]


def _step(value: float, steps: int) -> int:
    """Return the shade of a value; only nothing at all has the first one."""
    return 0 if value <= 0 else max(1, min(steps - 1, round(value * (steps - 1))))


def _shades(page: Page) -> str:
    return _ASCII_SHADES if page.glyphs == ASCII else _SHADES
