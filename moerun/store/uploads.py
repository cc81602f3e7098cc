"""Files that clients of the server sent, until a model is made of them.

They lie in a folder of their own beside the blobs: a blob is what a manifest names, and of these
nobody knows yet whether one ever will. Each is written under a name of its own, hashed on the way,
and gets its digest as name when it is whole and right.

Knows: where uploads lie, how much room they leave, how a model is put together from several.
Does not know: HTTP, or what a model carries.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from moerun.errors import ModelNotFound, NoRoom, UsageError
from moerun.store.installed import InstalledModel, Source
from moerun.store.names import parts_of, path_within
from moerun.store.own_store import OwnStore
from moerun.units import GIB, format_gib

FOLDER: Final = "uploads"
_TEMPORARY: Final = ".part"
_LEFT_FREE_BYTES: Final = GIB // 4
_LOOK_AT_ROOM_BYTES: Final = 64 << 20
_FORGOTTEN_S: Final = 24 * 3600.0
_DIGEST: Final = re.compile(r"sha256[:-](?P<hexadecimal>[0-9a-f]{64})", re.ASCII)
_GGUF: Final = b"GGUF"
_NUMBERS: Final = itertools.count(1)


def parse_digest(text: str) -> str:
    """Return the digits of a sha256 as clients write it; UsageError for anything else."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text[:80]}' is no digest: sha256: and 64 hexadecimal digits are")
    return match["hexadecimal"]


class Uploads:
    """What was sent to one store. The folder is made when something comes."""

    def __init__(self, store: OwnStore) -> None:
        self._store = store

    @property
    def folder(self) -> Path:
        """Return where uploads lie."""
        return path_within(self._store.root, FOLDER)

    def find(self, digest: str) -> Path | None:
        """Return the file of that digest: an upload, or a blob of a model; None without one."""
        for path in (self._place(digest), self._store.layout.blobs / f"sha256-{digest}"):
            if path.is_file() and not path.is_symlink():
                return path
        return None

    def begin(self, digest: str, *, size_bytes: int | None) -> "Upload":
        """Return an upload to write to; NoRoom when the disk has none for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        check_room(self.folder, size_bytes or 0)
        return Upload(self._place(digest), digest)

    @contextlib.contextmanager
    def assembled(self, files: Mapping[str, str]) -> Iterator[InstalledModel]:
        """Give uploads, by name and digest, as a model while it is made.

        One file is the model, several are its parts, by their names. Raises as `paths_of`.
        """
        found = self.paths_of(files)
        (first, path), *others = sorted(found.items())
        if not others:
            yield _model(first, (path,), digest=files[first])
            return
        with self._side_by_side(found) as folder:
            paths = parts_of(folder / Path(first).name)
            if {path.name for path in paths} != {Path(name).name for name in found}:
                raise UsageError(
                    f"files: {len(found)} files are given, and they are not the parts of one "
                    "GGUF: those are named model-00001-of-00002.gguf and so on"
                )
            yield _model(first, paths, digest=None)

    def paths_of(self, files: Mapping[str, str]) -> dict[str, Path]:
        """Return where uploads lie, by the names that they are given.

        UsageError for what is no GGUF, ModelNotFound for what was not sent.
        """
        return {name: self._needed(name, digest) for name, digest in files.items()}

    def remove(self, digests: Iterable[str]) -> None:
        """Remove what a model was made of, which lies among the blobs now."""
        for digest in digests:
            self._place(digest).unlink(missing_ok=True)

    def remove_forgotten(self, now_s: float | None = None) -> int:
        """Remove uploads of which no model was made for a day; return how many that were."""
        now_s = time.time() if now_s is None else now_s
        removed = 0
        with contextlib.suppress(OSError, UsageError):
            for entry in tuple(self.folder.iterdir()):
                if now_s - entry.lstat().st_mtime < _FORGOTTEN_S:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
                removed += 1
        return removed

    def _place(self, digest: str) -> Path:
        return self.folder / f"sha256-{digest}"

    def _needed(self, name: str, digest: str) -> Path:
        _check_name(name)
        path = self.find(digest)
        if path is None:
            raise ModelNotFound(
                f"files: the blob sha256:{digest[:12]}... of {name[:80]} is not here.",
                hint="POST it to /api/blobs first",
            )
        with path.open("rb") as file:
            if file.read(len(_GGUF)) != _GGUF:
                raise UsageError(
                    f"files: {name[:80]} is no GGUF file, and a model is made of nothing else",
                    hint="convert_hf_to_gguf.py of llama.cpp makes one of a folder of safetensors",
                )
        return path

    @contextlib.contextmanager
    def _side_by_side(self, paths: Mapping[str, Path]) -> Iterator[Path]:
        folder = self.folder / f"parts.{os.getpid()}.{next(_NUMBERS)}"
        folder.mkdir(parents=True)
        try:
            for name, path in paths.items():
                target = folder / Path(name).name
                if target.exists():
                    raise UsageError(f"files: {target.name[:80]} is given twice")
                os.link(path, target)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Upload:
    """One file that comes in; what is not finished leaves nothing behind."""

    def __init__(self, place: Path, digest: str) -> None:
        self._place = place
        self._digest = digest
        self._state = hashlib.sha256()
        self._written_bytes = 0
        self._temporary = place.with_name(
            f"{place.name}.{os.getpid()}.{next(_NUMBERS)}{_TEMPORARY}"
        )

    def __enter__(self) -> Self:
        """Open the file."""
        self._file = self._temporary.open("xb", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; it is gone unless it was finished."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Take in the next piece; NoRoom when the disk is about to be full."""
        rest = memoryview(piece)
        before = self._written_bytes // _LOOK_AT_ROOM_BYTES
        self._written_bytes += len(piece)
        if self._written_bytes // _LOOK_AT_ROOM_BYTES > before:
            check_room(self._place.parent, len(piece))
        self._state.update(piece)
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> None:
        """Give the file its name; UsageError when its content has another digest."""
        digest = self._state.hexdigest()
        if digest != self._digest:
            raise UsageError(
                f"the digest does not match: {self._written_bytes:,} bytes of sha256:{digest} "
                f"came, and sha256:{self._digest} was announced"
            )
        os.fsync(self._file.fileno())
        os.replace(self._temporary, self._place)


def check_room(folder: Path, size_bytes: int) -> None:
    """Raise NoRoom where a disk has none for so much."""
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes + _LEFT_FREE_BYTES > free_bytes:
        raise NoRoom(
            f"{format_gib(size_bytes)} do not fit: {format_gib(free_bytes)} are free on the disk "
            f"of the store, of which {format_gib(_LEFT_FREE_BYTES)} stay free",
            hint="free some space, or set MOERUN_MODELS to a folder on another disk",
        )


def _check_name(name: str) -> None:
    """Refuse the name of a file that is not a plain path within a folder."""
    parts = name.split("/")
    if (
        not name.isprintable()
        or "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") or len(part) > 255 for part in parts)
    ):
        raise UsageError(f"files: '{name[:80]}' is not the name of a file")


def _model(name: str, paths: tuple[Path, ...], *, digest: str | None) -> InstalledModel:
    return InstalledModel(
        name=name,
        source=Source.FILE,
        paths=paths,
        size_bytes=sum(path.stat().st_size for path in paths if path.is_file()),
        modified_at_s=paths[0].stat().st_mtime if paths[0].is_file() else 0.0,
        digest=digest,
    )
