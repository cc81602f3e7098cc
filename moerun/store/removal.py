"""Which model of the own store a name means that is to be removed.

Knows: what is said of models that are not moerun's to remove.
Does not know: how a removal is done.
"""

from moerun.errors import MoerunError, UsageError
from moerun.store.installed import Source
from moerun.store.library import find_model
from moerun.store.own_store import OwnStore
from moerun.store.references import (
    CatalogReference,
    OllamaReference,
    ShortName,
    parse_reference,
)


def reference_to_remove(name: str, store: OwnStore) -> OllamaReference:
    """Return the name as the own store has it; UsageError for what lies elsewhere."""
    reference = parse_reference(name)
    if isinstance(reference, ShortName):
        reference = reference.in_ollama_library
    if isinstance(reference, OllamaReference):
        path = store.layout.manifest_path(reference)
        if path.is_symlink() or path.exists() or _is_there(reference, store):
            return reference
    try:
        found = find_model(name)
    except MoerunError:
        found = None
    if found is None or found.source is Source.MOERUN:
        if isinstance(reference, OllamaReference):
            return reference  # the store says that it has none
        if found is not None and found.reference is not None:
            return found.reference
        kind = "an entry of the catalogue, and " if isinstance(reference, CatalogReference) else ""
        raise UsageError(
            f"'{name[:80]}' is {kind}no model of moerun's own store, and nothing else is removed.",
            hint="`moerun list` shows models with their SOURCE",
        )
    raise UsageError(
        f"{found.name} belongs to {_OWNERS[found.source]}, and moerun removes only models of its "
        "own store.",
        hint=f"its file is {found.paths[0]}",
    )


def _is_there(reference: OllamaReference, store: OwnStore) -> bool:
    try:
        return store.layout.find(reference) is not None
    except MoerunError:
        return True  # and broken, which is no reason to keep it


_OWNERS = {
    Source.OLLAMA: "ollama (`ollama rm`)",
    Source.HUGGING_FACE: "Hugging Face's cache (`hf cache rm`)",
    Source.LM_STUDIO: "LM Studio",
    Source.FILE: "you, as a file",
    Source.DEMO: "the package of moerun",
}
