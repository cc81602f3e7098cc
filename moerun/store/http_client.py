"""Requests to hosts of models: redirects are watched, secrets stay with their host.

Built on `http.client`, not on httpx: a body is read from the socket straight into memory that is
there already, where httpx makes and joins small `bytes` of it under the interpreter's lock. On two
cores that is the difference between a download that keeps pace with curl and one that does not
(benchmarks/pull.py prints the rates).

Knows: HTTP/1.1, redirects, which origin may see a token.
Does not know: how a host is reached, what is asked for, or when to try again.
"""

import http.client
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from moerun import __version__
from moerun.errors import Unreachable, WrongContent
from moerun.store.http_connection import (
    PORTS,
    Patience,
    connect,
    host_of,
    origin_of,
    proxy_for,
    proxy_headers,
    reason_of,
)

USER_AGENT: Final = f"moerun/{__version__}"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 8
_WORTH_READING_BYTES: Final = 1 << 16  # of an answer's rest, to keep the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A token, and the only origin that may see it."""

    origin: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The head of an answer; its body is read from the channel it came by."""

    status: int
    reason: str
    url: str
    headers: Mapping[str, str]
    redirects: tuple[Mapping[str, str], ...]  # the heads that led here

    def header(self, name: str) -> str | None:
        """Return a header's value, None when it is absent."""
        return self.headers.get(name.lower())

    def first_header(self, name: str) -> str | None:
        """Return a header's value from the first answer that has it, redirects included."""
        found = (head.get(name.lower()) for head in (*self.redirects, self.headers))
        return next((value for value in found if value is not None), None)

    @property
    def length_bytes(self) -> int | None:
        """The length of the body, None when it is not told."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def retry_after_s(self) -> float | None:
        """How long the host asks to wait; dates are not honoured."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isascii() and text.isdigit() else None


class Channel:
    """One connection at a time, used again for the next request to the same origin.

    A channel belongs to one thread; only `abort` may be called from another. One that is `asking`
    fetches small documents: somebody waits for each, so a silent host is given up sooner.
    """

    def __init__(
        self,
        *,
        patience: Patience | None = None,
        credentials: Credentials | None = None,
        is_asking: bool = False,
    ) -> None:
        self._patience = patience or Patience()
        self._is_asking = is_asking
        self._silence_s = self._patience.silence_s
        self._credentials = credentials
        self._connection: http.client.HTTPConnection | None = None
        self._origin = ""
        self._answer: http.client.HTTPResponse | None = None
        self._is_aborted = False

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(
        self, url: str, *, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Reply:
        """Ask, follow redirects, and return the head; raises Unreachable and WrongContent."""
        passed: list[Mapping[str, str]] = []
        seen = {url}
        while True:
            reply = self._ask(method, url, dict(headers or {}), tuple(passed))
            location = reply.header("location")
            if reply.status not in _REDIRECTS or location is None:
                return reply
            self._leave()
            following = urljoin(url, location)
            _check_redirect(url, following)
            if following in seen or len(passed) >= _MOST_REDIRECTS:
                raise WrongContent(
                    f"{host_of(url)} sends from one address to the next without end "
                    f"({len(passed) + 1} redirects)"
                )
            seen.add(following)
            passed.append(reply.headers)
            url = following

    def read(self, most_bytes: int) -> bytes:
        """Return the whole body; WrongContent when it is longer than `most_bytes`."""
        answer = self._require_answer()
        try:
            data = answer.read(most_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        if len(data) > most_bytes:
            self.close()
            raise WrongContent(
                f"{self._host} answers with more than the {most_bytes:,} bytes that are read"
            )
        if answer.length:
            raise self._cut()
        return data

    def read_into(self, view: memoryview) -> int:
        """Fill the view from the body and return its length; Unreachable when the body ends."""
        try:
            count = self._require_answer().readinto(view)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        if count < len(view):
            raise self._cut()
        return count

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._answer is not None:
            self._answer.close()
        self._connection = self._answer = None
        self._origin = ""

    def abort(self) -> None:
        """End whatever is under way; what waits for bytes fails at once."""
        self._is_aborted = True
        sock = getattr(self._connection, "sock", None) or self._socket_of_answer()
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already

    @property
    def _host(self) -> str:
        return host_of(self._origin) if self._origin else "the host"

    def _socket_of_answer(self) -> object:
        # An answer that closes its connection keeps the socket below its own file.
        return getattr(getattr(getattr(self._answer, "fp", None), "raw", None), "_sock", None)

    def _require_answer(self) -> http.client.HTTPResponse:
        if self._answer is None:
            raise self._cut()
        return self._answer

    def _ask(
        self, method: str, url: str, headers: dict[str, str], passed: tuple[Mapping[str, str], ...]
    ) -> Reply:
        parts = _checked(url)
        headers |= {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if self._credentials is not None and origin_of(url) == self._credentials.origin:
            headers["Authorization"] = f"Bearer {self._credentials.token}"
        self._leave()
        is_used = self._connection is not None and self._origin == origin_of(url)
        try:
            answer = self._send(method, parts, headers)
        except Unreachable:
            if not is_used or self._is_aborted:
                raise
            answer = self._send(method, parts, headers)  # the host had closed an idle connection
        self._answer = answer
        return Reply(
            status=answer.status,
            reason=answer.reason,
            url=url,
            headers={name.lower(): value for name, value in answer.getheaders()},
            redirects=passed,
        )

    def _send(
        self, method: str, parts: SplitResult, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        origin, started_s = origin_of(parts.geturl()), time.monotonic()
        # An answer that ends its connection has taken the socket away.
        if self._connection is None or self._connection.sock is None or self._origin != origin:
            self.close()
            self._origin = origin
            self._connection = connect(parts, self._patience)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "http" and (proxy := proxy_for(parts)) is not None:
            target = parts.geturl()
            headers = {**headers, **proxy_headers(proxy)}
        try:
            if self._is_aborted:
                raise self._cut()
            self._limit_silence(time.monotonic() - started_s)
            self._connection.request(method, target, headers=headers)
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error

    def _limit_silence(self, connecting_s: float) -> None:
        """Wait for the next bytes as long as a question, or a download, is worth."""
        if self._is_asking and self._connection is not None and self._connection.sock is not None:
            left_s = max(1.0, self._patience.answer_s - connecting_s)
            self._silence_s = min(self._patience.silence_s, left_s)
            self._connection.sock.settimeout(self._silence_s)

    def _leave(self) -> None:
        """Be done with the last answer: its connection is kept when little of it is unread."""
        answer, self._answer = self._answer, None
        if answer is None or answer.isclosed():
            return
        if answer.length is not None and answer.length <= _WORTH_READING_BYTES:
            try:
                answer.read()
                return
            except (OSError, http.client.HTTPException):
                self.close()
        answer.close()
        self.close()

    def _broken(self, error: Exception) -> Unreachable:
        host = self._host
        self.close()
        return Unreachable(_sentence(host, error, self._silence_s))

    def _cut(self) -> Unreachable:
        host = self._host
        self.close()
        return Unreachable(f"{host} ended the connection before everything had come")


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in PORTS and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        raise WrongContent(f"'{url[:80]!a}' is no address of the web")
    return parts._replace(fragment="")


def _check_redirect(source: str, target: str) -> None:
    """Let nobody lead from an encrypted address to one that anybody on the way can read."""
    parts = _checked(target)
    if parts.username or (urlsplit(source).scheme == "https" and parts.scheme != "https"):
        raise WrongContent(
            f"{host_of(source)} sends to an address that is not encrypted ({host_of(target)}), "
            "and nothing is fetched from there"
        )


def _sentence(host: str, error: Exception, silence_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"{host} was reached and sent nothing for {silence_s:.2g} s"
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return f"{host} ended the connection before everything had come"
    if isinstance(error, http.client.HTTPException | ValueError):
        return f"{host} does not answer as a web server does ({type(error).__name__})"
    return f"the connection to {host} broke: {reason_of(error)}"
