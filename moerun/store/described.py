"""A model at hand as its headers describe it, with the adapters that go with it.

Knows: which files make the whole.
Does not know: stores, names, or what a header means.
"""

from pathlib import Path

from moerun.model.adapters import with_adapters
from moerun.model.description import Model
from moerun.model.gguf_file import read_file
from moerun.model.gguf_header import read_model
from moerun.store.installed import InstalledModel


def described_model(found: InstalledModel) -> Model:
    """Return what an installed model is; raises a ModelError."""
    return described_files(found.paths[0], found.adapters)


def described_files(path: Path | str, adapters: tuple[Path | str, ...]) -> Model:
    """Return what a model of these files is; UnsupportedModel where adapters do not fit."""
    model = read_model(path)
    if not adapters:
        return model
    return with_adapters(model, tuple(read_file(adapter) for adapter in adapters))
