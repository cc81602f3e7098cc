"""What a streamer is made of: a mechanism with its policy, guards, and functions of its world.

Knows: the seams between a streamer and what it puts to work.
Does not know: any of the parts, or in which order they are asked.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moerun.engine.interface import MappedFile
from moerun.experts.counters import Latency, SsdCacheUse
from moerun.experts.interface import CachePolicy, ExpertKey, Mechanism
from moerun.experts.prediction import RouterPredictor
from moerun.experts.slots import SlotDesk
from moerun.planning.strategy import StreamingMode

if TYPE_CHECKING:
    from moerun.experts.streamer import Streamer


class Guard(Protocol):
    """What watches over a run: the files, or the memory of the machine."""

    def attach(self, streamer: "Streamer") -> None:
        """Begin to watch."""
        ...

    def check(self) -> None:
        """Raise when what was computed must not leave."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return what it saw that people should know."""
        ...

    def close(self) -> None:
        """End watching."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """A mechanism with its policy, and how long switches of experts took.

    `is_settled` tells whether it holds as much as it can, beside what the policy holds.
    """

    mechanism: Mechanism
    policy: CachePolicy
    latency: Callable[[], Latency | None] = lambda: None
    notes: Callable[[], tuple[str, ...]] = lambda: ()
    is_settled: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a streamer is made of.

    `start` makes a mechanism with an empty policy for so many bytes, `end` ends what they share.
    `foresee` opens what foretells routers, with a note where not all can be. `hot` is what the
    last run used most. `reading` tells bytes read past the page cache, and the time of it,
    `copying` what the SSD cache holds. `desk` is there where the order has slots.
    """

    start: Callable[[StreamingMode, int], Working]
    foresee: Callable[[Sequence[MappedFile]], tuple[RouterPredictor, str | None]]
    guards: tuple[Guard, ...] = ()
    hot: tuple[ExpertKey, ...] = ()
    notes: tuple[str, ...] = ()
    end: Callable[[], None] = lambda: None
    faults: Callable[[], int | None] = lambda: None
    reading: Callable[[], tuple[int, float]] | None = None
    copying: Callable[[], SsdCacheUse | None] = lambda: None
    desk: SlotDesk | None = None
    clock: Callable[[], float] = time.monotonic
