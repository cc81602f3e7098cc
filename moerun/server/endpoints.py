"""One endpoint: a body in, a reply out, and nothing done for a client that has left.

The reply's first piece is made before its status is sent, so that what fails at once has its own
status; what fails later is told in the stream.

Knows: bodies, replies, disconnects, and that a fault never shows its inside.
Does not know: any API; the shape of an error is handed in.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from moerun.server.bodies import MOST_BODY_BYTES, Fields, parse_body
from moerun.server.refusals import TOO_LARGE, TOO_SLOW, Refusal, Refused, is_fault, refusal_of

_LOG: Final = logging.getLogger(__name__)
JSON_TYPE: Final = "application/json; charset=utf-8"
_STALLED_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer; no content sends an empty body."""

    content: Any = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReply:
    """An answer in pieces; `content_type` says how they are told apart."""

    pieces: AsyncGenerator[bytes, None]
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorShape:
    """How an API writes an error: as a whole body, and as a piece of a stream."""

    body: Callable[[Refusal], Any]
    piece: Callable[[Refusal], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as a handler sees it."""

    request: Request
    fields: Fields


Handler = Callable[[Call], Awaitable[Reply | StreamReply]]


class Endpoint:
    """An ASGI application for one path and method."""

    def __init__(self, handler: Handler, shape: ErrorShape, *, reads_body: bool = True) -> None:
        self._handler = handler
        self._shape = shape
        self._reads_body = reads_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the work ends when its client leaves."""
        request = Request(scope, receive)
        try:
            fields = parse_body(await read_body(request)) if self._reads_body else Fields(values={})
        except ClientDisconnect:
            return
        except Refused as error:
            await self._send_refusal(error.refusal, send)
            return
        work = self._work(Call(request=request, fields=fields), send)
        if self._reads_body:
            await unless_gone(receive, work)
        else:
            await work

    async def _work(self, call: Call, send: Send) -> None:
        try:
            reply = await self._handler(call)
            if isinstance(reply, Reply):
                await send_reply(reply, send)
                return
            await self._send_stream(reply, send)
        except OSError as error:
            if not isinstance(error, ClientDisconnect | ConnectionError):
                await self._send_refusal(self._told(error), send)
        except Exception as error:
            await self._send_refusal(self._told(error), send)

    async def _send_stream(self, reply: StreamReply, send: Send) -> None:
        async with contextlib.aclosing(reply.pieces) as pieces:
            first = await anext(pieces)
            headers = [
                (b"content-type", reply.content_type.encode()),
                (b"cache-control", b"no-cache"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except (ClientDisconnect, ConnectionError):
                return
            except Exception as error:
                piece = self._shape.piece(self._told(error))
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _told(self, error: Exception) -> Refusal:
        if is_fault(error):
            _LOG.error("a request met a fault", exc_info=error)
        return refusal_of(error)

    async def _send_refusal(self, refusal: Refusal, send: Send) -> None:
        await send_reply(refusal_reply(refusal, self._shape), send)


def refusal_reply(refusal: Refusal, shape: ErrorShape) -> Reply:
    """Return a refusal as a reply."""
    headers: tuple[tuple[str, str], ...] = ()
    if refusal.retry_after_s is not None:
        headers = (("retry-after", str(refusal.retry_after_s)),)
    elif refusal.status == TOO_SLOW:
        headers = (("connection", "close"),)
    elif refusal.status >= 500:
        # openai-python tries twice more on any 5xx; what fails for a reason fails again
        headers = (("x-should-retry", "false"),)
    return Reply(content=shape.body(refusal), status=refusal.status, headers=headers)


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a whole answer."""
    body = b"" if reply.content is None else write_json(reply.content)
    headers = [
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode("latin-1", "replace")) for name, value in reply.headers),
    ]
    if body:
        headers.append((b"content-type", JSON_TYPE.encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def write_json(content: Any) -> bytes:
    """Return JSON as bytes; half a surrogate pair, which UTF-8 cannot hold, becomes `?`."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def read_body(request: Request, most_bytes: int = MOST_BODY_BYTES) -> bytes:
    """Return a body; Refused with 413 as soon as it is too large, with 408 when it stalls."""
    if (announced_bytes(request) or 0) > most_bytes:
        raise _too_large(most_bytes)
    body, pieces = bytearray(), request.stream()
    while (piece := await next_piece(pieces)) is not None:
        body += piece
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    return bytes(body)


def announced_bytes(request: Request) -> int | None:
    """Return how large the body is by its header, None where that does not say."""
    announced = request.headers.get("content-length", "")
    return int(announced[:20]) if announced.isascii() and announced.isdecimal() else None


async def next_piece(pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    """Return what comes next of a body, None at its end; Refused when nothing comes for long."""
    try:
        return await asyncio.wait_for(anext(pieces), _STALLED_S)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        said = f"nothing more of the request body came for {_STALLED_S:g} s"
        raise Refused(said, status=TOO_SLOW) from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and cancel it when the client leaves meanwhile."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not doing.done():
            doing.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)
    if not doing.cancelled():
        doing.result()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _too_large(most_bytes: int) -> Refused:
    return Refused(f"the request body is larger than {most_bytes:,} bytes", status=TOO_LARGE)
