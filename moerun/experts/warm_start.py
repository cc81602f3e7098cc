"""Reading what the last run used most, while nobody waits for anything.

Knows: when nothing is being computed, and how fast it may read then.
Does not know: what is hot, or how experts are read.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from moerun.errors import MoerunError
from moerun.experts.interface import ExpertKey

_IDLE_S: Final = 0.5
_PACE_BYTES_PER_S: Final = 400_000_000  # a fraction of any disk that streaming makes sense on


class WarmStart:
    """A thread that reads experts one by one as long as the model is idle and there is room.

    `prefetch` starts reading one expert and returns the bytes asked for, `idle_s` tells for how
    long nothing was computed, `has_room` whether another expert would be held.
    """

    def __init__(
        self,
        keys: Sequence[ExpertKey],
        *,
        prefetch: Callable[[ExpertKey], int],
        idle_s: Callable[[], float],
        has_room: Callable[[], bool],
    ) -> None:
        self._keys = tuple(keys)
        self._prefetch = prefetch
        self._idle_s = idle_s
        self._has_room = has_room
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warm start", daemon=True)
        self.read_bytes = 0
        self.failure: str | None = None

    def start(self) -> None:
        """Begin to wait for idleness."""
        if self._keys:
            self._thread.start()

    def stop(self) -> None:
        """End, and return when nothing more will be asked for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        for key in self._keys:
            while (short_s := _IDLE_S - self._idle_s()) > 0:
                if self._stopping.wait(short_s):
                    return
            if self._stopping.is_set() or not self._has_room():
                return
            started_s = time.monotonic()
            try:
                asked_bytes = self._prefetch(key)
            except MoerunError as error:  # nobody waits for it: told among the notes
                self.failure = error.message
                return
            self.read_bytes += asked_bytes
            rest_s = asked_bytes / _PACE_BYTES_PER_S - (time.monotonic() - started_s)
            if rest_s > 0 and self._stopping.wait(rest_s):
                return
