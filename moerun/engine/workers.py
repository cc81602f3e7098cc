"""Asking an RPC worker whether it can be used, before the engine does, which would abort.

Beliefs: the greeting (command 14, 24 bytes) and its answer; a client meets any failure with
GGML_ABORT; a server serves one client at a time — ggml/src/ggml-rpc/ggml-rpc.cpp @ 0.3.36 —
checked by tests/engine/test_devices.py.

Knows: the greeting of ggml's RPC protocol.
Does not know: ctypes, or the rest of the protocol.
"""

import socket
import struct
from typing import Final

from moerun.errors import EngineRefused, UsageError

PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR: Final = 0
_HELLO: Final = 14
_CAPABILITIES_BYTES: Final = 24
_ANSWER: Final = struct.Struct("<QBBBB24x")
DEFAULT_TIMEOUT_S: Final = 5.0


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; UsageError otherwise."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"'{address}' is not the address of a worker; write it as host:port.")
    return host, int(port)


def greet_worker(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Exchange the greeting with a worker; EngineRefused when it cannot be used now."""
    host, port = split_address(address)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(
                struct.pack("<BQ", _HELLO, _CAPABILITIES_BYTES) + bytes(_CAPABILITIES_BYTES)
            )
            answer = _receive(connection, _ANSWER.size)
    except TimeoutError as error:
        raise EngineRefused(
            f"The worker at {address} did not answer within {timeout_s:g} s; it may be serving "
            "another program, since a worker serves one at a time."
        ) from error
    except OSError as error:
        raise _unreachable(address, error) from error
    if len(answer) < _ANSWER.size:
        raise EngineRefused(f"What listens at {address} is not an RPC worker of llama.cpp.")
    _, major, minor, patch, *_ = _ANSWER.unpack(answer)
    if major != PROTOCOL_MAJOR or minor > PROTOCOL_MINOR:
        raise EngineRefused(
            f"The worker at {address} speaks protocol {major}.{minor}.{patch} and this engine "
            f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}; build both from the same version."
        )


def reach_worker(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Open and close a connection, which a busy worker takes too; EngineRefused when it is gone."""
    try:
        socket.create_connection(split_address(address), timeout=timeout_s).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: OSError) -> EngineRefused:
    return EngineRefused(
        f"The worker at {address} cannot be reached: {error.strerror or error}.",
        hint="Is it running there, and is the port open?",
    )


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    received = b""
    while len(received) < size_bytes:
        part = connection.recv(size_bytes - len(received))
        if not part:
            break
        received += part
    return received
