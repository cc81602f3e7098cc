"""Ollama's endpoints that change what is installed: pull, create, delete, copy; push is refused.

Knows: the lines of a pull's progress, and what belongs to moerun's own store.
Does not know: hosts, layouts, or who may ask.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final

from moerun.server import ollama_shapes
from moerun.server.backend import Backend
from moerun.server.creating import read_modelfile
from moerun.server.endpoints import Call, Reply, StreamReply
from moerun.server.refusals import NOT_FOUND, NOT_IMPLEMENTED, Refused
from moerun.server.shelf import checked_name
from moerun.store.creation import create_model
from moerun.store.own_store import OwnStore, own_reference
from moerun.store.pull import PullWatcher, pull
from moerun.store.remote_file import RemoteFile
from moerun.store.remote_names import remote_reference

_SHORT_DIGEST: Final = 12
_SUCCESS: Final = {"status": "success"}

Fetch = Callable[[str, PullWatcher], object]


def fetch_by_name(name: str, watcher: PullWatcher) -> object:
    """Download what a name means."""
    return pull(remote_reference(name), watcher)


class ManagementApi:
    """The endpoints; `fetch` downloads a model."""

    def __init__(
        self, backend: Backend, *, store: OwnStore | None = None, fetch: Fetch = fetch_by_name
    ) -> None:
        self._backend = backend
        self._store = store
        self._fetch = fetch

    async def pull(self, call: Call) -> Reply | StreamReply:
        """Download a model, with its progress line by line."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        if call.fields.flag("insecure", default=False):
            raise Refused("insecure is not supported: models come over https alone")
        lines = self._lines(name)
        if call.fields.flag("stream", default=True):
            pieces = (ollama_shapes.line(line) async for line in lines)
            return StreamReply(pieces=pieces, content_type=ollama_shapes.NDJSON)
        async with contextlib.aclosing(lines):
            async for _ in lines:
                continue
        return Reply(content=_SUCCESS)

    async def push(self, call: Call) -> Reply:
        """Refuse: nothing here leaves this machine."""
        raise Refused(
            "moerun does not push models; upload the file to its host yourself",
            status=NOT_IMPLEMENTED,
        )

    async def create(self, call: Call) -> Reply | StreamReply:
        """Make a model of one that is here; it is whole before the first line is sent."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        reference = own_reference(name)
        modelfile = read_modelfile(call.fields)
        self._backend.shelf.find(modelfile.source)  # a name of this shelf, never a path
        await asyncio.to_thread(
            lambda: create_model(reference, modelfile, folder=Path.cwd(), store=self._own())
        )
        if not call.fields.flag("stream", default=True):
            return Reply(content=_SUCCESS)
        return StreamReply(pieces=_created(), content_type=ollama_shapes.NDJSON)

    async def delete(self, call: Call) -> Reply:
        """Remove a model of moerun's own store, out of memory first."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        with contextlib.suppress(Refused):
            await self._backend.scheduler.unload(self._backend.shelf.find(name))
        await asyncio.to_thread(lambda: self._own().remove(own_reference(name)))
        return Reply()

    async def copy(self, call: Call) -> Reply:
        """Give a model of moerun's own store a second name."""
        source = checked_name(call.fields.needed_text("source"))
        destination = checked_name(call.fields.needed_text("destination"))

        def copy() -> None:
            store = self._own()
            found = store.layout.find(own_reference(source))
            if found is None:
                said = f"model '{source}' not found in moerun's own store"
                raise Refused(said, status=NOT_FOUND)
            store.copy(found, own_reference(destination, what="the copy"))

        await asyncio.to_thread(copy)
        return Reply()

    def _own(self) -> OwnStore:
        return OwnStore() if self._store is None else self._store

    async def _lines(self, name: str) -> AsyncGenerator[dict[str, Any], None]:
        loop = asyncio.get_running_loop()
        watcher = _Watcher(loop)
        work = loop.run_in_executor(None, self._fetch, name, watcher)
        work.add_done_callback(lambda _: watcher.lines.put_nowait(None))
        try:
            yield {"status": "pulling manifest"}
            while (line := await watcher.lines.get()) is not None:
                yield line
            work.result()
            yield {"status": "verifying sha256 digest"}
            yield {"status": "writing manifest"}
            yield _SUCCESS
        finally:
            watcher.is_gone.set()  # what arrived stays for the next pull
            work.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _created() -> AsyncGenerator[bytes, None]:
    for line in ({"status": "writing manifest"}, _SUCCESS):
        yield ollama_shapes.line(line)


class _ClientLeft(Exception):
    """Raised into a download whose client has gone."""


class _Watcher:
    """Carries the progress of a download, which runs in threads, to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.is_gone = threading.Event()
        self._loop = loop

    def tell(self, message: str) -> None:
        """Pass a sentence on."""
        self._put({"status": message})

    def begin_file(self, file: RemoteFile, *, kept_bytes: int) -> None:
        """Tell of a file that begins."""
        self._put(_progress(file, kept_bytes))

    def update_file(self, file: RemoteFile, there_bytes: int) -> None:
        """Tell how much of a file is there; ends the download when nobody listens."""
        if self.is_gone.is_set():
            raise _ClientLeft
        self._put(_progress(file, there_bytes))

    def finish_file(self, file: RemoteFile) -> None:
        """Tell that a file is whole."""
        self._put(_progress(file, file.size_bytes))

    def _put(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)


def _progress(file: RemoteFile, there_bytes: int) -> dict[str, Any]:
    short = file.digest.hexadecimal[:_SHORT_DIGEST]
    line = {"status": f"pulling {short}", "digest": str(file.digest), "total": file.size_bytes}
    return {**line, "completed": there_bytes} if there_bytes else line
