"""How far loading is: one line on a terminal, which it leaves as it was.

Knows: terminals.
Does not know: what is loaded.
"""

from typing import Final, TextIO

_CLEAR: Final = "\r\x1b[K"


class LoadingLine:
    """A line that is rewritten with each whole percent; nothing at all where nobody looks."""

    def __init__(self, stream: TextIO, name: str, *, is_shown: bool) -> None:
        self._stream = stream
        self._name = name
        self._is_shown = is_shown and stream.isatty()
        self._percent = -1

    def update(self, done_fraction: float) -> None:
        """Show how much is read."""
        percent = int(done_fraction * 100)
        if self._is_shown and percent != self._percent:
            self._percent = percent
            self._stream.write(f"{_CLEAR}loading {self._name}: {percent}%")
            self._stream.flush()

    def finish(self) -> None:
        """Take the line away."""
        if self._is_shown and self._percent >= 0:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._percent = -1
