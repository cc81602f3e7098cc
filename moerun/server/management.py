"""Ollama's endpoints that change what is installed: pull, create, delete, copy; push is refused.

Knows: the lines of a pull's progress, and what belongs to moerun's own store.
Does not know: hosts, layouts, or who may ask.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from typing import Final

from moerun.errors import MoerunError
from moerun.server import ollama_shapes
from moerun.server.backend import Backend
from moerun.server.creating import read_wish
from moerun.server.endpoints import Call, Reply, StreamReply
from moerun.server.progress import Line, Teller, told_lines
from moerun.server.refusals import FORBIDDEN, NOT_FOUND, NOT_IMPLEMENTED, Refused
from moerun.server.shelf import checked_name
from moerun.store.creation import create_from
from moerun.store.own_store import OwnStore, own_reference
from moerun.store.pull import PullWatcher, pull
from moerun.store.references import OLLAMA_HOST, OllamaReference
from moerun.store.remote_file import RemoteFile
from moerun.store.remote_names import remote_reference
from moerun.store.uploads import Uploads
from moerun.store.write_faults import told_as_refusals

_SHORT_DIGEST: Final = 12
_MOST_AT_ONCE: Final = 4  # pulls and creations; others wait
_SUCCESS: Final = {"status": "success"}

Fetch = Callable[[str, PullWatcher], object]


def fetch_by_name(name: str, watcher: PullWatcher) -> object:
    """Download what a name means."""
    return pull(remote_reference(name), watcher)


def fetch_from_public_hosts(name: str, watcher: PullWatcher) -> object:
    """Download what a name means, from Hugging Face or ollama's registry alone.

    Whoever reaches a server from elsewhere must not have it ask hosts of its own network.
    """
    reference = remote_reference(name)
    if isinstance(reference, OllamaReference) and reference.host != OLLAMA_HOST:
        raise Refused(
            f"a server that other machines can reach pulls from {OLLAMA_HOST} and Hugging Face "
            f"alone, not from {reference.host}; run `moerun pull` on its own machine",
            status=FORBIDDEN,
        )
    return pull(reference, watcher)


class ManagementApi:
    """The endpoints; `fetch` downloads a model."""

    def __init__(
        self, backend: Backend, *, store: OwnStore | None = None, fetch: Fetch = fetch_by_name
    ) -> None:
        self._backend = backend
        self._given_store = store
        self._fetch = fetch
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="management")

    async def pull(self, call: Call) -> Reply | StreamReply:
        """Download a model, with its progress line by line."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        if call.fields.flag("insecure", default=False):
            raise Refused("insecure is not supported: models come over https alone")

        def fetch(teller: Teller) -> None:
            teller.tell({"status": "pulling manifest"})
            self._fetch(name, _Watcher(teller))
            teller.tell({"status": "verifying sha256 digest"})
            teller.tell({"status": "writing manifest"})
            teller.tell(_SUCCESS)

        return await self._told(call, told_lines(self._threads, fetch))

    async def push(self, call: Call) -> Reply:
        """Refuse: nothing here leaves this machine."""
        raise Refused(
            "moerun does not push models; upload the file to its host yourself",
            status=NOT_IMPLEMENTED,
        )

    async def create(self, call: Call) -> Reply | StreamReply:
        """Make a model of one that is here, or of files that were sent to `/api/blobs`."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        reference = own_reference(name)
        wish = read_wish(call.fields)
        base = None
        if wish.source is not None:
            base = await asyncio.to_thread(self._backend.shelf.installed, wish.source)

        def create(teller: Teller) -> None:
            def update(gone_bytes: int) -> None:
                teller.tell({"status": "hashing files", "completed": gone_bytes})

            store = self.store()
            uploads = Uploads(store)
            with told_as_refusals(store.root), ExitStack() as stack:
                source = base or stack.enter_context(uploads.assembled(dict(wish.files)))
                adapters = tuple(uploads.paths_of(dict(wish.adapters)).values())
                teller.tell({"status": "creating new layers"})
                create_from(
                    reference,
                    wish.modelfile,
                    source,
                    adapters=adapters,
                    progress=update,
                    store=store,
                )
                uploads.remove(wish.digests)
                teller.tell({"status": "writing manifest"})
                teller.tell(_SUCCESS)

        return await self._told(call, told_lines(self._threads, create))

    async def delete(self, call: Call) -> Reply:
        """Remove a model of moerun's own store, out of memory first."""
        name = checked_name(call.fields.text("model") or call.fields.needed_text("name"))
        with suppress(Refused, MoerunError):  # what cannot be run is not in memory
            await self._backend.scheduler.unload(await self._backend.find(name))
        await asyncio.to_thread(lambda: self.store().remove(own_reference(name)))
        return Reply()

    async def copy(self, call: Call) -> Reply:
        """Give a model of moerun's own store a second name."""
        source = checked_name(call.fields.needed_text("source"))
        destination = checked_name(call.fields.needed_text("destination"))

        def copy() -> None:
            store = self.store()
            found = store.layout.find(own_reference(source))
            if found is None:
                said = f"model '{source}' not found in moerun's own store"
                raise Refused(said, status=NOT_FOUND)
            store.copy(found, own_reference(destination, what="the copy"))

        await asyncio.to_thread(copy)
        return Reply()

    def store(self) -> OwnStore:
        """Return the store that is changed."""
        return OwnStore() if self._given_store is None else self._given_store

    async def _told(self, call: Call, lines: AsyncGenerator[Line, None]) -> Reply | StreamReply:
        """Return the lines as they come, or what they end with where no stream is wanted."""
        if call.fields.flag("stream", default=True):
            return StreamReply(pieces=_written(lines), content_type=ollama_shapes.NDJSON)
        async with aclosing(lines):
            async for _ in lines:
                continue
        return Reply(content=_SUCCESS)


async def _written(lines: AsyncGenerator[Line, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(lines):
        async for line in lines:
            yield ollama_shapes.line(line)


class _Watcher:
    """Tells of a download."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def tell(self, message: str) -> None:
        """Pass a sentence on."""
        self._teller.tell({"status": message})

    def begin_file(self, file: RemoteFile, *, kept_bytes: int) -> None:
        """Tell of a file that begins."""
        self._teller.tell(_progress(file, kept_bytes))

    def update_file(self, file: RemoteFile, there_bytes: int) -> None:
        """Tell how much of a file is there."""
        self._teller.tell(_progress(file, there_bytes))

    def finish_file(self, file: RemoteFile) -> None:
        """Tell that a file is whole."""
        self._teller.tell(_progress(file, file.size_bytes))


def _progress(file: RemoteFile, there_bytes: int) -> Line:
    short = file.digest.hexadecimal[:_SHORT_DIGEST]
    line: Line = {"status": f"pulling {short}", "digest": str(file.digest)}
    line["total"] = file.size_bytes
    return {**line, "completed": there_bytes} if there_bytes else line
