"""The engine's own connections to workers that have no side channel, kept honest from within.

A plain `rpc-server` serves one connection at a time and answers nobody else meanwhile, so nobody
can ask it for a sign of life while it computes. What is left is the connection itself, which the
engine opens and never bounds: here the system is told to try it while it is idle, so that a worker
which is cut off breaks it within seconds, and a worker that is waited for and sends nothing for
minutes is taken to be frozen.

Beliefs: a server accepts the next client when the last has gone, with a backlog of one, so that a
second connection would only stand in line, and whatever waits ends as a check of the engine once
its connection breaks — ggml_backend_rpc_start_server and RPC_STATUS_ASSERT,
ggml/src/ggml-rpc/{ggml-rpc,transport}.cpp @ 0.3.36 — checked by
tests/engine/test_workers_lost.py; `struct tcp_info` begins with eight bytes and numbers of four,
of which the tenth and the twelfth are milliseconds since data was sent and came — linux/tcp.h.

Knows: this process's sockets, and how long the other end of one has been silent.
Does not know: the engine, or how its process is ended.
"""

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from moerun.machine.workers import WorkerAddress, parse_worker
from moerun.worker.side_client import NoSideChannel, open_side_channel
from moerun.worker.side_lines import SideChannelError

PATIENCE_S: Final = 120.0  # a slow processor may compute a long batch for a minute
SILENT: Final = "was waited for and sent nothing for"  # what the log says of a frozen one
_LONGER: Final = 10  # times the longest that it was waited for before
_LOOK_S: Final = 0.5
_ASK_S: Final = 2.0
_IDLE_S, _AGAIN_S, _TRIES = 2, 1, 3  # a connection is tried while idle; it breaks after 5 s
_SENT, _CAME = 9, 11
_TCP_INFO: Final = struct.Struct("=8B12I")


class ConnectionWatch:
    """A thread that looks at the connections to plain workers, until `stop`."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        *,
        is_at_work: Callable[[], bool],
        on_silence: Callable[[str, float], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._addresses = tuple(parse_worker(address) for address in addresses)
        self._is_at_work = is_at_work
        self._on_silence = on_silence
        self._patience_s = patience_s
        self._waited_s: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}
        self._has_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        if self._addresses:
            self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._has_stopped.set()

    def _watch(self) -> None:
        plain = {_numeric(each): each for each in self._addresses if _is_plain(each)}
        while plain and not self._has_stopped.wait(_LOOK_S):
            for peer, connection in _connections():
                if peer in plain:
                    with contextlib.suppress(OSError):  # closed meanwhile
                        _try_while_idle(connection)
                        self._look(plain[peer].endpoint, connection)

    def _look(self, endpoint: str, connection: socket.socket) -> None:
        waited_s = _waited_s(connection)
        if waited_s is None or not self._is_at_work():
            return
        before_s = self._waited_s.get(endpoint, 0.0)
        if waited_s < before_s:  # the wait before this one has ended with an answer
            self._longest_s[endpoint] = max(self._longest_s.get(endpoint, 0.0), before_s)
        self._waited_s[endpoint] = waited_s
        if waited_s > max(self._patience_s, _LONGER * self._longest_s.get(endpoint, 0.0)):
            self._on_silence(endpoint, waited_s)


def _is_plain(address: WorkerAddress) -> bool:
    try:
        open_side_channel(address, within_s=_ASK_S).close()
    except NoSideChannel:
        return True
    except SideChannelError:
        return False  # it has one, which is watched elsewhere
    return False


def _numeric(address: WorkerAddress) -> tuple[str, int]:
    """Return the address as a connected socket tells it."""
    try:
        return socket.gethostbyname(address.host), address.port
    except (OSError, UnicodeError):
        return address.host, address.port  # the engine will not find it, either


def _connections() -> Iterator[tuple[tuple[str, int], socket.socket]]:
    """Yield this process's connections over IPv4 with their other ends; each is open meanwhile."""
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except OSError:
        return  # a system without such a folder
    for number in numbers:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            own = os.dup(number)
        except OSError:
            continue  # closed since it was listed
        with socket.socket(fileno=own) as connection:
            try:
                peer = connection.getpeername()
            except OSError:
                continue  # it listens, or is not connected any more
            if connection.family == socket.AF_INET and connection.type == socket.SOCK_STREAM:
                yield (str(peer[0]), int(peer[1])), connection


def _try_while_idle(connection: socket.socket) -> None:
    """Have the system send something now and then, and give up what does not acknowledge."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": _IDLE_S,
        "TCP_KEEPALIVE": _IDLE_S,  # what macOS calls the same
        "TCP_KEEPINTVL": _AGAIN_S,
        "TCP_KEEPCNT": _TRIES,
        "TCP_USER_TIMEOUT": 1000 * (_IDLE_S + _AGAIN_S * _TRIES),
    }
    for name, value in wanted.items():
        option = getattr(socket, name, None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _waited_s(connection: socket.socket) -> float | None:
    """Return how long an answer has been waited for, 0 when none is; None where nobody knows."""
    if sys.platform != "linux":
        return None
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    numbers = _TCP_INFO.unpack(raw)[8:]
    sent_ms, came_ms = numbers[_SENT], numbers[_CAME]
    return sent_ms / 1000 if sent_ms < came_ms else 0.0
