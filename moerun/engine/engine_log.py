"""The engine's log of this process: a bounded memory of its lines, and a sink for a file.

Knows: how llama.cpp hands over log text.
Does not know: what the lines mean.
"""

import ctypes
import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moerun.engine import abi

_KEPT_LINES: Final = 20_000  # a 100-layer model logs some 4,000
# Debugging lines for each input of each graph: hundreds of a kind, of use to nobody here.
_LOUD: Final = "llama_graph_n_input_tensors:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One whole line with the level it began with."""

    level: int
    text: str


class EngineLog:
    """Collects lines; `mark` and `since` cut out those of one load."""

    def __init__(self) -> None:
        self.sink: Callable[[str], object] | None = None
        self._lines: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self._count = 0
        self._level = int(abi.LogLevel.INFO)
        self._open = ""

    def receive(self, level: int, text: str) -> None:
        """Take a piece of log; a line ends where its newline comes."""
        if level != abi.LogLevel.CONTINUED:
            self._flush()
            self._level = level
        self._open += text
        if self._open.endswith("\n"):
            self._flush()

    def mark(self) -> int:
        """Return the count of lines so far."""
        self._flush()
        return self._count

    def since(self, mark: int, *, least: abi.LogLevel = abi.LogLevel.NONE) -> tuple[str, ...]:
        """Return the lines after a mark that are at least as grave as `least`."""
        self._flush()
        first = max(0, len(self._lines) - (self._count - mark))
        recent = itertools.islice(self._lines, first, None)
        return tuple(line.text for line in recent if line.level >= least)

    def tail(self, count: int = 30) -> str:
        """Return the last lines that are not debugging."""
        lines = self.since(0, least=abi.LogLevel.INFO)
        return "\n".join(lines[-count:])

    def _flush(self) -> None:
        for text in self._open.splitlines():
            if text.startswith(_LOUD):
                continue
            self._lines.append(LogLine(level=self._level, text=text))
            self._count += 1
            if self.sink is not None and self._level != abi.LogLevel.DEBUG:
                self.sink(text + "\n")
        self._open = ""


@functools.cache
def engine_log() -> EngineLog:
    """Return the log of this process, taking it over from the library at the first call."""
    opened = abi.open_engine()
    log = EngineLog()

    def receive(level: int, text: bytes, _: Any) -> None:
        try:
            log.receive(level, text.decode("utf-8", "replace"))
        except Exception as error:  # an exception must not pass through C
            sys.stderr.write(f"moerun: a line of the engine's log was lost: {error}\n")

    callback = opened.llama.llama_log_callback(receive)
    opened.llama.llama_log_set(callback, ctypes.c_void_p(None))
    _kept_alive.append(callback)
    return log


# The library keeps the pointer for good, so the callback must never be collected.
_kept_alive: Final[list[Any]] = []
