"""A client of the server on this machine, for verbs: found by its record, asked in JSON.

Knows: where a server is found, and what an error of it looks like.
Does not know: what is asked, or how answers are shown. It imports no HTTP library but Python's.
"""

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from moerun.errors import ServeError
from moerun.server.listening import HOST_VARIABLE, PORT, read_address, read_server_record

KEY_VARIABLE: Final = "MOERUN_API_KEY"
_ANSWER_S: Final = 60.0
_UNSPECIFIED: Final = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One server; `api_key` is a secret."""

    host: str
    port: int
    api_key: str | None = None

    def __repr__(self) -> str:
        return f"Client(host={self.host!r}, port={self.port!r})"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Return status and JSON of a reply; ServeError when nobody answers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_ANSWER_S)
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, body=content, headers=headers)
            reply = connection.getresponse()
            text = reply.read()
            return reply.status, json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServeError(
                f"The server at {self.host}:{self.port} does not answer: {error}",
                hint="`moerun serve` starts one",
            ) from error
        finally:
            connection.close()


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
    """Return what a good reply holds; ServeError with the server's sentence otherwise."""
    if status == 200:
        return content
    said = content.get("error") if isinstance(content, dict) else None
    raise ServeError(f"The server refused: {said or f'status {status}'}.")
