"""The folder in which a worker's engine keeps weights, so that a model is sent to it once.

Beliefs: the server writes a tensor of more than 10 MiB under the hash of its bytes, without asking
whether all of it was written, and hands a file of that name out again without hashing it; so a
file that is cut off, by a full disk or the end of the process, would be taken for the weights it
begins with — rpc_server::set_tensor and get_cached_file, ggml/src/ggml-rpc/ggml-rpc.cpp:1466 and
1483 @ 0.3.36 — that files are written and used is checked by tests/engine/test_workers_cache.py,
that they are not hashed again was read there. Therefore a file counts only when it stands in a
list with its size, which is written when a client has left and the disk was never nearly full;
whatever else lies there is removed before a server starts.

Knows: which files are trusted, and how much the folder may hold.
Does not know: the engine, or clients.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.places import write_whole
from moerun.units import GIB, MIB

DEFAULT_MOST_BYTES: Final = 64 * GIB
LEAST_FREE_BYTES: Final = 512 * MIB
NO_CACHE: Final = "No cache of weights: "  # how a worker's log begins the reason why it has none
_LIST_NAME: Final = "whole.json"
_SCHEMA: Final = 1
_CACHED: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One file of weights that was seen to be whole; `written_ns` is when it was last changed."""

    name: str
    size_bytes: int
    written_ns: int


class WeightCache:
    """The folder and its list."""

    def __init__(self, folder: Path, *, most_bytes: int = DEFAULT_MOST_BYTES) -> None:
        self.folder = folder
        self._most_bytes = most_bytes

    def prepare(self) -> None:
        """Make the folder and remove what is not known to be whole; raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = set(self._read_list())
        for file in self._files():
            if file not in known:
                (self.folder / file.name).unlink(missing_ok=True)

    def has_room(self) -> bool:
        """Whether so much of the disk is free that what is written there is written whole."""
        return shutil.disk_usage(self.folder).free >= LEAST_FREE_BYTES

    def settle(self, *, was_roomy: bool) -> None:
        """Take note of what is whole, now that nothing is being written.

        Without `was_roomy` what came since the last time is not trusted and is removed. Beyond
        its size the folder loses what was written longest ago.
        """
        if not was_roomy:
            self.prepare()
        kept = sorted(self._files(), key=lambda file: file.written_ns)
        while kept and sum(file.size_bytes for file in kept) > self._most_bytes:
            (self.folder / kept.pop(0).name).unlink(missing_ok=True)
        rows = [[file.name, file.size_bytes, file.written_ns] for file in kept]
        write_whole(self.folder / _LIST_NAME, json.dumps({"schema": _SCHEMA, "files": rows}))

    def _files(self) -> tuple[CachedFile, ...]:
        found = []
        for entry in os.scandir(self.folder):
            if _CACHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found.append(
                    CachedFile(
                        name=entry.name, size_bytes=status.st_size, written_ns=status.st_mtime_ns
                    )
                )
        return tuple(found)

    def _read_list(self) -> tuple[CachedFile, ...]:
        """Return what was seen to be whole; nothing, where the list cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads((self.folder / _LIST_NAME).read_text(encoding="utf-8"))
            if document["schema"] == _SCHEMA:
                return tuple(
                    CachedFile(name=str(name), size_bytes=int(size), written_ns=int(written))
                    for name, size, written in document["files"]
                )
        return ()
