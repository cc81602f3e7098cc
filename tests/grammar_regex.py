"""A grammar without rules as a regular expression, which says what it lets through."""

import re

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[()|?*+]|\s+')


def regex_of(expression: str) -> re.Pattern[str]:
    """Return the same language: literals, classes, groups, choices and counts are understood."""
    pieces = re.findall(
        r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[()|?*+]|\s+', expression
    )
    assert "".join(pieces) == expression, f"not of this kind: {expression[:200]}"
    return re.compile("".join(_piece(piece) for piece in pieces))


def _piece(piece: str) -> str:
    if piece.startswith('"'):
        text = piece[1:-1].replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
        return f"(?:{re.escape(text)})" if text else ""
    return "" if piece.isspace() else piece
