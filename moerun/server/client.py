"""A client of the server on this machine, for verbs: found by its record, asked in JSON.

Knows: where a server is found, whether it is moerun's, and what an error of it looks like.
Does not know: what is asked, or how answers are shown. It imports no HTTP library but Python's.
"""

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from moerun.errors import ModelNotFound, ServeError
from moerun.server.listening import HOST_VARIABLE, PORT, read_address, read_server_record

KEY_VARIABLE: Final = "MOERUN_API_KEY"
_ANSWER_S: Final = 60.0
_GREETING_S: Final = 3.0
_OK: Final = 200
_REFUSED_KEY: Final = (401, 403)
_NOT_FOUND: Final = 404
_UNSPECIFIED: Final = ("0.0.0.0", "::")
_FAILURES: Final = (OSError, http.client.HTTPException, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One server; `api_key` is a secret."""

    host: str
    port: int
    api_key: str | None = None

    def __repr__(self) -> str:
        return f"Client(host={self.host!r}, port={self.port!r})"

    @property
    def place(self) -> str:
        """Return host and port, as they are written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = _ANSWER_S,
    ) -> tuple[int, Any]:
        """Return status and JSON of a reply; ServeError when nobody answers.

        `timeout_s` None waits as long as it takes, as for a model that is loaded.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body=_content(body), headers=self.headers())
            reply = connection.getresponse()
            text = reply.read()
            return reply.status, json.loads(text) if text else None
        except _FAILURES as error:
            raise self._silent(error) from error
        finally:
            connection.close()

    def greet(self) -> str | None:
        """Return the version of the moerun that answers there; None for another program.

        Raises ServeError when nobody answers, or the server wants a key.
        """
        status, content = self.ask("GET", "/api/version", timeout_s=_GREETING_S)
        if status in _REFUSED_KEY:
            raise ServeError(
                f"The server at {self.place} refused: {_said(content) or f'status {status}'}.",
                hint=f"{KEY_VARIABLE} holds the key of a server that wants one; `--local` does "
                "without the server",
            )
        version = content.get("moerun") if isinstance(content, dict) else None
        return version if isinstance(version, str) else None

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator["ServedStream"]:
        """Ask for what comes in lines; closing the connection early cancels it there."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_ANSWER_S)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise self._silent(error) from error
            # Loading and long prompts take as long as they take.
            connection.sock.settimeout(None)
            yield ServedStream(connection, self, path, body)
        finally:
            connection.close()

    def headers(self) -> dict[str, str]:
        """Return what goes with each request."""
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    def _silent(self, error: Exception) -> ServeError:
        return ServeError(
            f"The server at {self.place} does not answer: {_reason(error)}",
            hint="`moerun serve` starts one",
        )


class ServedStream:
    """The lines of one reply. `cancel` may be called from a signal handler while they are read."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        client: Client,
        path: str,
        body: Mapping[str, Any],
    ) -> None:
        """Prepare; what is asked is sent when the lines are read, so that it can be cancelled."""
        self._connection = connection
        self._channel = connection.sock
        self._client = client
        self._path = path
        self._body = body
        self.is_cancelled = False

    def cancel(self) -> None:
        """End the reply; whoever reads its lines gets no more, and no error."""
        self.is_cancelled = True
        with contextlib.suppress(OSError):  # the other side may have closed it before
            self._channel.shutdown(socket.SHUT_RDWR)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield each line as it comes, the last with `done`; ServeError when it breaks off."""
        is_done = False
        try:
            self._connection.request(
                "POST", self._path, body=_content(self._body), headers=self._client.headers()
            )
            reply = self._connection.getresponse()
            if reply.status != _OK:
                text = reply.read()
                require_ok(reply.status, json.loads(text) if text else None)
            while line := reply.readline():
                chunk = json.loads(line)
                if "error" in chunk:
                    raise ServeError(f"The server could not answer: {chunk['error']}")
                is_done = chunk.get("done") is True
                yield chunk
        except _FAILURES as error:
            if not self.is_cancelled:
                raise self._broken(_reason(error)) from error
        if not (is_done or self.is_cancelled):
            raise self._broken("it closed the connection")

    def _broken(self, why: str) -> ServeError:
        return ServeError(
            f"The server at {self._client.place} broke off in the middle of the answer: {why}",
            hint="ask again; `moerun serve` starts it anew when it has ended",
        )


def find_client(state: Path, environment: Mapping[str, str] | None = None) -> Client | None:
    """Return a client of the server that MOERUN_HOST or the record names, None without either."""
    environment = os.environ if environment is None else environment
    api_key = environment.get(KEY_VARIABLE, "").strip() or None
    if environment.get(HOST_VARIABLE, "").strip():
        address = read_address(environment)
        host = "127.0.0.1" if address.host in _UNSPECIFIED else address.host
        return Client(host=host, port=address.port or PORT, api_key=api_key)
    record = read_server_record(state)
    if record is None:
        return None
    parts = urlsplit(record.url)
    return Client(host=parts.hostname or "127.0.0.1", port=parts.port or PORT, api_key=api_key)


def require_ok(status: int, content: Any) -> Any:
    """Return what a good reply holds; otherwise raise the server's sentence."""
    if status == _OK:
        return content
    said = _said(content)
    if status == _NOT_FOUND and said:
        raise ModelNotFound(f"The server refused: {said}.", hint="`moerun list` shows the models")
    raise ServeError(f"The server refused: {said or f'status {status}'}.")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _said(content: Any) -> str:
    said = content.get("error") if isinstance(content, dict) else None
    return said.rstrip(".") if isinstance(said, str) else ""


def _content(body: Mapping[str, Any] | None) -> bytes | None:
    return None if body is None else json.dumps(body).encode()
