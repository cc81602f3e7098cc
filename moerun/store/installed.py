"""A model that is on this machine, whoever put it there, as a value.

Knows: where models come from, and what is known of one without reading its header.
Does not know: how a store is searched, or which name means what.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moerun.store.manifests import StoredManifest
from moerun.store.references import OllamaReference


class Source(StrEnum):
    """Whose store a model lies in; moerun writes to its own alone."""

    MOERUN = "moerun"
    OLLAMA = "ollama"
    HUGGING_FACE = "hf"
    LM_STUDIO = "lmstudio"
    FILE = "file"
    DEMO = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """One model: its name, and its files in the order of their parts.

    `paths` are empty, and `trouble` says why, when it is listed but cannot be run. `repository`
    and `label` are of stores that sort by repositories; `adapters` are applied to the weights.
    `digest` names its content where the store does; `root` is the folder of a store of ollama's
    layout.
    """

    name: str
    source: Source
    paths: tuple[Path, ...]
    size_bytes: int
    modified_at_s: float
    digest: str | None = None
    repository: str | None = None
    label: str | None = None
    reference: OllamaReference | None = None
    adapters: tuple[Path, ...] = ()
    manifest: StoredManifest | None = None
    root: Path | None = None
    trouble: str | None = None
