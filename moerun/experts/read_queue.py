"""Which read is begun next: what is waited for first, what is only read ahead when there is room.

Knows: reads that were not begun, in two queues, and how many of those ahead are under way.
Does not know: threads, files, or time. Who uses a queue from several threads has the lock.
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class Fetch:
    """Something that is being read, in one or several pieces; `done_s` is when it was whole."""

    __slots__ = ("_left", "_waiting", "done_s", "failure", "started_s", "was_cancelled")

    def __init__(self, pieces: int, started_s: float) -> None:
        self._left = pieces
        # Held until the last piece is there; a tenth of what an event costs, for every slice.
        self._waiting = threading.Lock()
        self._waiting.acquire()
        self.started_s = started_s
        self.done_s = 0.0
        self.failure: Exception | None = None
        self.was_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether all pieces were read, or failed."""
        return not self._left

    def wait(self) -> None:
        """Wait until all pieces are there; raises what a read raised."""
        self.settle()
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        """Wait until nothing is read any more, whatever came of it."""
        if self._left:
            with self._waiting:
                pass

    def note(self, failure: Exception | None, at_s: float) -> None:
        """Count one piece; called under the reader's lock."""
        self.failure = self.failure or failure
        if self._left == 1:
            self.done_s = at_s  # before it is done, since others look without the lock
        self._left -= 1
        if self._left == 0:
            self._waiting.release()


class Read(NamedTuple):
    """One read: into memory at `address`, and what waits for it."""

    file: int
    address: int
    offset_bytes: int
    size_bytes: int
    fetches: tuple[Fetch, ...]


class ReadQueue:
    """Reads in their order, of which at most `most_ahead` are ahead and under way at once."""

    def __init__(self, *, most_ahead: int) -> None:
        self._wanted: deque[Read] = deque()
        self._ahead: deque[Read] = deque()
        self._most_ahead = most_ahead
        self._ahead_under_way = 0

    def put(self, reads: Iterable[Read], *, is_ahead: bool) -> int:
        """Add reads, and return how many."""
        waiting = self._ahead if is_ahead else self._wanted
        before = len(waiting)
        waiting.extend(reads)
        return len(waiting) - before

    def take(self) -> tuple[Read, bool] | None:
        """Return the read to begin and whether it is ahead; None where none may begin now."""
        if self._wanted:
            return self._wanted.popleft(), False
        if self._ahead and self._ahead_under_way < self._most_ahead:
            self._ahead_under_way += 1
            return self._ahead.popleft(), True
        return None

    def note_ahead_done(self) -> None:
        """Note that a read ahead is over."""
        self._ahead_under_way -= 1

    def hasten(self, fetches: Iterable[Fetch]) -> None:
        """Have what was only read ahead be waited for."""
        wanted = set(map(id, fetches))
        kept: deque[Read] = deque()
        for read in self._ahead:
            is_wanted = any(id(fetch) in wanted for fetch in read.fetches)
            (self._wanted if is_wanted else kept).append(read)
        self._ahead = kept

    def give_up(self, fetch: Fetch) -> int:
        """Forget the reads ahead that nothing but a fetch waits for, and return how many."""
        kept = deque(read for read in self._ahead if read.fetches != (fetch,))
        given_up = len(self._ahead) - len(kept)
        self._ahead = kept
        return given_up

    def give_up_all(self) -> tuple[Read, ...]:
        """Forget all reads, and return them."""
        reads = (*self._wanted, *self._ahead)
        self._wanted.clear()
        self._ahead.clear()
        return reads
