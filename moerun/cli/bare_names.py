"""Bare words that neither this machine nor the catalogue has: what ollama.com means by them.

    qwen3:30b        is the model of that name in the library at ollama.com

Knows: when it is asked, and what is said when it does not answer.
Does not know: the registry's protocol, or what is done with an answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from moerun.store.references import ModelReference, OllamaReference

_DID_YOU_MEAN: Final = "did you mean"


def library_reference(name: str) -> "OllamaReference | None":
    """Return the model of the library that a bare word means, None for any other kind of name.

    Raises ModelNotFound for a word that is likely mistyped: no host is asked for those.
    """
    from moerun.errors import UsageError
    from moerun.model.catalog import catalog_names
    from moerun.store.references import ShortName, parse_reference

    try:
        said = parse_reference(name, catalog_names=catalog_names())
    except UsageError:
        return None  # what only a file could be called
    refuse_unlikely(name, said)
    return said.in_ollama_library if isinstance(said, ShortName) else None


@contextmanager
def asking_library(name: str) -> Iterator[None]:
    """Raise ModelNotFound where ollama.com has no such model, or does not answer."""
    from moerun.errors import ModelNotFound, PullError

    try:
        yield
    except ModelNotFound as error:
        raise ModelNotFound(
            f"No model at hand is called '{name}', and ollama.com has none of that name.",
            hint=error.hint,
        ) from error
    except PullError as error:
        raise ModelNotFound(
            f"No model at hand is called '{name}', and ollama.com cannot be asked for it: "
            f"{error.message}",
            hint="`moerun list` shows the models of this machine, `moerun plan` also those of "
            "the catalogue",
        ) from error


def refuse_unlikely(name: str, said: "ModelReference") -> None:
    """Ask no host for a path, nor for what is likely mistyped; ModelNotFound says what is meant."""
    from moerun.errors import ModelNotFound
    from moerun.store.library import require_model
    from moerun.store.references import PathReference, ShortName

    if not isinstance(said, PathReference | ShortName):
        return
    try:
        require_model(name)
    except ModelNotFound as error:
        if isinstance(said, PathReference):
            raise
        if _DID_YOU_MEAN in (error.hint or ""):
            more = f"{error.hint}; `moerun pull {name}` asks ollama.com for '{name}'"
            raise ModelNotFound(error.message, hint=more) from error
