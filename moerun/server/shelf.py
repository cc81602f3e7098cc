"""The models that clients may name: those installed and at hand, by name alone.

A client of the server is not whoever sits at the machine, so a name is never a path here.

Knows: how names get their tag, and which files they mean.
Does not know: what is in a file, or what is in memory.
"""

import os
from pathlib import Path
from typing import Final, Protocol

from moerun.errors import ModelError, ModelNotFound, UsageError
from moerun.server.refusals import NOT_FOUND, Refused
from moerun.server.runners import ServedModel
from moerun.store.installed import InstalledModel, Source
from moerun.store.library import find_model, installed_models

_LATEST: Final = ":latest"
_LONGEST_NAME: Final = 400  # characters
_BY_FILE: Final = (Source.FILE, Source.DEMO)


class Shelf(Protocol):
    """Where the server finds models."""

    def find(self, name: str) -> ServedModel:
        """Return the model of a name; Refused with 404 when there is none."""
        ...

    def all(self) -> tuple[ServedModel, ...]:
        """Return every model, the newest first."""
        ...


class LocalShelf:
    """The models of this machine; `folder` is searched like the working folder of a verb."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def find(self, name: str) -> ServedModel:
        """Return the model of a name, whose case and tag `latest` do not matter for files."""
        bare = checked_name(name).removesuffix(_LATEST)
        for model in installed_models(folder=self._folder):
            if model.source in _BY_FILE and model.name.lower() == bare.lower() and model.paths:
                return _served(model)
        try:
            found = find_model(bare, folder=self._folder)
        except (UsageError, ModelNotFound):
            found = None
        if found is None or found.source in _BY_FILE:  # a path, which is not asked for by name
            raise Refused(f"model '{name}' not found", status=NOT_FOUND)
        if not found.paths:
            raise ModelError(f"{found.name} cannot be run: {found.trouble}")
        return _served(found)

    def all(self) -> tuple[ServedModel, ...]:
        """Return every model that can be run."""
        return tuple(_served(each) for each in installed_models(folder=self._folder) if each.paths)


def checked_name(name: str) -> str:
    """Return a name without blanks around it; Refused for one that could be no model's."""
    bare = name.strip()
    if not bare:
        raise Refused("model is required")
    is_odd = len(bare) > _LONGEST_NAME or not bare.isprintable()
    parts = bare.replace("\\", "/").split("/")
    if is_odd or bare[0] in "./~\\" or ".." in parts or (len(parts) > 1 and parts[-1] == ""):
        raise Refused(f"'{bare[:80]}' is not the name of a model")
    return bare


def tagged(name: str) -> str:
    """Return a name with its tag, `latest` where it has none."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def _served(model: InstalledModel) -> ServedModel:
    return ServedModel(
        name=tagged(model.name),
        path=os.path.abspath(model.paths[0]),
        modified_at_s=model.modified_at_s,
    )
