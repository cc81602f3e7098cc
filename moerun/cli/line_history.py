"""Line editing and a history of what was typed, where Python has readline.

Knows: the history's file, its length, and who may read it.
Does not know: what the lines mean.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FILE: Final = "history"
_KEPT_LINES: Final = 100
OFF_VARIABLE: Final = "MOERUN_NOHISTORY"


@contextmanager
def line_history(folder: Path | None = None) -> Iterator[None]:
    """Edit lines with history within the context; on a Python without readline, without either."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = _history_path(folder)
    if path is not None and path.is_file():
        try:
            readline.read_history_file(path)
        except OSError as error:
            _tell(path, error)
    readline.set_history_length(_KEPT_LINES)
    try:
        yield
    finally:
        if path is not None:
            try:
                # Made beforehand, so that it is never readable to others.
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
                os.chmod(path, 0o600)
                readline.write_history_file(path)
            except OSError as error:
                _tell(path, error)


def _history_path(folder: Path | None) -> Path | None:
    """Return where the history lies, None when the user wants none."""
    from moerun.places import state_folder

    if os.environ.get(OFF_VARIABLE, "").strip().lower() not in ("", "0", "false", "no"):
        return None
    return (folder or state_folder()) / _FILE


def _tell(path: Path, error: OSError) -> None:
    from moerun.cli.open_model import warn

    warn(f"the history {path} cannot be used: {error.strerror or error}")
