"""The terminal that answers go to: how wide it is, and whether it has colours.

Knows: NO_COLOR and TERM.
Does not know: what is printed. Not rich, which an answer need not wait for.
"""

import os
import shutil
from collections.abc import Mapping

_UNKNOWN_COLUMNS = 80
_SPARE_COLUMNS = 1  # a terminal breaks by itself behind the last one


def answer_columns() -> int:
    """Return how many columns of text fit into a line now."""
    return shutil.get_terminal_size((_UNKNOWN_COLUMNS, 24)).columns - _SPARE_COLUMNS


def has_colours(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a terminal is to be coloured."""
    environment = os.environ if environment is None else environment
    return not environment.get("NO_COLOR") and environment.get("TERM", "") != "dumb"
