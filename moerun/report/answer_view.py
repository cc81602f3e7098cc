"""An answer as it goes to standard output: as it comes, and safe for a terminal.

In a pipe the text leaves untouched, piece by piece. On a terminal control characters are left out,
since a model's text may carry sequences that a terminal obeys. A newline follows an answer that
does not end in one.

Knows: streams, and which characters act on terminals.
Does not know: models.
"""

from typing import TextIO

_ALLOWED = frozenset("\n\t")


def visible(text: str) -> str:
    """Return a text without C0 and C1 control characters, newline and tab excepted."""
    return "".join(c for c in text if c in _ALLOWED or not _is_control(c))


class AnswerWriter:
    """One answer on its way; `text` is what the model said so far."""

    def __init__(self, stream: TextIO, *, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._pieces: list[str] = []

    def write(self, piece: str) -> None:
        """Show the next piece at once; BrokenPipeError when nobody reads any more."""
        self._pieces.append(piece)
        self._stream.write(visible(piece) if self._is_terminal else _encodable(piece, self._stream))
        self._stream.flush()

    def finish(self) -> None:
        """End the last line, where there is one that is open."""
        text = self.text
        if text and not text.endswith("\n"):
            self._stream.write("\n")
            self._stream.flush()

    @property
    def text(self) -> str:
        """Return the whole answer so far."""
        return "".join(self._pieces)


def _encodable(text: str, stream: TextIO) -> str:
    """Replace what the stream's encoding lacks, rather than end the answer."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"
