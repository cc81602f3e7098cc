"""Connections to hosts: lookups that end, every address tried, TLS, proxies of the environment.

Knows: how long one waits for whom, and how a failure reads.
Does not know: HTTP beyond a proxy's `CONNECT`, or what is asked for.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import SplitResult, urlsplit

from moerun.errors import Unreachable, UsageError

PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait: for a connection in all, for an answer, the next bytes, between tries."""

    connect_s: float = 8.0
    answer_s: float = 9.0  # of a question, connecting included: without a network one is told soon
    silence_s: float = 30.0
    tries: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Return how long to wait after so many failures in a row, or as the host asked."""
        pause_s = self.first_pause_s * float(1 << max(0, failures - 1))
        return min(self.longest_pause_s, max(pause_s, asked_s or 0.0))


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address, in one form."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 0)}"


def host_of(url: str) -> str:
    """Return the host of an address, with its port where it is not the usual one."""
    parts = urlsplit(url)
    if parts.port is None or PORTS.get(parts.scheme) == parts.port:
        return parts.hostname or url
    return f"{parts.hostname}:{parts.port}"


def connect(parts: SplitResult, patience: Patience) -> http.client.HTTPConnection:
    """Return a connection whose lookup, connecting and greeting took no longer than allowed."""
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    proxy = proxy_for(parts)
    deadline_s = time.monotonic() + patience.connect_s
    try:
        via = (proxy.hostname or "", proxy.port or 80) if proxy is not None else (host, port)
        sock = _open_socket(*via, deadline_s)
        connection = http.client.HTTPConnection(host, port, timeout=patience.silence_s)
        if proxy is not None and parts.scheme == "https":
            sock = _through_proxy(sock, proxy, host, port)
        if parts.scheme == "https":
            sock.settimeout(max(0.1, deadline_s - time.monotonic()))
            sock = _tls().wrap_socket(sock, server_hostname=host)
            # So named for its usual port, which then is not written behind the host's name.
            connection = http.client.HTTPSConnection(host, port, context=_tls())
        sock.settimeout(patience.silence_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = sock
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _unreachable(host_of(parts.geturl()), error, patience) from error
    return connection


def _open_socket(host: str, port: int, deadline_s: float) -> socket.socket:
    """Try each address of a host, with an equal share of the time that is left for each."""
    addresses = _look_up(host, port, deadline_s)
    failure: OSError = socket.gaierror(f"{host} has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no time is left")
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left_s / (len(addresses) - index))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _look_up(host: str, port: int, deadline_s: float) -> list[tuple[int, int, int, str, tuple]]:  # type: ignore[type-arg]
    """Resolve a name in a thread of its own: the system's resolver cannot be told to give up."""
    found: list[list] = []  # type: ignore[type-arg]
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name="lookup", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline_s - time.monotonic()))
    if found:
        return found[0]
    if failed:
        raise failed[0]
    raise TimeoutError(f"no server of names told the address of {host}")


def _through_proxy(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> socket.socket:
    """Have a proxy connect to a host, and return the socket that leads there."""
    named = {"Host": f"{host}:{port}", **proxy_headers(proxy)}
    lines = [
        f"CONNECT {host}:{port} HTTP/1.1",
        *(f"{name}: {text}" for name, text in named.items()),
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(1)  # byte by byte: what follows the head is the host's
        if not piece or len(head) > 1 << 14:
            raise http.client.BadStatusLine("the proxy's answer")
        head += piece
    words = head.split(None, 2)
    if len(words) < 2 or words[1] != b"200":
        raise http.client.BadStatusLine(head.splitlines()[0].decode("latin-1"))
    return sock


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """Return what tells a proxy who asks."""
    import base64
    from urllib.parse import unquote

    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def proxy_for(parts: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment names for an address, None when there is none."""
    from urllib.request import proxy_bypass

    url = _proxies().get(parts.scheme)
    if not url or proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    try:
        is_usable = bool(proxy.hostname) and proxy.port != 0
    except ValueError:  # of a port that is none
        is_usable = False
    if not is_usable:
        raise UsageError(
            f"{parts.scheme.upper()}_PROXY does not hold the address of a proxy",
            hint="write http://host:port",  # its value may hold a password, so it is not shown
        )
    return proxy


@cache
def _proxies() -> Mapping[str, str]:
    from urllib.request import getproxies

    return getproxies()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _unreachable(host: str, error: Exception, patience: Patience) -> Unreachable:
    hint = "check the network, or HTTPS_PROXY where there is a proxy"
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE names the certificates to trust"
    if isinstance(error, TimeoutError):
        said = f"{host} cannot be reached: no answer within {patience.connect_s:g} s"
    else:
        said = f"{host} cannot be reached: {reason_of(error)}"
    return Unreachable(said, hint=hint)


def reason_of(error: Exception) -> str:
    """Return in a few words why a connection failed."""
    if isinstance(error, socket.gaierror):
        return "its name is not known here, or there is no network"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(reason).rstrip(".")
