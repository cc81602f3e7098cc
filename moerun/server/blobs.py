"""`/api/blobs/:digest`: files that clients send before they ask for a model to be made of them.

A file may be as large as the disk, so it goes there piece by piece as it arrives. The thread that
writes hashes as well; the event loop only carries pieces to it, one at a time, and so no faster
than they are written.

Knows: the statuses of ollama, and when a client is too slow or there are too many.
Does not know: where uploads lie, or what becomes of them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from moerun.server.endpoints import Reply, announced_bytes, next_piece, refusal_reply, send_reply
from moerun.server.ollama_shapes import SHAPE
from moerun.server.refusals import NOT_FOUND, Refused, ServerBusy, is_fault, refusal_of
from moerun.store.own_store import OwnStore
from moerun.store.uploads import Upload, Uploads, parse_digest
from moerun.store.write_faults import told_as_refusals

_LOG: Final = logging.getLogger(__name__)
_CREATED: Final = 201
_MOST_AT_ONCE: Final = 4
_GATHERED_BYTES: Final = 4 << 20  # carried to the thread at once
_LARGEST_PASSED_OVER_BYTES: Final = 64 << 20


class BlobEndpoint:
    """An ASGI application for one path; `store` says where the store is, at every request."""

    def __init__(self, store: Callable[[], OwnStore]) -> None:
        self._store = store
        self._writing = 0
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="upload")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD and POST; whatever fails is told once."""
        request = Request(scope, receive)
        try:
            reply = await self._reply(request)
        except ClientDisconnect:
            return
        except Exception as error:
            refusal = refusal_of(error)
            if is_fault(error):
                _LOG.error("an upload met a fault", exc_info=error)
            reply = refusal_reply(refusal, SHAPE)
            await _pass_over(request, most_bytes=_LARGEST_PASSED_OVER_BYTES)
        await send_reply(reply, send)

    async def _reply(self, request: Request) -> Reply:
        digest = parse_digest(str(request.path_params["digest"]))
        uploads = Uploads(self._store())
        is_there = await asyncio.to_thread(uploads.find, digest) is not None
        if request.method == "HEAD":
            return Reply(status=200 if is_there else NOT_FOUND)
        if is_there:
            await _pass_over(request, most_bytes=None)
            return Reply()
        if self._writing >= _MOST_AT_ONCE:
            raise ServerBusy(waiting=self._writing, retry_after_s=10)
        self._writing += 1
        try:
            with told_as_refusals(self._store().root):
                size_bytes = announced_bytes(request)
                with uploads.begin(digest, size_bytes=size_bytes) as upload:
                    await self._take_in(request, upload)
        finally:
            self._writing -= 1
        return Reply(status=_CREATED)

    async def _take_in(self, request: Request, upload: Upload) -> None:
        loop, pieces = asyncio.get_running_loop(), request.stream()
        gathered = bytearray()
        while (piece := await next_piece(pieces)) is not None:
            gathered += piece
            if len(gathered) >= _GATHERED_BYTES:
                content, gathered = bytes(gathered), bytearray()
                await loop.run_in_executor(self._threads, upload.write, content)
        await loop.run_in_executor(self._threads, upload.write, bytes(gathered))
        await loop.run_in_executor(self._threads, upload.finish)


async def _pass_over(request: Request, *, most_bytes: int | None) -> None:
    """Read the rest of a body, since many clients hear nothing before they have sent it.

    One that waits to be told that it may send (`Expect: 100-continue`) hears the status at once.
    """
    if "100-continue" in request.headers.get("expect", "").lower():
        return
    passed_bytes = 0
    with contextlib.suppress(ClientDisconnect, Refused, RuntimeError):  # it was read before
        pieces = request.stream()
        while (piece := await next_piece(pieces)) is not None:
            passed_bytes += len(piece)
            if most_bytes is not None and passed_bytes > most_bytes:
                return
