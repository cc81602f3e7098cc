"""Who may ask: the Host and Origin of a request, its token, the size of its headers.

A page of any site can make a browser send requests to this machine. Its Host header tells a name
that was pointed here (DNS rebinding), its Origin the site; both are looked at before anything
else, bodies unread.

Knows: which hosts, origins and tokens are let in.
Does not know: endpoints.
"""

import hmac
import ipaddress
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moerun.server.endpoints import refusal_reply, send_reply
from moerun.server.ollama_shapes import SHAPE as OLLAMA_SHAPE
from moerun.server.openai_shapes import SHAPE as OPENAI_SHAPE
from moerun.server.refusals import FORBIDDEN, HEADERS_TOO_LARGE, UNAUTHORIZED, Refusal

_LOG: Final = logging.getLogger(__name__)
_MOST_HEADER_BYTES: Final = 32 << 10
_LOCAL_NAMES: Final = ("localhost", "")
_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal")
_APP_SCHEMES: Final = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file"})
_LOCAL_ORIGINS: Final = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})
_OPEN_PATHS: Final = frozenset({"/", "/health"})
_ALLOWED_HEADERS: Final = (
    b"Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, "
    b"x-stainless-arch, x-stainless-async, x-stainless-helper-method, x-stainless-lang, "
    b"x-stainless-os, x-stainless-package-version, x-stainless-poll-helper, "
    b"x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    b"x-stainless-timeout"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who is let in. `api_key` is a secret: it is compared, and never shown."""

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    is_loopback: bool = True

    def __repr__(self) -> str:
        return f"Access(origins={self.origins!r}, is_loopback={self.is_loopback!r})"


class Guard:
    """ASGI middleware that refuses what may not come in."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._own_name = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"").decode("latin-1")
        shape = OPENAI_SHAPE if scope["path"].startswith("/v1") else OLLAMA_SHAPE
        refusal = self._refusal_of_place(scope, headers, origin)
        if refusal is not None:
            await send_reply(refusal_reply(refusal, shape), send)
            return
        allowed = _cors(origin) if origin else []

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start" and allowed:
                message = {**message, "headers": [*message["headers"], *allowed]}
            await send(message)

        if scope["method"] == "OPTIONS" and origin:
            await send_allowed({"type": "http.response.start", "status": 204, "headers": []})
            await send_allowed({"type": "http.response.body", "body": b""})
        elif not self._has_token(scope, headers):
            said = "the bearer token is missing or wrong"
            refusal = Refusal(status=UNAUTHORIZED, message=said)
            await send_reply(refusal_reply(refusal, shape), send_allowed)
        else:
            await self._app(scope, receive, send_allowed)

    def _refusal_of_place(
        self, scope: Scope, headers: dict[bytes, bytes], origin: str
    ) -> Refusal | None:
        """Return why nobody may ask from there; a page that is refused may not even read that."""
        size_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if size_bytes > _MOST_HEADER_BYTES:
            said = f"the headers take {size_bytes:,} bytes; at most {_MOST_HEADER_BYTES:,}"
            return Refusal(status=HEADERS_TOO_LARGE, message=said)
        host = headers.get(b"host", b"").decode("latin-1")
        if self._access.is_loopback and not self._is_own_host(host):
            said = f"the host '{host[:80]}' is not this machine"
            return Refusal(status=FORBIDDEN, message=said)
        if origin and not is_allowed_origin(origin, self._access.origins, host=host):
            said = f"the origin '{origin[:80]}' may not ask; MOERUN_ORIGINS lets others in"
            return Refusal(status=FORBIDDEN, message=said)
        return None

    def _is_own_host(self, host: str) -> bool:
        name = _name_of_host(host)
        return (
            name in _LOCAL_NAMES
            or name == self._own_name
            or name.endswith(_LOCAL_ENDINGS)
            or _is_near_address(name)
        )

    def _has_token(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        key = self._access.api_key
        if key is None or scope["path"] in _OPEN_PATHS:
            return True
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), key.encode())


def is_allowed_origin(origin: str, more: Iterable[str], *, host: str) -> bool:
    """Whether a page of this origin may ask: one of this machine's, or one that was named."""
    if origin in more or "*" in more:
        return True
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme in _APP_SCHEMES:
        return True
    if parts.scheme not in ("http", "https"):
        return False
    return name in _LOCAL_ORIGINS or (bool(host) and parts.netloc.lower() == host.lower())


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"vary", b"Origin"),
    ]


def _name_of_host(host: str) -> str:
    """Return a host without port and brackets; what cannot be read is returned as it is."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host or "?"


def _is_near_address(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified
