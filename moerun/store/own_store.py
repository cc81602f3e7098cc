"""The store that moerun writes: blobs come in, manifests name them, and what nobody names goes.

A blob is put in its place whole, by its digest; a manifest is written last, under the lock of the
store, once every blob that it names was seen there under that lock. Removing takes the manifest
first and then, under the same lock, the blobs that no other manifest names and nobody runs.

Knows: in which order all is done, so that several processes may do it at once.
Does not know: what a Modelfile says, or what is downloaded.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moerun.errors import ModelError, ModelNotFound, UsageError
from moerun.places import models_folder, write_whole
from moerun.store.file_lock import locked
from moerun.store.locks import FOLDER as LOCKS
from moerun.store.locks import blob_alone, store_locked
from moerun.store.manifests import LayerKind, StoredBlob, StoredManifest
from moerun.store.ollama_layout import (
    OllamaLayout,
    StoredModel,
    is_whole,
    part_paths,
)
from moerun.store.references import (
    CatalogReference,
    OllamaReference,
    ShortName,
    parse_reference,
)
from moerun.units import MIB, format_gib

_PIECE_BYTES: Final = 4 * MIB
_LEFT_FREE_BYTES: Final = 64 * MIB
_MODE: Final = 0o644
_ROUNDS: Final = 3  # of bringing back blobs that others remove before a manifest names them
_KEPT_NAMES: Final = frozenset({"demo"})

Progress = Callable[[int], None]  # is told how many bytes of a file were gone through


def _silent(_: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What a removal took away."""

    name: str
    freed_bytes: int


class OwnStore:
    """The store below one folder, made when something is put there first."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or models_folder()
        self.layout = OllamaLayout(self.root)

    def add_file(
        self, source: Path, media_type: str, *, progress: Progress = _silent
    ) -> StoredBlob:
        """Take a file in: hashed, and then linked where the disk is the same, else copied."""
        digest = _digest_of(source, progress)
        return self._take_in(source, digest, media_type)

    def add_known(self, source: Path, digest: str, media_type: str) -> StoredBlob:
        """Take in a blob of a store that names its files by their digest."""
        return self._take_in(source, digest, media_type)

    def add_bytes(self, content: bytes, media_type: str) -> StoredBlob:
        """Take in a small document."""
        digest = hashlib.sha256(content).hexdigest()
        blob = StoredBlob(media_type=media_type, digest=digest, size_bytes=len(content))
        with self._blob_locked(blob) as path:
            if not is_whole(path, blob.size_bytes):
                write_whole(path, content)
                path.chmod(_MODE)
        return blob

    def write(
        self,
        reference: OllamaReference,
        manifest: StoredManifest,
        *,
        restore: Callable[[], object] | None = None,
    ) -> None:
        """Name a model; `restore` brings back blobs that somebody removed meanwhile.

        ModelError when blobs are not there. What the name meant before loses its blobs.
        """
        for round_ in range(_ROUNDS):
            with store_locked(self.root):
                if all(self.layout.has_blob(blob) for blob in manifest.blobs):
                    previous = self._replaced(reference)
                    place = previous.manifest_path if previous is not None else None
                    self._show_parts(manifest)
                    self._write_manifest(place or self.layout.manifest_path(reference), manifest)
                    if previous is not None:
                        self._remove_unnamed(previous.manifest)
                    return
            if restore is None or round_ == _ROUNDS - 1:
                break
            restore()
        raise ModelError(f"{reference} was not stored, since some of its files are gone; try again")

    def _replaced(self, reference: OllamaReference) -> StoredModel | None:
        """Return what a name means so far; what cannot be read names no blobs, and is replaced."""
        try:
            return self.layout.find(reference)
        except ModelError:
            return None

    def copy(self, source: StoredModel, target: OllamaReference) -> None:
        """Give a model of this store a second name, which shares its blobs."""
        self.write(target, source.manifest)

    def remove(self, reference: OllamaReference) -> Removed:
        """Remove a name, and the blobs that none names any more.

        Raises ModelNotFound; ModelError when somebody runs the model.
        """
        with store_locked(self.root):
            found = self._find_to_remove(reference)
            orphans = self._orphans(found.manifest, apart_from=found.manifest_path)
            with ExitStack() as stack:
                for blob in orphans:
                    if not stack.enter_context(blob_alone(self.root, blob.file_name)):
                        raise ModelError(
                            f"{found.reference} is in use; end the process that runs it first",
                            hint="`moerun stat` shows it; `moerun stop` ends that of a server",
                        )
                found.manifest_path.unlink(missing_ok=True)
                self._remove_parts(found.manifest, orphans)
                freed_bytes = sum(self._unlink(blob) for blob in orphans)
            _remove_empty_folders(found.manifest_path.parent, self.root)
        return Removed(name=str(found.reference), freed_bytes=freed_bytes)

    def _find_to_remove(self, reference: OllamaReference) -> StoredModel:
        """Return the model of a name; a manifest that cannot be read names no blobs."""
        try:
            found = self.layout.find(reference)
        except ModelError:
            path = self.layout.manifest_path(reference)
            nothing = StoredManifest(raw=b"", config=None, layers=())
            found = StoredModel(
                reference=reference, manifest_path=path, manifest=nothing, modified_at_s=0.0
            )
        if found is None:
            raise ModelNotFound(
                f"moerun's own store has no model '{reference}'.",
                hint="`moerun list` shows models with their SOURCE",
            )
        return found

    def _orphans(
        self, manifest: StoredManifest, *, apart_from: Path | None = None
    ) -> tuple[StoredBlob, ...]:
        """Return the blobs of a manifest that no other one names.

        While any other manifest cannot be read, none is known to be an orphan.
        """
        named: set[str] = set()
        for reference, path in self.layout.references():
            if path == apart_from:
                continue
            try:
                found = self.layout.find(reference)
            except ModelError:
                return ()
            if found is not None:
                named |= {blob.digest for blob in found.manifest.blobs}
        return tuple(blob for blob in manifest.blobs if blob.digest not in named)

    def _remove_unnamed(self, manifest: StoredManifest) -> None:
        """Remove the blobs of a manifest that was written over, but for those in use."""
        for blob in self._orphans(manifest):
            with blob_alone(self.root, blob.file_name) as is_alone:
                if is_alone:
                    self._remove_parts(manifest, (blob,))
                    self._unlink(blob)

    def _unlink(self, blob: StoredBlob) -> int:
        """Remove a blob; how many bytes that freed."""
        path = self.layout.blob_path(blob)
        try:
            # A blob may be the second name of a file that stays.
            freed_bytes = blob.size_bytes if path.lstat().st_nlink == 1 else 0
            path.unlink()
        except FileNotFoundError:
            return 0
        return freed_bytes

    def _remove_parts(self, manifest: StoredManifest, gone: tuple[StoredBlob, ...]) -> None:
        layers = manifest.of_kind(LayerKind.MODEL)
        if len(layers) > 1 and {layer.digest for layer in layers} & {blob.digest for blob in gone}:
            shutil.rmtree(part_paths(self.root, layers)[0].parent, ignore_errors=True)

    def _take_in(self, source: Path, digest: str, media_type: str) -> StoredBlob:
        size_bytes = source.stat().st_size
        blob = StoredBlob(media_type=media_type, digest=digest, size_bytes=size_bytes)
        with self._blob_locked(blob) as path:
            if not is_whole(path, size_bytes):
                _link_or_copy(source.resolve(), path)
        return blob

    def _blob_locked(self, blob: StoredBlob) -> "_BlobPlace":
        return _BlobPlace(self.root, self.layout.blob_path(blob))

    def _show_parts(self, manifest: StoredManifest) -> None:
        """Give the parts of a split model their names beside one another."""
        layers = manifest.of_kind(LayerKind.MODEL)
        if len(layers) < 2:
            return
        for path, layer in zip(part_paths(self.root, layers), layers, strict=True):
            if not is_whole(path, layer.size_bytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                _link_or_copy(self.layout.blob_path(layer), path)

    def _write_manifest(self, path: Path, manifest: StoredManifest) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, manifest.raw)
        path.chmod(_MODE)


def own_reference(name: str, *, what: str = "a model of your own") -> OllamaReference:
    """Return what a name means in the own store; UsageError for one that cannot be given there."""
    reference = parse_reference(name)
    said = f"'{name[:80]}' cannot be the name of {what}"
    match reference:
        case ShortName():
            if reference.model.lower() in _KEPT_NAMES:
                raise UsageError(f"{said}: it is that of the embedded model", hint=_OWN_NAMES)
            return reference.in_ollama_library
        case OllamaReference():
            return replace(reference, scheme="https")
        case CatalogReference():
            raise UsageError(f"{said}: it is an entry of the catalogue", hint=_OWN_NAMES)
    raise UsageError(f"{said}: it names a file or a repository elsewhere", hint=_OWN_NAMES)


_OWN_NAMES: Final = "names of your own are a word, with a tag if you like: mine, mine:small"


class _BlobPlace:
    """The place of a blob, for one process at a time; the folders are made."""

    def __init__(self, root: Path, path: Path) -> None:
        self._path = path
        self._lock = locked(root / LOCKS / f"{path.name}.lock")

    def __enter__(self) -> Path:
        self._lock.__enter__()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path

    def __exit__(self, *reason: object) -> None:
        self._lock.__exit__(None, None, None)


def _digest_of(path: Path, progress: Progress) -> str:
    """Return the sha256 of a file, told of as it goes."""
    state, gone_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
            gone_bytes += len(piece)
            progress(gone_bytes)
    return state.hexdigest()


def _link_or_copy(source: Path, target: Path) -> None:
    """Let a file lie there too: as a second name where that can be, else as a copy made whole."""
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            _check_room(source, target.parent)
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        # Where both names are of one file already, `replace` leaves the first.
        temporary.unlink(missing_ok=True)


def _check_room(source: Path, folder: Path) -> None:
    needed_bytes, free_bytes = source.stat().st_size, shutil.disk_usage(folder).free
    if needed_bytes + _LEFT_FREE_BYTES > free_bytes:
        raise ModelError(
            f"{source.name} needs {format_gib(needed_bytes)} on the disk of {folder}, and "
            f"{format_gib(free_bytes)} are free, of which {format_gib(_LEFT_FREE_BYTES)} are left "
            "to others",
            hint="free some space, or set MOERUN_MODELS to a folder on the disk of the file, "
            "where it takes no room again",
        )


def _remove_empty_folders(folder: Path, root: Path) -> None:
    """Remove what a removed name leaves; the first folder that holds something ends it."""
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
