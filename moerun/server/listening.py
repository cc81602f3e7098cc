"""The server at its address: which port, what is told of it, how it is found.

Knows: MOERUN_HOST, the port that is taken when ollama's is in use, the document by which clients
find the server.
Does not know: endpoints or models.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from moerun.errors import AddressInUse, ServeError, UsageError
from moerun.machine.probe_processes import process_mark
from moerun.places import write_whole

HOST_VARIABLE: Final = "MOERUN_HOST"
PORT: Final = 11434
SECOND_PORT: Final = 11435
_LOOPBACK: Final = "127.0.0.1"
_DOCUMENT: Final = "server.json"
SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen; `port` None takes ollama's, or the next one when that is in use."""

    host: str
    port: int | None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """A server that listens, as its clients find it."""

    url: str
    pid: int
    process_mark: str


def read_address(environment: Mapping[str, str]) -> Address:
    """Return the address that MOERUN_HOST names: host, :port, host:port or a URL."""
    text = environment.get(HOST_VARIABLE, "").strip().strip("\"'")
    if not text:
        return Address(host=_LOOPBACK, port=None)
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname or _LOOPBACK, parts.port
    except ValueError as error:
        raise UsageError(
            f"{HOST_VARIABLE} is '{text[:80]}', which is no address: {error}",
            hint="write 127.0.0.1:11434, :8080 or 0.0.0.0",
        ) from error
    return Address(host=host, port=port)


def open_socket(address: Address) -> socket.socket:
    """Return a socket that listens; AddressInUse when the port, or both, are taken."""
    ports = (PORT, SECOND_PORT) if address.port is None else (address.port,)
    for port in ports:
        try:
            return _bind(address.host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServeError(
                    f"{address.host}:{port} cannot be listened on: {error.strerror or error}",
                    hint=f"{HOST_VARIABLE} names another address",
                ) from error
    tried = " and ".join(str(port) for port in ports)
    raise AddressInUse(
        f"{address.host}: something listens on {tried} already",
        hint=f"{HOST_VARIABLE}=127.0.0.1:PORT names another port",
    )


def url_of(listening: socket.socket) -> str:
    """Return the address as clients on this machine write it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = _LOOPBACK
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_server_record(state: Path, url: str) -> None:
    """Let clients find this server."""
    pid = os.getpid()
    named = {"schema": SCHEMA, "url": url, "pid": pid, "process_mark": process_mark(pid) or ""}
    write_whole(state / _DOCUMENT, json.dumps(named))


def remove_server_record(state: Path) -> None:
    """Take away what this server wrote, and no other's."""
    record = read_server_record(state)
    if record is not None and record.pid == os.getpid():
        with contextlib.suppress(OSError):
            (state / _DOCUMENT).unlink()


def read_server_record(state: Path) -> ServerRecord | None:
    """Return the server that runs, None when there is none; what is unreadable names none."""
    try:
        document = json.loads((state / _DOCUMENT).read_text(encoding="utf-8"))
        if document["schema"] > SCHEMA:
            return None
        record = ServerRecord(
            url=str(document["url"]),
            pid=int(document["pid"]),
            process_mark=str(document["process_mark"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if process_mark(record.pid) == record.process_mark else None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay, 40 ms for a reply in two pieces, only where the protocol is
    # named - asyncio/base_events.py, _set_nodelay @ Python 3.11
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two programs share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except BaseException:
        listening.close()
        raise
    return listening
