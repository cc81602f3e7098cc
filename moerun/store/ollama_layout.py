"""A folder that is laid out as ollama's: manifests by name, and blobs by digest.

    manifests/<host>/<namespace>/<model>/<tag>
    blobs/sha256-<64 hexadecimal digits>

What lies there may be anyone's: names are checked by the grammar, digests are digits, links are not
followed, so that nothing outside the folder is read, written or removed.

Knows: the folders, what of them may be trusted, which files make the model that is loaded.
Does not know: whose folder it is, or who may write to it.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.errors import ModelError, ModelNotFound, UnsupportedModel, UsageError
from moerun.store.manifests import (
    LARGEST_MANIFEST_BYTES,
    LayerKind,
    StoredBlob,
    StoredManifest,
    parse_manifest,
)
from moerun.store.names import path_within
from moerun.store.references import OllamaReference, parse_reference

MANIFESTS: Final = "manifests"
BLOBS: Final = "blobs"
PARTS: Final = "parts"
_COLON: Final = "%3A"  # of a host's port, in the name of a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One name of a store, and the manifest that it has."""

    reference: OllamaReference
    manifest_path: Path
    manifest: StoredManifest
    modified_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenModel:
    """One name of a store whose manifest cannot be read, and why."""

    reference: OllamaReference
    manifest_path: Path
    trouble: str


class OllamaLayout:
    """One such folder; it need not be there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def blobs(self) -> Path:
        """Return the folder of blobs; UsageError when it leads elsewhere."""
        return path_within(self.root, BLOBS)

    def manifest_path(self, reference: OllamaReference) -> Path:
        """Return where the manifest of a name lies, or would; UsageError for one outside."""
        return path_within(self.root, MANIFESTS, *folder_parts(reference))

    def models(self) -> Iterator[StoredModel]:
        """Yield what can be read, in no order."""
        for entry in self.entries():
            if isinstance(entry, StoredModel):
                yield entry

    def entries(self) -> Iterator[StoredModel | BrokenModel]:
        """Yield each name, in no order, with its manifest or with what is wrong with it."""
        for reference, path in self.references():
            try:
                yield self._read(reference, path)
            except FileNotFoundError:
                continue  # somebody removed it just now
            except ModelError as error:
                trouble = error.message.removeprefix(f"{reference}: ")
                yield BrokenModel(reference=reference, manifest_path=path, trouble=trouble)
            except OSError as error:
                trouble = f"its manifest cannot be read: {error.strerror or error}"
                yield BrokenModel(reference=reference, manifest_path=path, trouble=trouble)

    def references(self) -> Iterator[tuple[OllamaReference, Path]]:
        """Yield each name that has a manifest's file, exactly four folders deep."""
        try:
            top = path_within(self.root, MANIFESTS)
        except UsageError:
            return
        for path in _files_below(top, depth=3):
            host, namespace, model, tag = path.relative_to(top).parts
            named = f"{host.replace(_COLON, ':')}/{namespace}/{model}:{tag}"
            try:
                reference = parse_reference(f"ollama://{named}", catalog_names=())
            except (UsageError, ModelNotFound):
                continue
            if isinstance(reference, OllamaReference):
                yield reference, path

    def find(self, reference: OllamaReference) -> StoredModel | None:
        """Return the model of a name in any case, None when there is none.

        Raises ModelError for a manifest that cannot be read.
        """
        path = self.manifest_path(reference)
        if not path.is_file():
            wanted = tuple(part.lower() for part in folder_parts(reference))
            for other, place in self.references():
                if tuple(part.lower() for part in folder_parts(other)) == wanted:
                    reference, path = other, place
                    break
            else:
                return None
        try:
            return self._read(reference, path)
        except FileNotFoundError:
            return None  # somebody removed it just now
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error

    def blob_path(self, blob: StoredBlob) -> Path:
        """Return where a blob lies, or would."""
        return self.blobs / blob.file_name

    def has_blob(self, blob: StoredBlob) -> bool:
        """Whether a blob is there whole, as a file and not as a link to one."""
        return is_whole(self.blob_path(blob), blob.size_bytes)

    def model_paths(self, manifest: StoredManifest) -> tuple[Path, ...]:
        """Return the file of a model, or its parts; raises a ModelError when they are not there.

        Parts have to lie side by side under names with numbers, so they have a folder of links
        (hard ones) to their blobs.
        """
        layers = manifest.of_kind(LayerKind.MODEL)
        if not layers:
            raise UnsupportedModel(
                "it holds no GGUF file, but single tensors for an engine of ollama's own",
                hint="look for a GGUF of it at Hugging Face: hf.co/user/repo",
            )
        for layer in layers:
            if not self.has_blob(layer):
                raise ModelNotFound(
                    f"its blob {layer.file_name[:19]}... is not there whole; pull it again"
                )
        if len(layers) == 1:
            return (self.blob_path(layers[0]),)
        paths = part_paths(self.root, layers)
        if not all(
            is_whole(path, layer.size_bytes) for path, layer in zip(paths, layers, strict=True)
        ):
            raise ModelNotFound("the folder of its parts is not whole; create it again")
        return paths

    def adapter_paths(self, manifest: StoredManifest) -> tuple[Path, ...]:
        """Return the files of its adapters; ModelNotFound when one is not there."""
        layers = manifest.of_kind(LayerKind.ADAPTER)
        for layer in layers:
            if not self.has_blob(layer):
                raise ModelNotFound(
                    f"its adapter {layer.file_name[:19]}... is not there whole; make it again"
                )
        return tuple(self.blob_path(layer) for layer in layers)

    def read_text(self, blob: StoredBlob, *, limit_bytes: int = 1 << 20) -> str:
        """Return what a small blob says; ModelError when it cannot be read or is not small."""
        path = self.blob_path(blob)
        try:
            if not self.has_blob(blob) or blob.size_bytes > limit_bytes:
                raise ModelError(f"its blob {blob.file_name[:19]}... cannot be read as a text")
            return path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error

    def _read(self, reference: OllamaReference, path: Path) -> StoredModel:
        status = path.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_MANIFEST_BYTES:
            raise ModelError(f"{path} is no manifest")
        try:
            manifest = parse_manifest(path.read_bytes())
        except ModelError as error:
            raise ModelError(f"{reference}: {error.message}", hint=f"it is {path}") from error
        return StoredModel(
            reference=reference,
            manifest_path=path,
            manifest=manifest,
            modified_at_s=status.st_mtime,
        )


def folder_parts(reference: OllamaReference) -> tuple[str, ...]:
    """Return the folders and the file of a name; no system takes the colon of a port."""
    return tuple(part.replace(":", _COLON) for part in reference.manifest_parts)


def part_paths(root: Path, layers: tuple[StoredBlob, ...]) -> tuple[Path, ...]:
    """Return where the parts of a split model lie side by side, named as the engine wants them."""
    count = len(layers)
    together = hashlib.sha256("".join(layer.digest for layer in layers).encode()).hexdigest()
    folder = path_within(root, PARTS, together)
    return tuple(folder / f"model-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))


def is_whole(path: Path, size_bytes: int) -> bool:
    """Whether a file of that length lies there itself."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def _files_below(folder: Path, *, depth: int) -> Iterator[Path]:
    """Yield the files that lie so many folders down; links, and what is closed, are left out."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if depth and entry.is_dir(follow_symlinks=False):
            yield from _files_below(folder / entry.name, depth=depth - 1)
        elif not depth and entry.is_file(follow_symlinks=False):
            yield folder / entry.name
