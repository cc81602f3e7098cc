"""Lines to standard error: hints, warnings, errors. Nothing else depends on their arrival.

Knows: that nobody may be there to read them.
Does not know: what they say.
"""

import os
import sys


def tell(*lines: str) -> None:
    """Write lines to standard error at once; where it takes none, they are lost and no more."""
    try:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence()


def _silence() -> None:
    """Point standard error nowhere, so that the rest of its buffer fails no later flush."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stderr.fileno())
        finally:
            os.close(nowhere)
    except (OSError, ValueError):
        return  # no descriptor lies behind it
