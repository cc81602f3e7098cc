"""What slots may gain over whole layers of experts in the same memory: a model with few numbers.

A token reads its experts from the device where they are in slots. What misses is copied to pinned
memory and from there to the device, one after the other, and read then. Whole layers in the same
memory let the processor read the rest where it is. So slots win where the link is fast beside the
processor, and lose where it is not, however many hits there are.

The hits are those of recorded routing: for each share of the experts, the lower of the rates of
two traces (qwen3-30b-a3b and gpt-oss-120b, later half of the answers, slots of each layer, policy
`frequency`: `moerun simulate TRACE --slots 10%`, docs/figures.md). Beyond 30 % the traces are too
short to tell (13.5 % of what is asked of the second is asked for the first time), and the line goes
straight to all. Models of many small experts route more evenly: theirs are the rates of 93 and 186
slots that kekzl/imp published for a model of 512. Both curves bend downwards everywhere, so that
no device is starved for another.

Knows: the curves, and how bytes and rates make seconds.
Does not know: plans, layers, or whether slots are wanted.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_COARSE: Final = (
    (0.0, 0.0), (0.05, 0.367), (0.10, 0.563), (0.15, 0.693), (0.20, 0.769), (0.25, 0.834),
    (0.30, 0.859), (1.0, 1.0),
)  # fmt: skip
_FINE: Final = ((0.0, 0.0), (0.182, 0.435), (0.363, 0.620), (1.0, 1.0))
_COARSE_EXPERTS: Final = 128  # the traces are of models with so many experts in a layer
LAYER_S: Final = 60e-6
"""What a layer costs beside all reading: asking which experts it chose, and rewriting that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device reads of its own memory, what reaches it from the host, what the host reads."""

    device_bytes_per_s: float
    link_bytes_per_s: float
    host_bytes_per_s: float

    @property
    def upload_bytes_per_s(self) -> float:
        """What misses come at: each is read on the host, then sent."""
        return 1 / (1 / self.link_bytes_per_s + 1 / self.host_bytes_per_s)


def expected_hit_fraction(held_fraction: float, *, expert_count: int) -> float:
    """Return the share of requests that slots for such a share of a layer's experts may answer."""
    curve: Sequence[tuple[float, float]] = _COARSE if expert_count <= _COARSE_EXPERTS else _FINE
    held = min(1.0, max(0.0, held_fraction))
    after = min(bisect_right([share for share, _ in curve], held), len(curve) - 1)
    (low, low_hits), (high, high_hits) = curve[after - 1], curve[after]
    return low_hits + (high_hits - low_hits) * (held - low) / (high - low)


def slots_token_s(token_bytes: float, *, hit_fraction: float, layers: int, rates: Rates) -> float:
    """Return what a token's experts take with slots: all are read there, misses uploaded before."""
    read_s = token_bytes / rates.device_bytes_per_s
    upload_s = token_bytes * (1 - hit_fraction) / rates.upload_bytes_per_s
    return read_s + upload_s + layers * LAYER_S


def static_token_s(token_bytes: float, *, held_fraction: float, rates: Rates) -> float:
    """Return what a token's experts take with that share of them in whole layers on the device."""
    on_device_s = token_bytes * held_fraction / rates.device_bytes_per_s
    return on_device_s + token_bytes * (1 - held_fraction) / rates.host_bytes_per_s


def break_even_hit_fraction(
    token_bytes: float, *, held_fraction: float, layers: int, rates: Rates
) -> float:
    """Return the share of hits from which slots are faster than whole layers; above 1: never."""
    static_s = static_token_s(token_bytes, held_fraction=held_fraction, rates=rates)
    without_misses_s = slots_token_s(token_bytes, hit_fraction=1.0, layers=layers, rates=rates)
    if token_bytes <= 0:
        return 0.0
    return 1 - (static_s - without_misses_s) * rates.upload_bytes_per_s / token_bytes
