"""A host of files as the networks behind model hubs are: ranges, strong tags, signed addresses.

It counts what it sends, can be held to a rate, and fails in the way a test asks for.

Knows: HTTP/1.1 with ranges and If-Range (RFC 9110), and ways to go wrong.
Does not know: models, or what leads here.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What came: `number` counts the requests of this server from 0."""

    number: int
    method: str
    path: str
    headers: dict[str, str]

    def header(self, name: str) -> str | None:
        return self.headers.get(name.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    flip_first_byte: bool = False
    stall_s: float = 0.0
    ignores_range: bool = False
    shifts_range: bool = False
    etag: str | None = None
    extra_bytes: int = 0


FaultOf = Callable[[Request], Fault | None]


class Throttle:
    """A rate shared by all that is sent."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = time.monotonic()

    def wait(self, size_bytes: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            # What was not used within 20 ms is lost: a burst is as short as a network's.
            self._free_at_s = max(self._free_at_s, now_s - 0.02) + size_bytes / self._bytes_per_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            time.sleep(wait_s)


class Handler(BaseHTTPRequestHandler):
    """One connection; what it answers is the server's `answer`."""

    protocol_version = "HTTP/1.1"
    server: "LocalServer"

    def do_GET(self) -> None:
        self.server.handle(self)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class LocalServer(ThreadingHTTPServer):
    """A server on a free port of the loopback, with a list of what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Request] = []
        self.fault: FaultOf = lambda request: None
        self.connection_count = 0
        self._open: set[Any] = set()
        self._numbering = threading.Lock()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> Any:
        sock, address = super().get_request()
        self.connection_count += 1
        self._open.add(sock)
        return sock, address

    def handle_error(self, *_: object) -> None:
        """A client that goes away is nothing to tell of."""

    def handle(self, handler: Handler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._numbering:
            request = Request(
                number=len(self.requests),
                method=handler.command,
                path=handler.path,
                headers=headers,
            )
            self.requests.append(request)
        fault = self.fault(request)
        if fault is not None and fault.status is not None:
            time.sleep(fault.stall_s)
            handler.reply(fault.status, fault.headers, b"no\n")
            return
        self.answer(handler, request, fault or Fault())

    def answer(self, handler: Handler, request: Request, fault: Fault) -> None:
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator["LocalServer"]:
        thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            for sock in self._open:
                sock.close()
            thread.join()


class FileHost(LocalServer):
    """Serves files by path; `signature` has to be in the address, as signed addresses ask."""

    def __init__(self, *, bytes_per_s: float | None = None, send_buffer_bytes: int = 0) -> None:
        super().__init__()
        self.files: dict[str, Path] = {}
        self.signature = "first"
        self.sent_bytes = 0
        self._send_buffer_bytes = send_buffer_bytes
        self._throttle = Throttle(bytes_per_s) if bytes_per_s else None
        self._counting = threading.Lock()

    def address(self, name: str) -> str:
        return f"{self.origin}/{name}?sig={self.signature}"

    def answer(self, handler: Handler, request: Request, fault: Fault) -> None:
        name, _, query = request.path.lstrip("/").partition("?")
        if name not in self.files:
            handler.reply(404, {})
            return
        if query != f"sig={self.signature}":
            handler.reply(403, {}, b"expired")
            return
        path = self.files[name]
        size = path.stat().st_size
        etag = fault.etag or f'"{name}"'
        first, last, is_range = _range_of(request, size, etag, fault)
        if first >= size and is_range:
            handler.reply(416, {"Content-Range": f"bytes */{size}"})
            return
        handler.send_response(206 if is_range else 200)
        handler.send_header("Content-Length", str(last - first + 1 + fault.extra_bytes))
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("ETag", etag)
        if is_range:
            shift = 16 if fault.shifts_range else 0
            handler.send_header(
                "Content-Range",
                f"bytes {first + shift}-{last + shift}/{size + fault.extra_bytes}",
            )
        handler.end_headers()
        handler.wfile.flush()
        if handler.command != "HEAD":
            self._send(handler, path, first, last + 1, fault)

    def _send(self, handler: Handler, path: Path, start: int, end: int, fault: Fault) -> None:
        if self._send_buffer_bytes:
            import socket

            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes
            )
        with path.open("rb") as file:
            at = start
            if fault.flip_first_byte:
                file.seek(at)
                self._count(1)
                handler.connection.sendall(bytes([file.read(1)[0] ^ 1]))
                at += 1
            cut_at = end if fault.cut_after_bytes is None else start + fault.cut_after_bytes
            while at < min(end, cut_at):
                size = min(self._chunk_bytes, min(end, cut_at) - at)
                if self._throttle is not None:
                    self._throttle.wait(size)
                self._count(size)  # before, since a test may look as soon as it has arrived
                sent = 0
                try:
                    sent = os.sendfile(handler.connection.fileno(), file.fileno(), at, size)
                finally:
                    self._count(sent - size)
                at += sent
        time.sleep(fault.stall_s)
        if at < end:
            handler.close_connection = True

    @property
    def _chunk_bytes(self) -> int:
        return min(CHUNK_BYTES, self._send_buffer_bytes or CHUNK_BYTES)

    def _count(self, size_bytes: int) -> None:
        with self._counting:
            self.sent_bytes += size_bytes


def _range_of(request: Request, size: int, etag: str, fault: Fault) -> tuple[int, int, bool]:
    """Return the first and last byte to send, and whether that is a range."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("range") or "")
    condition = request.header("if-range")
    if match is None or fault.ignores_range or condition not in (None, etag):
        return 0, size - 1, False
    return int(match[1]), min(int(match[2] or size), size - 1), True
