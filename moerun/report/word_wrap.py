"""Lines broken between words, for text that comes in pieces.

Knows: which characters take two columns, and where a line may be broken.
Does not know: terminals, or where the text comes from.
"""

import unicodedata
from typing import Final

_FEWEST_COLUMNS: Final = 20
_TAB_COLUMNS: Final = 8


class WordWrap:
    """Text on its way; a word is held back until it has ended, since only then its line is known.

    Wide characters (of Chinese, say) may be parted anywhere. A word longer than a line is cut.
    """

    def __init__(self, columns: int) -> None:
        self._columns = max(_FEWEST_COLUMNS, columns)
        self._column = 0
        self._blanks = ""
        self._word = ""

    def feed(self, piece: str) -> str:
        """Return what can be shown of the text so far."""
        shown: list[str] = []
        for character in piece:
            if character == "\n":
                shown += [self._placed_word(), "\n"]
                self._column, self._blanks = 0, ""
            elif character in " \t":
                shown.append(self._placed_word())
                self._blanks += character
            elif _columns_of(character) == 2:
                shown.append(self._placed_word())
                self._word = character
            else:
                if self._word and _columns_of(self._word[-1]) == 2:
                    shown.append(self._placed_word())
                self._word += character
                if _width(self._word) >= self._columns:
                    shown.append(self._placed_word())
        return "".join(shown)

    def finish(self) -> str:
        """Return what was held back."""
        shown = self._placed_word() + self._blanks
        self._column, self._blanks = 0, ""
        return shown

    def _placed_word(self) -> str:
        """Return the word that was held back, on a line of its own where it does not fit."""
        if not self._word:
            return ""
        blanks, word = self._blanks, self._word
        self._blanks = self._word = ""
        if self._column and self._column + _width(blanks) + _width(word) > self._columns:
            self._column = _width(word)
            return "\n" + word
        self._column += _width(blanks) + _width(word)
        return blanks + word


def _width(text: str) -> int:
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if character == "\t":
        return _TAB_COLUMNS
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
