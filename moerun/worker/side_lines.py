"""One JSON object in a line, over a connection of which nothing is believed.

Whoever is at the other end may say nothing, trickle, or never end its line: every wait has one
deadline for all of it, and a line has a greatest length.

Knows: deadlines, lengths, and what counts as an answer.
Does not know: what is asked.
"""

import json
import socket
import time
from types import TracebackType
from typing import Any, Final, Self

LONGEST_LINE_BYTES: Final = 64 << 10
_PIECE_BYTES: Final = 1 << 16


class SideChannelError(Exception):
    """The other end is gone, is too slow, or speaks something else; the text says which."""


class SideConnection:
    """A connection with deadlines. A context manager; the exit closes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def __enter__(self) -> Self:
        """Use the connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def interrupt(self) -> None:
        """End every wait on this connection, from whatever thread."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself

    def send(self, message: dict[str, Any], *, within_s: float) -> None:
        """Send one message."""
        self.send_bytes(json.dumps(message, separators=(",", ":")).encode() + b"\n", within_s)

    def send_bytes(self, data: bytes, within_s: float) -> None:
        """Send bytes as they are."""
        ends_s, view = time.monotonic() + within_s, memoryview(data)
        try:
            while view:
                self._connection.settimeout(_left(ends_s))
                view = view[self._connection.send(view) :]
        except TimeoutError as error:
            raise SideChannelError(f"it took nothing in for {within_s:g} s") from error
        except OSError as error:
            raise SideChannelError(f"the connection broke: {error.strerror or error}") from error

    def receive(self, *, within_s: float) -> dict[str, Any]:
        """Return the next message; SideChannelError when none comes in time, or no message."""
        ends_s = time.monotonic() + within_s
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) >= LONGEST_LINE_BYTES:
                raise SideChannelError("it speaks no protocol of ours")
            self._received += self._piece(ends_s, within_s)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SideChannelError("it speaks no protocol of ours") from error
        if not isinstance(message, dict):
            raise SideChannelError("it speaks no protocol of ours")
        return message

    def drop(self, size_bytes: int, *, within_s: float) -> None:
        """Take in so many bytes and forget them."""
        ends_s = time.monotonic() + within_s
        left_bytes = size_bytes - len(self._received[:size_bytes])
        del self._received[:size_bytes]
        while left_bytes:
            piece = self._piece(ends_s, within_s)
            self._received += piece[left_bytes:]
            left_bytes -= len(piece[:left_bytes])

    def _piece(self, ends_s: float, within_s: float) -> bytes:
        try:
            self._connection.settimeout(_left(ends_s))
            piece = self._connection.recv(_PIECE_BYTES)
        except TimeoutError as error:
            raise SideChannelError(f"it gave no answer within {within_s:g} s") from error
        except OSError as error:
            raise SideChannelError(f"the connection broke: {error.strerror or error}") from error
        if not piece:
            raise SideChannelError("it closed the connection")
        return piece


def _left(ends_s: float) -> float:
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
