"""An answer as it goes to standard output: as it comes, and safe for a terminal.

In a pipe the text leaves untouched, piece by piece. On a terminal control characters are left out,
since a model's text may carry sequences that a terminal obeys, and lines are broken between words.
A newline follows an answer that does not end in one.

Knows: streams, which characters act on terminals, and how thinking is set apart.
Does not know: models.
"""

from typing import Final, TextIO

from moerun.engine.interface import AnswerPart
from moerun.report.word_wrap import WordWrap

_ALLOWED = frozenset("\n\t")
_GREY: Final = "\x1b[90m"
_PLAIN: Final = "\x1b[0m"
_THINKING: Final = "Thinking..."
_DONE_THINKING: Final = "...done thinking."


def visible(text: str) -> str:
    """Return a text without C0 and C1 control characters, newline and tab excepted."""
    return "".join(c for c in text if c in _ALLOWED or not _is_control(c))


class AnswerWriter:
    """One text on its way; `text` is what the model said so far."""

    def __init__(self, stream: TextIO, *, is_terminal: bool, columns: int | None = None) -> None:
        """Prepare; `columns` breaks lines between words there."""
        self._stream = stream
        self._is_terminal = is_terminal
        self._wrap = WordWrap(columns) if columns is not None else None
        self._pieces: list[str] = []

    def write(self, piece: str) -> None:
        """Show the next piece at once; BrokenPipeError when nobody reads any more."""
        self._pieces.append(piece)
        self._show(visible(piece) if self._is_terminal else _encodable(piece, self._stream))

    def finish(self) -> None:
        """End the last line, where there is one that is open."""
        text = self.text
        if self._wrap is not None:
            self._stream.write(self._wrap.finish())
        if text and not text.endswith("\n"):
            self._stream.write("\n")
        self._stream.flush()

    @property
    def text(self) -> str:
        """Return the whole text so far."""
        return "".join(self._pieces)

    def _show(self, text: str) -> None:
        self._stream.write(self._wrap.feed(text) if self._wrap is not None else text)
        self._stream.flush()


class AnswerView:
    """One answer with its thinking, which is set apart; either may be shown nowhere."""

    def __init__(
        self,
        content: AnswerWriter,
        *,
        thinking: AnswerWriter | None,
        marks: TextIO | None = None,
        is_coloured: bool = False,
    ) -> None:
        """Prepare; `marks` is the stream on which thinking is shown between its two lines."""
        self._content = content
        self._thinking = thinking
        self._marks = marks
        self._is_coloured = is_coloured
        self._is_thinking = False
        self._unshown: list[str] = []

    def show(self, part: AnswerPart) -> None:
        """Show what came next."""
        if part.thinking:
            self._show_thinking(part.thinking)
        if part.text:
            self._end_thinking()
            self._content.write(part.text)

    def finish(self) -> None:
        """End what is open, as after the last part or an interruption."""
        self._end_thinking()
        self._content.finish()

    @property
    def text(self) -> str:
        """Return the content so far."""
        return self._content.text

    @property
    def thinking(self) -> str:
        """Return what the model thought so far."""
        return self._thinking.text if self._thinking is not None else "".join(self._unshown)

    def _show_thinking(self, piece: str) -> None:
        if self._thinking is None:
            self._unshown.append(piece)
            return
        if not self._is_thinking:
            self._is_thinking = True
            self._mark(f"{_THINKING}\n" + (_GREY if self._is_coloured else ""))
            piece = piece.lstrip("\n")
        self._thinking.write(piece)

    def _end_thinking(self) -> None:
        if self._thinking is None or not self._is_thinking:
            return
        self._is_thinking = False
        self._thinking.finish()
        self._mark((_PLAIN if self._is_coloured else "") + f"{_DONE_THINKING}\n\n")

    def _mark(self, text: str) -> None:
        if self._marks is not None:
            self._marks.write(text)
            self._marks.flush()


def terminal_answer(
    stream: TextIO, *, columns: int | None, shows_thinking: bool, is_coloured: bool
) -> AnswerView:
    """Return the view of an answer on a terminal."""
    writer = AnswerWriter(stream, is_terminal=True, columns=columns)
    thinking = AnswerWriter(stream, is_terminal=True, columns=columns) if shows_thinking else None
    return AnswerView(writer, thinking=thinking, marks=stream, is_coloured=is_coloured)


def _encodable(text: str, stream: TextIO) -> str:
    """Replace what the stream's encoding lacks, rather than end the answer."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"
