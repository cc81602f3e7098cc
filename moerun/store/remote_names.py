"""What a name means at a host: a repository of Hugging Face, or a model of a registry.

Knows: where entries of the catalogue and bare words are looked for.
Does not know: what hosts hold, or what is on disk.
"""

from typing import assert_never

from moerun.errors import ModelNotFound, UsageError
from moerun.model.catalog import catalog_entry, catalog_names
from moerun.store.names import DEMO
from moerun.store.references import (
    CatalogReference,
    HuggingFaceReference,
    OllamaReference,
    PathReference,
    ShortName,
    parse_reference,
)

RemoteReference = HuggingFaceReference | OllamaReference


def remote_reference(name: str) -> RemoteReference:
    """Return what is asked of which host for a name; UsageError and ModelNotFound for none."""
    reference = parse_reference(name, catalog_names=catalog_names())
    if isinstance(reference, ShortName) and name == DEMO:
        raise UsageError(
            f"{name} comes with moerun, so there is nothing to download",
            hint=f"`moerun run {name}` starts it",
        )
    match reference:
        case HuggingFaceReference() | OllamaReference():
            return reference
        case CatalogReference():
            return _of_entry(reference)
        case ShortName():
            return reference.in_ollama_library
        case PathReference():
            raise UsageError(
                f"{reference} is the path of a file, and only names of hosts can be pulled",
                hint="names look like qwen3-30b-a3b, qwen3:30b or hf.co/user/repo:Q4_K_M",
            )
    assert_never(reference)


def said_remote(name: str) -> RemoteReference | None:
    """Return what a name means that itself says its host, or is user/repo; None for any other."""
    try:
        reference = parse_reference(name, catalog_names=catalog_names())
    except (UsageError, ModelNotFound):
        return None
    return reference if isinstance(reference, HuggingFaceReference | OllamaReference) else None


def _of_entry(reference: CatalogReference) -> HuggingFaceReference:
    from moerun.model.catalog_model import quantization_of  # with much that other names spare

    entry = catalog_entry(reference.entry)
    user, _, repository = entry.repositories[0].partition("/")
    return HuggingFaceReference(
        repository_user=user,
        repository_name=repository,
        quantization=quantization_of(entry, reference.quantization),
    )
