"""From the bytes of tokens to text that can be shown: whole characters, stop strings held back.

Knows: UTF-8 and string matching.
Does not know: the engine, or where text goes.
"""

import codecs
from collections.abc import Callable
from typing import Final

_FIRST_BUFFER_BYTES: Final = 64


def read_piece(read: Callable[[int], tuple[int, bytes]]) -> bytes:
    """Return the whole text of a token through a reader that tells when its buffer is small.

    `read(size)` returns the count of bytes written and the buffer; a negative count is the size
    that was needed. The package's own reader stops at 32 bytes and loses longer tokens.
    """
    count, buffer = read(_FIRST_BUFFER_BYTES)
    if count < 0:
        needed = -count
        count, buffer = read(needed)
        if count != needed:
            raise ValueError(f"a token needed {needed} bytes and then gave {count}")
    return buffer[:count]


class PieceDecoder:
    """Turns pieces into text; bytes of an unfinished character wait for the next piece."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: bytes) -> str:
        """Return the characters that are complete now; bytes that can never be are replaced."""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Return a replacement character for what never became whole."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Lets text through up to the first stop string, holding back what could become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_hit = False
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Return the text that can be shown now; after a hit nothing more comes."""
        if self.is_hit:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            first, self.hit = min(found)
            return text[:first]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back in vain."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
