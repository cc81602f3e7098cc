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
from moerun.store.names import models_at_hand
from moerun.store.profile import ModelProfile, profile_of

_LATEST: Final = ":latest"
_LONGEST_NAME: Final = 400  # characters
_MOST_PROFILES: Final = 256
_BY_FILE: Final = (Source.FILE, Source.DEMO)


class Shelf(Protocol):
    """Where the server finds models."""

    def find(self, name: str) -> ServedModel:
        """Return the model of a name; Refused with 404 when there is none."""
        ...

    def installed(self, name: str) -> InstalledModel:
        """Return where the model of a name lies; Refused with 404 when there is none."""
        ...

    def all(self) -> tuple[ServedModel, ...]:
        """Return every model, the newest first, without what it carries."""
        ...


class LocalShelf:
    """The models of this machine; `folder` is searched like the working folder of a verb."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._profiles: dict[str, ModelProfile] = {}

    def find(self, name: str) -> ServedModel:
        """Return the model of a name, whose case and tag `latest` do not matter for files."""
        model = self.installed(name)
        return _served(model, self._profile(model))

    def installed(self, name: str) -> InstalledModel:
        """Return where a model lies that can be run."""
        bare = checked_name(name).removesuffix(_LATEST)
        for file in models_at_hand(folder=self._folder):
            if file.name.lower() == bare.lower():
                return _runnable(find_model(file.name, folder=self._folder), name)
        try:
            found = find_model(bare, folder=self._folder)
        except (UsageError, ModelNotFound):
            found = None
        if found is not None and found.source in _BY_FILE:  # a path, not asked for by name
            found = None
        return _runnable(found, name)

    def all(self) -> tuple[ServedModel, ...]:
        """Return every model that can be run, without what it carries."""
        models = installed_models(folder=self._folder)
        return tuple(_served(model, None) for model in models if model.paths)

    def _profile(self, model: InstalledModel) -> ModelProfile | None:
        """Return what a model carries, read once for each manifest; a file carries nothing."""
        if model.manifest is None:
            return None
        mark = f"{model.root} {model.name} {model.manifest.digest}"
        if mark not in self._profiles:
            if len(self._profiles) >= _MOST_PROFILES:
                self._profiles.clear()
            self._profiles[mark] = profile_of(model)
        return self._profiles[mark]


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


def _runnable(model: InstalledModel | None, name: str) -> InstalledModel:
    if model is None:
        raise Refused(f"model '{name}' not found", status=NOT_FOUND)
    if not model.paths:
        raise ModelError(f"{model.name} cannot be run: {model.trouble}")
    return model


def _served(model: InstalledModel, profile: ModelProfile | None) -> ServedModel:
    return ServedModel(
        name=tagged(model.name),
        path=os.path.abspath(model.paths[0]),
        modified_at_s=model.modified_at_s,
        digest=model.digest,
        profile=profile,
        adapters=tuple(os.path.abspath(path) for path in model.adapters),
    )
