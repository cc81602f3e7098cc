"""Settings with their origins as lines for a terminal.

Knows: columns and colours of `moerun config`, and how a value stands on one line.
Does not know: which keys there are, or where values come from.
"""

import json
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from moerun.settings.description import DEFAULT_ORIGIN

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One key with its value as a file would hold it, and where it was set."""

    key: str
    value: Any
    origin: str


def config_lines(rows: tuple[SettingRow, ...]) -> tuple[Text, ...]:
    """Return a heading and one line for each key; what is not default stands out."""
    cells = [("KEY", "VALUE", "ORIGIN")]
    cells += [(row.key, value_text(row.value), row.origin) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(2)]
    lines = []
    for index, (key, value, origin) in enumerate(cells):
        line = Text(key.ljust(widths[0]) + _GAP + value.ljust(widths[1]) + _GAP + origin)
        if index == 0:
            line.stylize("bold")
        elif origin == DEFAULT_ORIGIN:
            line.stylize("dim")
        lines.append(line)
    return tuple(lines)


def value_text(value: Any) -> str:
    """Return a value on one line, so that a file or a variable takes it as it stands."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(value_text(item) for item in value)}]"
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
