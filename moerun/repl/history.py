"""What was typed before, in a file of this user's own.

One entry a line, the newest last; a line break within an entry is written as \\n.

Knows: the file, how many entries are kept, and who may read it.
Does not know: what the entries mean, or how they are offered.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from moerun.places import state_folder, write_whole

OFF_VARIABLE: Final = "MOERUN_NOHISTORY"
_FILE: Final = "history"
_KEPT: Final = 100
_ESCAPE: Final = re.compile(r"\\(\\|n)")


class TypedLines:
    """The entries; a file that cannot be used is told of once, and then left alone."""

    def __init__(self, path: Path, warn: Callable[[str], None], *, is_kept: bool) -> None:
        self._path = path
        self._warn = warn
        self._has_warned = False
        self.is_kept = is_kept

    def entries(self) -> tuple[str, ...]:
        """Return what was typed, the oldest first; nothing where no history is wanted."""
        if not self.is_kept:
            return ()
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._tell(error)
            return ()
        return tuple(_read(line) for line in text.split("\n") if line)[-_KEPT:]

    def add(self, entry: str) -> None:
        """Keep one more entry; what other conversations added meanwhile stays."""
        if not self.is_kept or self._has_warned:
            return
        kept = (*self.entries(), entry)[-_KEPT:]
        try:
            write_whole(self._path, "".join(f"{_written(each)}\n" for each in kept))
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._has_warned:
            self._warn(f"the history {self._path} cannot be used: {error.strerror or error}")
        self._has_warned = True


def typed_lines(
    warn: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> TypedLines:
    """Return the history of this user, which MOERUN_NOHISTORY turns off."""
    environment = os.environ if environment is None else environment
    is_off = environment.get(OFF_VARIABLE, "").strip().lower() not in ("", "0", "false", "no")
    return TypedLines(state_folder() / _FILE, warn, is_kept=not is_off)


def _written(entry: str) -> str:
    return entry.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-8", "replace").decode()


def _read(line: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else "\\", line)
