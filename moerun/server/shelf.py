"""The models that clients may name: those at hand, by name alone.

A client of the server is not whoever sits at the machine, so a name is never a path here.

Knows: how names get their tag, and which files they mean.
Does not know: what is in a file, or what is in memory.
"""

import os
from pathlib import Path
from typing import Protocol

from moerun.errors import ModelNotFound
from moerun.server.refusals import NOT_FOUND, Refused
from moerun.server.runners import ServedModel
from moerun.store.names import ModelAtHand, models_at_hand

_LATEST = ":latest"
_LONGEST_NAME = 400  # characters


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
        """Return the model of a name, whose case and tag `latest` do not matter."""
        bare = checked_name(name).removesuffix(_LATEST)
        at_hand = models_at_hand(folder=self._folder)
        for model in at_hand:
            if model.name == bare:
                return _served(model)
        for model in at_hand:
            if model.name.lower() == bare.lower():
                return _served(model)
        raise Refused(f"model '{name}' not found", status=NOT_FOUND)

    def all(self) -> tuple[ServedModel, ...]:
        """Return every model that can be read."""
        found = [_served(model) for model in models_at_hand(folder=self._folder)]
        return tuple(sorted(found, key=lambda model: model.modified_at_s, reverse=True))


def checked_name(name: str) -> str:
    """Return a name without blanks around it; Refused for one that could be no model's."""
    bare = name.strip()
    if not bare:
        raise Refused("model is required")
    is_odd = len(bare) > _LONGEST_NAME or not bare.isprintable()
    parts = bare.replace("\\", "/").split("/")
    if is_odd or bare[0] in "./~\\" or ".." in parts or "" in parts:
        raise Refused(f"'{bare[:80]}' is not the name of a model")
    return bare


def tagged(name: str) -> str:
    """Return a name with its tag, `latest` where it has none."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def _served(model: ModelAtHand) -> ServedModel:
    path = os.path.abspath(model.path)
    try:
        modified_at_s = os.stat(path).st_mtime
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror or error}.") from error
    return ServedModel(name=tagged(model.name), path=path, modified_at_s=modified_at_s)
