"""All models on this machine, and which of them a name means.

Searched are, in this order: files (the working folder, and the folder that `MOERUN_MODELS` names),
moerun's own store, those of ollama, Hugging Face's cache, and LM Studio's folder. A name of the
catalogue means what is installed of that entry, in the quantization it recommends if that is there.

Knows: the order of the stores, and how each kind of name is looked for.
Does not know: what is in a file, or what a host has.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from moerun.errors import ModelError, UsageError
from moerun.model.catalog import CatalogEntry, catalog_entry, catalog_names
from moerun.store.installed import InstalledModel, Source
from moerun.store.names import (
    DEMO,
    ModelAtHand,
    models_at_hand,
    parts_of,
    resolve_file,
    resolve_model,
)
from moerun.store.ollama_store import find_in_stores, models_of_stores
from moerun.store.references import (
    CatalogReference,
    HuggingFaceReference,
    ModelReference,
    OllamaReference,
    PathReference,
    ShortName,
    parse_reference,
)


def installed_models(
    *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[InstalledModel, ...]:
    """Return every model of this machine, the newest first."""
    found = [
        *(_of_file(model) for model in models_at_hand(folder=folder, environment=environment)),
        *models_of_stores(environment),
        *_of_repositories(environment),
    ]
    return tuple(sorted(found, key=lambda model: (-model.modified_at_s, model.name)))


def find_model(
    name: str, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> InstalledModel | None:
    """Return the model that a name or a path means, None when it is not on this machine.

    Raises ModelError for one that is there and broken, ModelNotFound for a path without a file,
    UsageError for what is no name.
    """
    if (path := resolve_file(name, folder=folder, environment=environment)) is not None:
        return _of_path(name, path)
    reference = parse_reference(name, catalog_names=catalog_names())
    found = _find(reference, environment)
    if found is not None and found.trouble is not None:
        raise ModelError(
            f"{found.name} ({found.source}) cannot be run: {found.trouble}",
            hint="`moerun pull` fetches what is missing of a model that it knows",
        )
    return found


def require_model(
    name: str, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> InstalledModel:
    """Return the model that a name means; ModelNotFound tells what comes closest, and of pull."""
    found = find_model(name, folder=folder, environment=environment)
    if found is not None:
        return found
    others = tuple(model.name for model in installed_models(folder=folder, environment=environment))
    # It looks at files again, finds none, and says what comes closest.
    path = resolve_model(name, folder=folder, environment=environment, others=others)
    return _of_path(name, path)


def _find(
    reference: ModelReference, environment: Mapping[str, str] | None
) -> InstalledModel | None:
    match reference:
        case PathReference():
            return None
        case OllamaReference():
            return find_in_stores(reference, environment)
        case HuggingFaceReference():
            found = _first(_of_repository(reference, environment), None)
            return found or _pulled_by_ollama(reference, environment)
        case CatalogReference():
            return _of_entry(reference, environment)
        case ShortName():
            return find_in_stores(reference.in_ollama_library, environment)


def _of_entry(
    reference: CatalogReference, environment: Mapping[str, str] | None
) -> InstalledModel | None:
    """Return what is installed of an entry: as pulled from its repositories, or from ollama."""
    entry = catalog_entry(reference.entry)
    of_entry = [
        model
        for repository in entry.repositories
        for model in _of_repository(_repository(repository, reference), environment)
    ]
    found = _first(tuple(of_entry), entry.recommended)
    return found or _ollama_twin(entry, reference, environment)


def _ollama_twin(
    entry: CatalogEntry, reference: CatalogReference, environment: Mapping[str, str] | None
) -> InstalledModel | None:
    """Return the entry as ollama has it, by ollama's own name, which says no quantization."""
    if entry.ollama_name is None or reference.quantization is not None:
        return None
    try:
        twin = parse_reference(f"ollama://{entry.ollama_name}", catalog_names=())
    except UsageError:
        return None
    return find_in_stores(twin, environment) if isinstance(twin, OllamaReference) else None


def _pulled_by_ollama(
    reference: HuggingFaceReference, environment: Mapping[str, str] | None
) -> InstalledModel | None:
    """Return a repository's model as ollama keeps it: under its host, with the label as tag."""
    if reference.file is not None or reference.revision is not None:
        return None
    tag = reference.quantization or "latest"
    named = f"ollama://hf.co/{reference.repository}:{tag}"
    try:
        twin = parse_reference(named, catalog_names=())
    except UsageError:  # a user with a dot, which no folder of ollama has
        return None
    return find_in_stores(twin, environment) if isinstance(twin, OllamaReference) else None


def _repository(repository: str, reference: CatalogReference) -> HuggingFaceReference:
    user, _, name = repository.partition("/")
    return HuggingFaceReference(
        repository_user=user, repository_name=name, quantization=reference.quantization
    )


def _of_repository(
    reference: HuggingFaceReference, environment: Mapping[str, str] | None
) -> tuple[InstalledModel, ...]:
    from moerun.store.repository_files import matching

    return matching(_of_repositories(environment), reference)


def _of_repositories(environment: Mapping[str, str] | None) -> Iterator[InstalledModel]:
    # With its listings this knows the network's doors, which a model of a store does not need.
    from moerun.store.repository_files import cached_models, lm_studio_models

    yield from cached_models(environment)
    yield from lm_studio_models(environment)


def _first(models: tuple[InstalledModel, ...], recommended: str | None) -> InstalledModel | None:
    """Return the model that is meant when several are there: the usual quantization, if it is."""
    usual = (recommended or "Q4_K_M").lower()
    ordered = sorted(models, key=lambda model: (model.label or "").lower() != usual)
    return ordered[0] if ordered else None


def _of_file(model: ModelAtHand) -> InstalledModel:
    source = Source.DEMO if model.name == DEMO else Source.FILE
    return _at(model.name, model.path, source)


def _of_path(name: str, path: Path) -> InstalledModel:
    return _at(name, path, Source.DEMO if name == DEMO else Source.FILE)


def _at(name: str, path: Path, source: Source) -> InstalledModel:
    paths = parts_of(path)
    try:
        statuses = [os.stat(part) for part in paths]
    except OSError:
        statuses = []
    return InstalledModel(
        name=name,
        source=source,
        paths=paths,
        size_bytes=sum(status.st_size for status in statuses),
        modified_at_s=max((status.st_mtime for status in statuses), default=0.0),
    )
