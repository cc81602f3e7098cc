"""Work in a thread that tells of its progress, as lines of a stream.

Knows: how lines cross from a thread to the event loop, and how the thread learns that nobody
listens.
Does not know: what is done, or what the lines say.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from typing import Any

Line = dict[str, Any]


class ClientLeft(Exception):
    """Raised into work whose client has gone."""


class Teller:
    """What the work tells goes through here; each call raises ClientLeft when nobody listens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: deque[Line] = deque()
        self._lock = threading.Lock()
        self._has_come = asyncio.Event()
        self._is_gone = threading.Event()

    def tell(self, line: Line) -> None:
        """Send a line; how far something is replaces what nobody has read of that yet."""
        if self._is_gone.is_set():
            raise ClientLeft
        with self._lock:
            last = self._lines[-1] if self._lines else None
            if last is not None and "completed" in last and last["status"] == line["status"]:
                self._lines.pop()
            self._lines.append(line)
        self.wake()

    def wake(self) -> None:
        """Have whoever reads look again."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._has_come.set)

    async def read(self) -> tuple[Line, ...]:
        """Return what came since the last time; wait for something."""
        await self._has_come.wait()
        self._has_come.clear()
        return self.take()

    def take(self) -> tuple[Line, ...]:
        """Return what came since the last time, waiting for nothing."""
        with self._lock:
            lines = tuple(self._lines)
            self._lines.clear()
        return lines

    def leave(self) -> None:
        """Listen no more."""
        self._is_gone.set()


async def told_lines(
    threads: Executor, work: Callable[[Teller], object]
) -> AsyncGenerator[Line, None]:
    """Yield what the work tells while it does it; raises what it raises at the end."""
    loop = asyncio.get_running_loop()
    teller = Teller(loop)
    done = loop.run_in_executor(threads, work, teller)
    done.add_done_callback(lambda _: teller.wake())
    try:
        while not done.done():
            for line in await teller.read():
                yield line
        for line in teller.take():
            yield line
        done.result()
    finally:
        teller.leave()
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
