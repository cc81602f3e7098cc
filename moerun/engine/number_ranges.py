"""Numbers between bounds, as grammar.

Knows: decimal digits.
Does not know: schemas, or what the numbers count.
"""

from typing import Final

_MOST_DIGITS: Final = 15
_FRACTION: Final = '("." [0-9]{1,15})?'


def integers_between(least: int | None, most: int | None) -> str:
    """Return the grammar of the integers of a range; None is no bound."""
    parts = _signed(least, most)
    return f"({' | '.join(parts)})"


def numbers_between(least: int | None, most: int | None) -> str:
    """Return the grammar of decimal numbers of a range whose bounds are integers."""
    parts: list[str] = []
    if most is None or most >= 0:
        low = max(0, least or 0)
        parts += _reals(low, most)
    if least is None or least < 0:
        low = 0 if most is None or most >= 0 else -most
        parts += [f'"-" ({part})' for part in _reals(low, None if least is None else -least)]
    return f"({' | '.join(parts)})"


def _reals(least: int, most: int | None) -> list[str]:
    """Return numbers without a sign: any fraction below the last integer, none at it."""
    if most is None:
        return [f"({' | '.join(_unsigned(least, None))}) {_FRACTION}"]
    parts = []
    if least < most:
        parts.append(f"({' | '.join(_unsigned(least, most - 1))}) {_FRACTION}")
    return [*parts, f'"{most}" ("." "0"{{1,15}})?']


def _signed(least: int | None, most: int | None) -> list[str]:
    parts: list[str] = []
    if most is None or most >= 0:
        parts += _unsigned(max(0, least or 0), most)
    if least is None or least < 0:
        low = 1 if most is None or most >= 0 else -most
        high = None if least is None else -least
        parts += [f'"-" ({part})' for part in _unsigned(low, high)]
    return parts


def _unsigned(least: int, most: int | None) -> list[str]:
    """Return alternatives for integers from `least` to `most`, both included."""
    if most is None:
        digits = len(str(least))
        longer = max(digits, _MOST_DIGITS) - 1
        same = _same_length(str(least), "9" * digits)
        return [*same, f"[1-9] [0-9]{{{digits},{longer}}}"] if longer >= digits else same
    parts = []
    for digits in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (digits - 1) if digits > 1 else 0)
        high = min(most, 10**digits - 1)
        if low <= high:
            parts += _same_length(str(low), str(high))
    return parts


def _same_length(low: str, high: str) -> list[str]:
    """Return alternatives for digits between two numbers of one length."""
    if not low:
        return ['""']
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [_digit(low[0], high[0]) + (f" [0-9]{{{rest}}}" if rest else "")]
    if low[0] == high[0]:
        inner = _same_length(low[1:], high[1:])
        return [f'"{low[0]}" ({" | ".join(inner)})']
    parts = [f'"{low[0]}" ({" | ".join(_same_length(low[1:], "9" * rest))})']
    if int(high[0]) - int(low[0]) > 1:
        parts.append(
            _digit(str(int(low[0]) + 1), str(int(high[0]) - 1))
            + (f" [0-9]{{{rest}}}" if rest else "")
        )
    parts.append(f'"{high[0]}" ({" | ".join(_same_length("0" * rest, high[1:]))})')
    return parts


def _digit(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"
