"""The stores of ollama's layout on this machine: moerun's own, and those that ollama keeps.

Knows: where ollama keeps its models, and how one of them becomes a model at hand.
Does not know: how a store is written to.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from moerun.errors import ModelError
from moerun.places import models_folder
from moerun.store.installed import InstalledModel, Source
from moerun.store.ollama_layout import MANIFESTS, BrokenModel, OllamaLayout, StoredModel
from moerun.store.references import OllamaReference

# Of the service that ollama's installer sets up - docs/linux.md and docs/faq.md of ollama 0.12.
_SERVICE_FOLDER: Final = Path("/usr/share/ollama/.ollama/models")


def ollama_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders in which ollama may keep models; they need not be there."""
    environment = os.environ if environment is None else environment
    home = environment.get("HOME") or environment.get("USERPROFILE")
    folders = [Path(environment["OLLAMA_MODELS"])] if environment.get("OLLAMA_MODELS") else []
    folders += [Path(home) / ".ollama" / "models"] if home else []
    folders += [_SERVICE_FOLDER]
    return tuple(dict.fromkeys(folder.expanduser().absolute() for folder in folders))


def closed_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders of stores that are there and that this user may not look into."""
    closed = []
    for _, root in stores(environment):
        try:
            if (root / MANIFESTS).is_dir() and not os.access(root / MANIFESTS, os.R_OK | os.X_OK):
                closed.append(root)
        except PermissionError:
            closed.append(root)
    return tuple(closed)


def stores(environment: Mapping[str, str] | None = None) -> tuple[tuple[Source, Path], ...]:
    """Return all stores of this layout, moerun's own first."""
    own = models_folder(environment)
    foreign = (folder for folder in ollama_folders(environment) if folder != own)
    return ((Source.MOERUN, own), *((Source.OLLAMA, folder) for folder in foreign))


def models_of_stores(environment: Mapping[str, str] | None = None) -> Iterator[InstalledModel]:
    """Yield every model of every store, the broken too; one that is closed has none."""
    for source, root in stores(environment):
        layout = OllamaLayout(root)
        for entry in layout.entries():
            if isinstance(entry, BrokenModel):
                yield _unreadable(entry, source, root)
            else:
                yield installed(layout, entry, source)


def find_in_stores(
    reference: OllamaReference, environment: Mapping[str, str] | None = None
) -> InstalledModel | None:
    """Return the model of a name, of the own store first; raises ModelError for a broken one."""
    for source, root in stores(environment):
        layout = OllamaLayout(root)
        stored = layout.find(reference)
        if stored is not None:
            return installed(layout, stored, source)
    return None


def _unreadable(entry: BrokenModel, source: Source, root: Path) -> InstalledModel:
    """Return a name that is listed, and nothing more is known of."""
    try:
        modified_at_s = entry.manifest_path.lstat().st_mtime
    except OSError:
        modified_at_s = 0.0
    return InstalledModel(
        name=str(entry.reference),
        source=source,
        paths=(),
        size_bytes=0,
        modified_at_s=modified_at_s,
        reference=entry.reference,
        root=root,
        trouble=entry.trouble,
    )


def installed(layout: OllamaLayout, stored: StoredModel, source: Source) -> InstalledModel:
    """Return a stored model as one at hand, with what keeps it from being run."""
    paths: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    trouble = None
    try:
        adapters = layout.adapter_paths(stored.manifest)
        paths = layout.model_paths(stored.manifest)
    except ModelError as error:
        trouble = error.message
    return InstalledModel(
        name=str(stored.reference),
        source=source,
        paths=paths,
        adapters=adapters,
        size_bytes=stored.manifest.size_bytes,
        modified_at_s=stored.modified_at_s,
        digest=stored.manifest.digest,
        reference=stored.reference,
        manifest=stored.manifest,
        root=layout.root,
        trouble=trouble,
    )
