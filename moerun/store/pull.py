"""From a name to files on disk: asks the host, checks room, fetches, and makes it visible at once.

Files of Hugging Face go into its own cache, where llama.cpp, transformers and `hf cache` find them;
those of a registry into moerun's store, laid out as ollama lays out its own. Blobs come first, and
what makes them a model (the links of a snapshot, a manifest) last: until then nothing is listed.

Knows: both layouts, in which order a model becomes visible, how much room it takes.
Does not know: how one file is fetched, what a terminal shows, or which names mean what.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, assert_never

from moerun.errors import NoRoom, PullError
from moerun.places import models_folder, write_whole
from moerun.store.download import (
    CONNECTIONS,
    Fetched,
    connections_for,
    download,
    kept_bytes_of,
)
from moerun.store.file_lock import locked
from moerun.store.http_client import Credentials
from moerun.store.http_connection import Patience
from moerun.store.hub_settings import HubSettings, read_hub_settings
from moerun.store.huggingface import choose_files, list_repository
from moerun.store.manifests import StoredManifest, parse_manifest
from moerun.store.own_store import OwnStore
from moerun.store.references import (
    HuggingFaceReference,
    OllamaReference,
    repository_file_parts,
)
from moerun.store.registry import fetch_manifest
from moerun.store.remote_file import RemoteFile
from moerun.units import MIB, format_gib

RemoteReference = HuggingFaceReference | OllamaReference

_LEFT_FREE_BYTES: Final = 64 * MIB  # of a disk, so that the rest of the system goes on


class PullWatcher(Protocol):
    """Who is told how far a pull is."""

    def tell(self, message: str) -> None:
        """Take a sentence on what happens now."""

    def begin_file(self, file: RemoteFile, *, kept_bytes: int) -> None:
        """Take that a file begins to be fetched."""

    def update_file(self, file: RemoteFile, there_bytes: int) -> None:
        """Take how much of a file is there."""

    def finish_file(self, file: RemoteFile) -> None:
        """Take that a file is whole, and proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStep:
    """One file and where it goes; `shown_at` is the path a program opens, None for the blob."""

    file: RemoteFile
    blob: Path
    lock: Path
    shown_at: Path | None
    is_present: bool
    kept_bytes: int  # of an earlier pull that did not end

    @property
    def missing_bytes(self) -> int:
        """How much is still to be fetched."""
        return 0 if self.is_present else max(0, self.file.size_bytes - self.kept_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRecord:
    """What a branch of a repository is, in Hugging Face's cache."""

    path: Path
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord:
    """What a name is in moerun's store."""

    reference: OllamaReference
    manifest: StoredManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOrder:
    """What a pull would do; `record` is what makes it a model in the end."""

    name: str
    folder: Path
    steps: tuple[PullStep, ...]
    record: BranchRecord | StoreRecord
    model_path: Path
    credentials: Credentials | None

    @property
    def size_bytes(self) -> int:
        """How large all files are together."""
        return sum(step.file.size_bytes for step in self.steps)

    @property
    def missing_bytes(self) -> int:
        """How much would come over the network."""
        return sum(step.missing_bytes for step in self.steps)

    @property
    def free_bytes(self) -> int:
        """How much room the disk has."""
        return free_bytes_at(self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A model that is whole on disk; `model_path` is the file to open, or its first part."""

    name: str
    model_path: Path
    size_bytes: int
    fetched_bytes: int
    paths: tuple[Path, ...]


def order_pull(
    reference: RemoteReference,
    *,
    hub: HubSettings | None = None,
    store: Path | None = None,
    patience: Patience | None = None,
) -> PullOrder:
    """Ask the host what a name means, and look at what is here already; nothing is written."""
    if isinstance(reference, HuggingFaceReference):
        return _order_from_hub(reference, hub or read_hub_settings(), patience)
    return _order_from_registry(reference, store or models_folder(), patience)


def carry_out(
    order: PullOrder,
    watcher: PullWatcher,
    *,
    patience: Patience | None = None,
    connections: int = CONNECTIONS,
) -> Pulled:
    """Fetch what is missing and make the model visible; raises a PullError.

    What arrived before a failure, or before Ctrl-C, stays for the next time.
    """
    check_room(order)
    fetched_bytes = 0

    def fetch() -> None:
        nonlocal fetched_bytes
        for step in order.steps:
            fetched = _carry_out_step(order, step, watcher, patience, connections)
            fetched_bytes += fetched.fetched_bytes

    try:
        fetch()
        match order.record:
            case BranchRecord():
                _show_branch(order.steps, order.record)
            case StoreRecord(reference=reference, manifest=manifest):
                # A blob that another process removes before it is named is fetched once more.
                OwnStore(order.folder).write(reference, manifest, restore=fetch)
            case _ as never:
                assert_never(never)
    except OSError as error:
        raise PullError(
            f"{order.folder} cannot be written to: {error.strerror or error}",
            hint="HF_HUB_CACHE and MOERUN_MODELS name other folders",
        ) from error
    return Pulled(
        name=order.name,
        model_path=order.model_path,
        size_bytes=order.size_bytes,
        fetched_bytes=fetched_bytes,
        paths=tuple(step.shown_at or step.blob for step in order.steps),
    )


def pull(
    reference: RemoteReference,
    watcher: PullWatcher,
    *,
    hub: HubSettings | None = None,
    store: Path | None = None,
    patience: Patience | None = None,
    connections: int = CONNECTIONS,
) -> Pulled:
    """Download a model, or what is missing of it; raises PullError and ModelError."""
    order = order_pull(reference, hub=hub, store=store, patience=patience)
    return carry_out(order, watcher, patience=patience, connections=connections)


def check_room(order: PullOrder) -> None:
    """Raise NoRoom when the disk cannot hold what is missing."""
    # A kept part is as long as the file and mostly holes: what is missing takes room yet.
    needed_bytes, free_bytes = order.missing_bytes, order.free_bytes
    if needed_bytes and needed_bytes + _LEFT_FREE_BYTES > free_bytes:
        raise NoRoom(
            f"{order.name} needs {format_gib(needed_bytes)} more on the disk of {order.folder}, "
            f"and {format_gib(free_bytes)} are free, of which "
            f"{format_gib(_LEFT_FREE_BYTES)} are left to others",
            hint="free some space, choose a smaller quantization, or set HF_HUB_CACHE or "
            "MOERUN_MODELS to a folder on another disk",
        )


def free_bytes_at(folder: Path) -> int:
    """Return the room on the disk of a folder that may not be there yet."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(place).free


def _order_from_hub(
    reference: HuggingFaceReference, hub: HubSettings, patience: Patience | None
) -> PullOrder:
    repository = list_repository(reference, hub, patience=patience)
    files = choose_files(repository, reference)
    folder = hub.cache / reference.cache_folder
    snapshot = folder / "snapshots" / repository.commit
    steps = tuple(
        _step(
            file,
            blob=folder / "blobs" / file.digest.hexadecimal,
            lock=hub.cache / ".locks" / reference.cache_folder / f"{file.digest.hexadecimal}.lock",
            shown_at=snapshot.joinpath(*repository_file_parts(file.name)),
        )
        for file in files
    )
    return PullOrder(
        name=str(reference),
        folder=hub.cache,
        steps=steps,
        record=BranchRecord(
            path=folder.joinpath("refs", *repository.revision.split("/")),
            commit=repository.commit,
        ),
        model_path=steps[0].shown_at or steps[0].blob,
        credentials=hub.credentials,
    )


def _order_from_registry(
    reference: OllamaReference, store: Path, patience: Patience | None
) -> PullOrder:
    manifest = fetch_manifest(reference, patience=patience)
    steps = []
    for file in dict.fromkeys(layer.file for layer in manifest.layers):
        blob = store / "blobs" / f"sha256-{file.digest.hexadecimal}"
        lock = store / ".locks" / f"{blob.name}.lock"
        steps.append(_step(file, blob=blob, lock=lock, shown_at=None))
    digest = manifest.model_file.digest.hexadecimal
    return PullOrder(
        name=str(reference),
        folder=store,
        steps=tuple(steps),
        record=StoreRecord(
            reference=replace(reference, scheme="https"), manifest=parse_manifest(manifest.raw)
        ),
        model_path=store / "blobs" / f"sha256-{digest}",
        credentials=manifest.credentials,
    )


def _step(file: RemoteFile, *, blob: Path, lock: Path, shown_at: Path | None) -> PullStep:
    is_present = _is_whole(blob, file)
    return PullStep(
        file=file,
        blob=blob,
        lock=lock,
        shown_at=shown_at,
        is_present=is_present,
        kept_bytes=0 if is_present else kept_bytes_of(file, blob),
    )


def _is_whole(blob: Path, file: RemoteFile) -> bool:
    """Whether a blob is there; its name is its digest, so its length tells enough."""
    return blob.is_file() and blob.stat().st_size == file.size_bytes


def _show_branch(steps: tuple[PullStep, ...], record: BranchRecord) -> None:
    """Let the files of a commit be found under their names, and the branch mean that commit."""
    for step in steps:
        if step.shown_at is not None:
            _show(step.blob, step.shown_at)
    record.path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(record.path, record.commit)
    record.path.chmod(0o644)


def _carry_out_step(
    order: PullOrder,
    step: PullStep,
    watcher: PullWatcher,
    patience: Patience | None,
    connections: int,
) -> Fetched:
    def waiting() -> None:
        watcher.tell(f"another process is fetching {step.file.name}; waiting for it")

    nothing = Fetched(fetched_bytes=0, kept_bytes=step.file.size_bytes)
    if _is_whole(step.blob, step.file):
        return nothing
    with locked(step.lock, on_waiting=waiting):
        if _is_whole(step.blob, step.file):  # the other process has fetched it
            return nothing
        watcher.begin_file(step.file, kept_bytes=kept_bytes_of(step.file, step.blob))
        fetched = download(
            step.file,
            step.blob,
            patience=patience,
            credentials=order.credentials,
            connections=connections_for(step.file.size_bytes, connections),
            watch=_watch(watcher, step.file),
        )
    watcher.finish_file(step.file)
    return fetched


def _watch(watcher: PullWatcher, file: RemoteFile) -> Callable[[int], None]:
    return lambda there_bytes: watcher.update_file(file, there_bytes)


def _show(blob: Path, place: Path) -> None:
    """Let a blob be found under its own name: by a link, or as a copy where there are no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.exists():
        if place.exists() and place.samefile(blob):
            return
        place.unlink()
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:  # Windows without the right to make links
        try:
            os.link(blob, place)
        except OSError:
            shutil.copyfile(blob, place)
