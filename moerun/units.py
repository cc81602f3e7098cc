"""Sizes, counts and rates as people write and read them.

Knows: binary and decimal suffixes, percentages, the one way sizes are printed.
Does not know: what the bytes are for, or where they live.
"""

import re
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_MULTIPLIERS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "kb": 10**3,
    "m": MIB,
    "mib": MIB,
    "mb": 10**6,
    "g": GIB,
    "gib": GIB,
    "gb": 10**9,
    "t": TIB,
    "tib": TIB,
    "tb": 10**12,
}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<suffix>[a-z]*)", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*%", re.ASCII)


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` names: `8G` and `8GiB` are 8 * 2^30, `8GB` is 8 * 10^9.

    Raises ValueError with a sentence for anything else, negative sizes included.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match["suffix"].lower() not in _MULTIPLIERS:
        raise ValueError(f"'{text}' is not a size; write for example 8G, 512M or 10GB")
    return int(float(match["number"]) * _MULTIPLIERS[match["suffix"].lower()])


def parse_fraction(text: str) -> float:
    """Return the fraction (0 to 1) that a percentage such as `80%` names; ValueError otherwise."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None or float(match["number"]) > 100:
        raise ValueError(f"'{text}' is not a percentage between 0% and 100%")
    return float(match["number"]) / 100


def format_gib(size_bytes: int) -> str:
    """Return a size in GiB with one decimal, or in MiB or KiB where GiB would read 0.0."""
    if abs(size_bytes) >= GIB // 10:
        return f"{size_bytes / GIB:,.1f} GiB"
    if abs(size_bytes) >= MIB // 10:
        return f"{size_bytes / MIB:,.1f} MiB"
    if abs(size_bytes) >= KIB:
        return f"{size_bytes / KIB:,.1f} KiB"
    return f"{size_bytes} B"
