r"""Regular expressions as grammar, for texts within a JSON string.

Anchors at both ends are taken for granted. Characters that JSON escapes come out escaped.

Knows: literals, classes, groups, alternatives and counts.
Does not know: assertions, references back, or whatever else makes an expression irregular.
"""

from typing import Final, NoReturn

from moerun.errors import UsageError

_MOST_CHARACTERS: Final = 2_000
_MOST_REPEATS: Final = 2_000
_MOST_DEPTH: Final = 30
_CLASSES: Final = {
    "d": "0-9",
    "w": "a-zA-Z0-9_",
    "s": " ",  # of blank space only what JSON does not escape
}
_ANY: Final = r'[^"\\\x7F\x00-\x1F]'
_UNESCAPED: Final = r'"\\\x7F\x00-\x1F'


def quoted(text: str) -> str:
    """Return a text as a literal of a grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def pattern_rule(pattern: object) -> str:
    """Return the grammar of the texts that match; UsageError for what cannot be followed."""
    if not isinstance(pattern, str) or len(pattern) > _MOST_CHARACTERS:
        raise UsageError(
            f"A pattern of the JSON schema is no text of at most {_MOST_CHARACTERS:,} characters."
        )
    return _Reader(pattern).read()


class _Reader:
    """A reader by descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._text = pattern.removeprefix("^")
        if self._text.endswith("$") and not self._text.endswith("\\$"):
            self._text = self._text[:-1]
        self._at = 0
        self._depth = 0

    def read(self) -> str:
        rule = self._alternatives()
        if self._at < len(self._text):
            self._refuse(f"'{self._text[self._at]}' stands alone")
        return rule

    def _alternatives(self) -> str:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            self._refuse("it is nested too deeply")
        choices = [self._sequence()]
        while self._next("|"):
            choices.append(self._sequence())
        self._depth -= 1
        return f"({' | '.join(choices)})"

    def _sequence(self) -> str:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._atom() + self._count())
        return " ".join(parts) or '""'

    def _atom(self) -> str:
        letter = self._take()
        match letter:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _ANY
            case "\\":
                return self._escape()
            case "^" | "$":
                self._refuse("it has an anchor in its middle")
            case "*" | "+" | "?" | "{":
                self._refuse(f"'{letter}' counts nothing")
            case _:
                return _one(letter)

    def _group(self) -> str:
        if self._next("?") and not self._next(":"):
            self._refuse("it uses an assertion or a named group")
        rule = self._alternatives()
        if not self._next(")"):
            self._refuse("a bracket is not closed")
        return rule

    def _escape(self) -> str:
        letter = self._take()
        if letter in _CLASSES:
            return f"[{_CLASSES[letter]}]"
        if letter in "DWS":
            return f"[^{_CLASSES[letter.lower()]}{_UNESCAPED}]"
        return _one(self._escaped(letter))

    def _escaped(self, letter: str) -> str:
        """Return the character that an escape means."""
        if letter in "ntrf":
            return {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}[letter]
        if letter in "xu":
            digits = "".join(self._take() for _ in range(2 if letter == "x" else 4))
            try:
                return chr(int(digits, 16))
            except ValueError:
                self._refuse("an escape is cut off")
        if letter.isalnum():
            self._refuse(f"it uses \\{letter}")
        return letter

    def _class(self) -> str:
        is_negated = self._next("^")
        parts: list[str] = []
        while not self._next("]") or not parts:
            letter = self._take()
            if letter == "\\" and self._text[self._at : self._at + 1] in ("d", "w", "s"):
                parts.append(_CLASSES[self._take()])
                continue
            first = self._escaped(self._take()) if letter == "\\" else letter
            parts.append(self._range(first))
        inner = "".join(parts)
        return f"[^{inner}{_UNESCAPED}]" if is_negated else f"[{inner}]"

    def _range(self, first: str) -> str:
        rest = self._text[self._at : self._at + 2]
        if len(rest) == 2 and rest[0] == "-" and rest[1] != "]":
            self._at += 1
            last = self._take()
            last = self._escaped(self._take()) if last == "\\" else last
            if ord(last) < ord(first):
                self._refuse("a range runs backwards")
            if any(ord(first) <= ord(c) <= ord(last) for c in '"\\') or ord(first) < 0x20:
                self._refuse("a range has characters in it that JSON escapes")
            return f"{_in_class(first)}-{_in_class(last)}"
        if first in '"\\' or ord(first) < 0x20:
            self._refuse("a class has a character in it that JSON escapes")
        return _in_class(first)

    def _count(self) -> str:
        for mark in "*+?":
            if self._next(mark):
                self._next("?")  # greedy or not, the texts are the same
                return mark
        if not self._next("{"):
            return ""
        inner, brace, _ = self._text[self._at :].partition("}")
        low, comma, high = inner.partition(",")
        if not brace or not low.isdigit() or not (high.isdigit() or not high):
            self._refuse("a count is no number")
        if max(int(low), int(high or 0)) > _MOST_REPEATS:
            self._refuse(f"a count is above {_MOST_REPEATS:,}")
        self._at += len(inner) + 1
        self._next("?")
        return f"{{{low}{comma}{high}}}"

    def _next(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _take(self) -> str:
        if self._at >= len(self._text):
            self._refuse("it breaks off")
        self._at += 1
        return self._text[self._at - 1]

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(
            f"The pattern {self._pattern[:60]!r} of the JSON schema cannot be followed: {why}."
        )


def _one(letter: str) -> str:
    """Return one character as it stands in JSON, as a literal."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\f": "\\f"}
    return quoted(escapes.get(letter, letter))


def _in_class(letter: str) -> str:
    return f"\\x{ord(letter):02X}" if letter in "]^-[\\" else letter
