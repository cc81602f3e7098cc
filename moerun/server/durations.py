"""Times as the APIs write them: keep-alive, nanoseconds, RFC 3339.

Knows: Go's durations (`1h30m`, `-1`), and how far ahead `forever` is shown.
Does not know: clocks; moments are handed in.
"""

import math
import re
from datetime import UTC, datetime
from typing import Any, Final

FOREVER_S: Final = math.inf
_NS_PER_S: Final = 1_000_000_000
_UNITS_S: Final = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>h|ms|m|s|us|µs|ns)")
_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_LONGEST_TEXT: Final = 64  # characters
# ollama shows a model that is kept for ever with a date this far ahead, and `ps` knows it so
_FAR_AHEAD_S: Final = 100 * 365.25 * 86_400


def parse_keep_alive(value: Any) -> float:
    """Return seconds; negative is for ever, 0 at once. ValueError with a sentence otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"keep_alive takes a duration such as 5m, or seconds, not {value!r:.40}")
    if isinstance(value, str):
        return _of_text(value)
    return _bounded(float(value)) if abs(value) < 1e300 else FOREVER_S


def nanoseconds(seconds: float) -> int:
    """Return whole nanoseconds."""
    return max(0, round(seconds * _NS_PER_S))


def moment(at_s: float) -> str:
    """Return a moment of the wall clock in RFC 3339, six digits of fraction, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def expiry(now_s: float, left_s: float) -> str:
    """Return when a model ends that is kept for `left_s` more seconds."""
    return moment(now_s + (_FAR_AHEAD_S if left_s > _FAR_AHEAD_S else left_s))


def _of_text(text: str) -> float:
    bare = text.strip()
    if len(bare) > _LONGEST_TEXT:
        raise ValueError(f"keep_alive '{bare[:20]}...' is too long")
    if _NUMBER.fullmatch(bare):
        return _bounded(float(bare))
    sign = -1.0 if bare.startswith("-") else 1.0
    rest = bare.removeprefix("-").removeprefix("+")
    total, position = 0.0, 0
    for part in _PART.finditer(rest):
        if part.start() != position:
            break
        total += float(part["number"]) * _UNITS_S[part["unit"]]
        position = part.end()
    if not rest or position != len(rest):
        raise ValueError(f"keep_alive '{bare}' is not a duration; write 5m, 1h30m, 0 or -1")
    return _bounded(sign * total)


def _bounded(seconds: float) -> float:
    if math.isnan(seconds):
        raise ValueError("keep_alive is not a number")
    return FOREVER_S if seconds < 0 or seconds > _FAR_AHEAD_S else seconds
