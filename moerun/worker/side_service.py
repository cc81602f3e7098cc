"""What a worker answers beside the engine's protocol, which has no limits, versions or life signs.

It runs in the very process that serves the engine: what freezes or ends one does so to the other.
One JSON object in a line, both ways:

    {"ask": "describe"}                   -> {"schema": 1, "offer": {...}}
    {"ask": "beat"}                       -> {"beat": "<instance>"}
    {"ask": "take", "size_bytes": N} + N  -> {"took_bytes": N}

Knows: the questions, and how many may ask at once.
Does not know: the engine; what is offered comes from a function.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from moerun.codec import to_plain
from moerun.machine.workers import WorkerOffer
from moerun.worker.side_lines import SideChannelError, SideConnection

SCHEMA: Final = 1
MOST_TAKEN_BYTES: Final = 64 << 20
_MOST_CONNECTIONS: Final = 64
_IDLE_S: Final = 60.0
_SEND_S: Final = 10.0


class SideService:
    """A listening socket and a thread for each connection."""

    def __init__(
        self, host: str, port: int, *, instance: str, offer: Callable[[], WorkerOffer]
    ) -> None:
        """Listen; raises OSError when the port is taken."""
        self._instance = instance
        self._offer = offer
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._server = socket.create_server((host, port))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.getsockname()[1])

    def start(self) -> None:
        """Answer from now on, in threads that end with the process."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):  # wakes the thread that waits for a connection
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except ConnectionAbortedError:
                continue
            except OSError:
                return  # it was closed
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with SideConnection(connection) as side:
                while True:
                    side.send(self._answer(side), within_s=_SEND_S)
        except (SideChannelError, OSError):
            return  # whoever asked is gone, or asks nothing that is known
        finally:
            self._places.release()

    def _answer(self, side: SideConnection) -> dict[str, Any]:
        question = side.receive(within_s=_IDLE_S)
        match question.get("ask"):
            case "describe":
                return {"schema": SCHEMA, "offer": to_plain(self._offer())}
            case "beat":
                return {"beat": self._instance}
            case "take":
                size_bytes = question.get("size_bytes")
                if not isinstance(size_bytes, int) or not 0 < size_bytes <= MOST_TAKEN_BYTES:
                    raise SideChannelError("it asks for what nobody takes")
                side.drop(size_bytes, within_s=_IDLE_S)
                return {"took_bytes": size_bytes}
            case _:
                raise SideChannelError("it asks for what is not known")
