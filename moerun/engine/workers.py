"""Asking an RPC worker whether it can be used, before the engine does, which would abort.

Beliefs: the greeting (command 14, 24 bytes) and its answer; the commands for the count of devices
(15, nothing) and for the memory of one (11, its number), answered by a length and packed numbers; a
client meets any failure with GGML_ABORT and knows no time-outs; a server serves one client at a
time — ggml/src/ggml-rpc/ggml-rpc.cpp @ 0.3.36 — checked by tests/engine/test_devices.py and
tests/engine/test_workers_cache.py.

Knows: as much of ggml's RPC protocol as tells who is there.
Does not know: ctypes, or the rest of the protocol.
"""

import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from moerun.errors import EngineRefused, UsageError

PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR: Final = 0
DEFAULT_TIMEOUT_S: Final = 5.0
_DEVICE_MEMORY: Final = 11
_HELLO: Final = 14
_DEVICE_COUNT: Final = 15
_CAPABILITIES: Final = bytes(24)
_GREETING: Final = struct.Struct("<BBBB24x")
_COUNT: Final = struct.Struct("<I")
_MEMORY: Final = struct.Struct("<QQ")
_COMMAND: Final = struct.Struct("<BQ")
_LENGTH: Final = struct.Struct("<Q")
_MOST_DEVICES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of one device of a worker, as its engine reports it."""

    free_bytes: int
    total_bytes: int


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; UsageError otherwise."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"'{address}' is not the address of a worker; write it as host:port.")
    return host, int(port)


def greet_worker(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Exchange the greeting with a worker; EngineRefused when it cannot be used now."""
    with _Conversation(address, timeout_s) as worker:
        worker.greet()


def ask_worker(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[DeviceMemory, ...]:
    """Greet a worker and return the memory of its devices; all within the time."""
    with _Conversation(address, timeout_s) as worker:
        worker.greet()
        (count,) = _COUNT.unpack(worker.ask(_DEVICE_COUNT, b"", _COUNT.size))
        if not 0 < count <= _MOST_DEVICES:
            raise EngineRefused(f"The worker at {address} offers {count:,} devices.")
        found = []
        for index in range(count):
            answer = worker.ask(_DEVICE_MEMORY, _COUNT.pack(index), _MEMORY.size)
            free_bytes, total_bytes = _MEMORY.unpack(answer)
            if free_bytes > total_bytes or total_bytes >= 1 << 60:
                raise EngineRefused(
                    f"The worker at {address} reports {free_bytes:,} bytes free of "
                    f"{total_bytes:,}, which cannot be."
                )
            found.append(DeviceMemory(free_bytes=free_bytes, total_bytes=total_bytes))
        return tuple(found)


def reach_worker(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Open and close a connection, which a busy worker takes too; EngineRefused when it is gone."""
    try:
        socket.create_connection(split_address(address), timeout=timeout_s).close()
    except OSError as error:
        raise _unreachable(address, error) from error


class _Conversation:
    """A connection to a worker with one deadline for all that is said. A context manager."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s
        try:
            self._connection = socket.create_connection(split_address(address), timeout=timeout_s)
        except TimeoutError as error:
            raise self._silence() from error
        except OSError as error:
            raise _unreachable(address, error) from error

    def __enter__(self) -> "_Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def greet(self) -> None:
        """Exchange the greeting."""
        answer = self.ask(_HELLO, _CAPABILITIES, _GREETING.size)
        major, minor, patch, *_ = _GREETING.unpack(answer)
        if major != PROTOCOL_MAJOR or minor > PROTOCOL_MINOR:
            raise EngineRefused(
                f"The worker at {self._address} speaks protocol {major}.{minor}.{patch} and this "
                f"engine {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}; build both from the same version."
            )

    def ask(self, command: int, request: bytes, answer_bytes: int) -> bytes:
        """Return the answer to a command."""
        try:
            self._connection.settimeout(self._left())
            self._connection.sendall(_COMMAND.pack(command, len(request)) + request)
            (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
            if length != answer_bytes:
                raise self._stranger()
            return self._receive(answer_bytes)
        except TimeoutError as error:
            raise self._silence() from error
        except OSError as error:
            raise _unreachable(self._address, error) from error

    def _receive(self, size_bytes: int) -> bytes:
        received = b""
        while len(received) < size_bytes:
            self._connection.settimeout(self._left())
            part = self._connection.recv(size_bytes - len(received))
            if not part:
                raise self._stranger()
            received += part
        return received

    def _left(self) -> float:
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _silence(self) -> EngineRefused:
        return EngineRefused(
            f"The worker at {self._address} did not answer within {self._timeout_s:g} s; it may "
            "be frozen, or serve another program, since a worker serves one at a time."
        )

    def _stranger(self) -> EngineRefused:
        return EngineRefused(
            f"What listens at {self._address} is not an RPC worker of llama.cpp, or not of the "
            f"protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR} that this engine speaks."
        )


def _unreachable(address: str, error: OSError) -> EngineRefused:
    return EngineRefused(
        f"The worker at {address} cannot be reached: {error.strerror or error}.",
        hint="Is it running there, and is the port open?",
    )
