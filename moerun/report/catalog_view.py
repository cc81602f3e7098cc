"""What an entry of the catalogue says of itself, beside a plan that was made from it.

Knows: the words for numbers that were derived, and those that were published.
Does not know: how sizes are derived, or plans.
"""

from typing import Any

from moerun.codec import to_plain
from moerun.model.catalog import CatalogEntry, PublishedSize
from moerun.model.description import Model


def origin_sentence(entry: CatalogEntry, model: Model) -> str:
    """Return where the plan's sizes come from, and how near they are to what was published."""
    sentence = "planned from the catalogue, before any download: the size is derived"
    published = _published(entry, model)
    if published is None:
        return f"{sentence} from the model's shape and the quantizer's rules"
    difference = derived_bytes(model, published) / published.size_bytes - 1
    return f"{sentence}, {abs(difference):.1%} from the published one"


def catalog_facts(entry: CatalogEntry, model: Model) -> dict[str, Any]:
    """Return an entry as plain values; the plan's size is derived, beside any published one."""
    published = _published(entry, model)
    return {
        "name": entry.name,
        "title": entry.title,
        "quantization": model.quantization,
        "recommended": entry.recommended,
        "quantizations": list(entry.quantizations),
        "repositories": list(entry.repositories),
        "ollama_name": entry.ollama_name,
        "size_is_derived": True,
        "published_size": to_plain(published) if published else None,
        "numbers": to_plain(entry.numbers),
    }


def derived_bytes(model: Model, published: PublishedSize) -> int:
    """Return the derived size of what was published: of the file, or of its tensors."""
    if published.counts_header:
        return model.file_bytes
    return sum(tensor.size_bytes for tensor in model.tensors)


def _published(entry: CatalogEntry, model: Model) -> PublishedSize | None:
    found = (s for s in entry.published_sizes if s.quantization == model.quantization)
    return next(found, None)
