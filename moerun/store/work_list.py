"""What is left to do of one download, shared by the threads that fetch and the one that hashes.

A piece is missing, claimed by a connection, there since an earlier process and unchecked, or done.
Connections claim runs of missing pieces from the front, so that the hash, which must go in order,
follows close behind them and nothing is read twice.

Knows: who may do what next, and when all is over.
Does not know: connections, digests, or where bytes lie.
"""

import threading
from dataclasses import dataclass
from typing import Final

from moerun.store.pieces import PieceBook
from moerun.units import MIB

_MISSING: Final = 0
_CLAIMED: Final = 1
_UNCHECKED: Final = 2
_DONE: Final = 3

_RUNS: Final = 64  # a file is fetched in so many requests, or more where runs would be longer
_LEAST_RUN_BYTES: Final = MIB
_MOST_RUN_BYTES: Final = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Pieces that can be hashed next, from `first` to `end` (exclusive)."""

    first: int
    end: int
    is_unchecked: bool


class WorkList:
    """The states of all pieces; every method may be called from any thread."""

    def __init__(self, book: PieceBook) -> None:
        self._book = book
        self._states = bytearray(book.count)
        self._lock = threading.Lock()
        self._has_missing = threading.Condition(self._lock)
        self._has_front = threading.Condition(self._lock)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._there_bytes = 0
        run_bytes = min(_MOST_RUN_BYTES, max(_LEAST_RUN_BYTES, book.size_bytes // _RUNS))
        self._run_pieces = max(1, run_bytes // book.piece_bytes)
        for piece in book.there():
            self._states[piece] = _UNCHECKED
            self._there_bytes += self._length(piece)

    @property
    def there_bytes(self) -> int:
        """How much is on disk, as far as is known."""
        return self._there_bytes

    @property
    def failure(self) -> BaseException | None:
        """Why the work ended early, None when it did not."""
        return self._failure

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done any more."""
        return self._over.is_set()

    def claim(self) -> range | None:
        """Wait for missing pieces and take a run of them; None when the work is over."""
        with self._lock:
            while not self._over.is_set():
                first = self._states.find(_MISSING)
                if first >= 0:
                    end = first
                    most = min(first + self._run_pieces, self._book.count)
                    while end < most and self._states[end] == _MISSING:
                        self._states[end] = _CLAIMED
                        end += 1
                    return range(first, end)
                self._has_missing.wait()
            return None

    def take(self, piece: int) -> bool:
        """Take one piece if it is missing; whether it was."""
        with self._lock:
            if self._states[piece] != _MISSING:
                return False
            self._states[piece] = _CLAIMED
            return True

    def give_back(self, pieces: range) -> None:
        """Make claimed pieces that were not finished missing again."""
        with self._lock:
            for piece in pieces:
                if self._states[piece] == _CLAIMED:
                    self._states[piece] = _MISSING
            self._has_missing.notify_all()

    def finish(self, piece: int, checksum: int) -> None:
        """Say that a claimed piece is on disk."""
        with self._lock:
            self._book.enter(piece, checksum)
            self._states[piece] = _DONE
            self._there_bytes += self._length(piece)
            self._has_front.notify_all()

    def await_front(self, first: int, most_pieces: int) -> Front | None:
        """Wait until a piece can be hashed; None when the work is over."""
        with self._lock:
            while not self._over.is_set():
                state = self._states[first]
                if state in (_UNCHECKED, _DONE):
                    end = first + 1
                    most = min(first + most_pieces, self._book.count)
                    while state == _DONE and end < most and self._states[end] == _DONE:
                        end += 1
                    return Front(first=first, end=end, is_unchecked=state == _UNCHECKED)
                self._has_front.wait()
            return None

    def confirm(self, piece: int) -> None:
        """Say that a piece of an earlier process is sound."""
        with self._lock:
            self._states[piece] = _DONE

    def lose(self, pieces: tuple[int, ...]) -> None:
        """Say that pieces are not on disk after all; they are fetched again."""
        with self._lock:
            if len(pieces) == self._book.count:
                self._book.clear()
            for piece in pieces:
                if self._states[piece] in (_UNCHECKED, _DONE):
                    self._there_bytes -= self._length(piece)
                if self._book.checksum(piece) is not None:
                    self._book.strike(piece)
                self._states[piece] = _MISSING
            self._has_missing.notify_all()

    def end(self, failure: BaseException | None = None) -> None:
        """End the work; the first failure is the one that is told."""
        with self._lock:
            if not self._over.is_set():
                self._failure = failure
            self._over.set()
            self._has_missing.notify_all()
            self._has_front.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait a while, or until the work is over; whether it is."""
        return self._over.wait(seconds)

    def _length(self, piece: int) -> int:
        start, end = self._book.span(piece)
        return end - start
