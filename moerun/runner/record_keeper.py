"""Keeps the record of one runner up to date, while it streams also between answers.

Memory can be looked at from outside, so a record need not be young for that; what the experts do
only the runner knows, so that is asked for again and again.

Knows: when a record is written, and that an answer never depends on it.
Does not know: what is in the figures, or how they are shown.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from moerun.errors import MoerunError
from moerun.experts.counters import StreamingSample
from moerun.runner.records import RunnerRecord, remove_record, write_record
from moerun.runner.statistics import MemorySample

_EVERY_S: Final = 2.0
_STOP_S: Final = 2.0


class RecordKeeper:
    """The record of one runner. `look` and `look_at_experts` ask the runner; both may fail.

    `state` returns the state folder, and `warn` is told once that it takes nothing.
    """

    def __init__(
        self,
        record: RunnerRecord,
        *,
        look: Callable[[], MemorySample],
        look_at_experts: Callable[[], StreamingSample | None] | None,
        state: Callable[[], Path],
        warn: Callable[[str], None],
        every_s: float = _EVERY_S,
    ) -> None:
        self._record = record
        self._look = look
        self._look_at_experts = look_at_experts
        self._state = state
        self._warn = warn
        self._every_s = every_s
        self._has_warned = False
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def record(self) -> RunnerRecord:
        """The record as it was last written."""
        return self._record

    def start(self) -> None:
        """Write the record, and have it follow the experts where they stream."""
        self.refresh()
        if self._look_at_experts is not None:
            self._thread = threading.Thread(target=self._follow, name="record", daemon=True)
            self._thread.start()

    def refresh(self) -> None:
        """Look at everything and write it down; what cannot be written is a warning, once."""
        try:
            sample = self._look()
            self._write(lambda record: record.with_sample(sample))
            self._refresh_experts()
        except MoerunError as error:
            if not self._has_warned:
                self._warn(error.message)
            self._has_warned = True

    def close(self) -> None:
        """Take the record away."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
        with self._lock:
            try:
                remove_record(self._state(), self._record.pid)
            except MoerunError:
                return  # it was warned of when it could not be written

    def _follow(self) -> None:
        while not self._is_over.wait(self._every_s):
            try:
                self._refresh_experts()
            except MoerunError:  # who waits for the runner is told; nobody waits for this
                return

    def _refresh_experts(self) -> None:
        if self._look_at_experts is None:
            return
        streaming = self._look_at_experts()
        if streaming is not None:
            self._write(lambda record: record.with_streaming(streaming))

    def _write(self, change: Callable[[RunnerRecord], RunnerRecord]) -> None:
        with self._lock:
            if self._is_over.is_set():
                return
            self._record = change(self._record)
            write_record(self._state(), self._record)
