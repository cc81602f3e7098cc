"""The catalogue: mixture-of-experts models that people run, known before anything is downloaded.

An entry holds the numbers of a model's configuration, where its files are published, and which
quantizations there are; numbers and published sizes say where they were read, and when. One file
of moerun/data/catalog is one entry, so that a name costs the reading of one small file.

Knows: what an entry says.
Does not know: tensors and sizes (moerun.model.catalog_model derives them), or what is on disk.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from moerun.errors import ModelNotFound
from moerun.model.catalog_tensors import KeyItem, Shape

FOLDER: Final = Path(__file__).parents[1] / "data" / "catalog"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where something was read, and on which day."""

    text: str
    read_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSize:
    """What somebody published of one quantization: the size of its files, or of its tensors."""

    quantization: str
    size_bytes: int
    counts_header: bool
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model: its shape, its names elsewhere, its quantizations, and where it all was read."""

    name: str
    title: str
    shape: Shape
    parameter_count_billions: float | None  # as published, where it was
    repositories: tuple[str, ...]  # of Hugging Face, the first one is pulled from
    ollama_name: str | None
    quantizations: tuple[str, ...]  # the largest first
    recommended: str
    numbers: Source
    published_sizes: tuple[PublishedSize, ...]


@cache
def catalog_names() -> tuple[str, ...]:
    """Return the names of all entries, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def catalog_entry(name: str) -> CatalogEntry:
    """Return an entry by its name in any case; ModelNotFound when there is none."""
    wanted = name.lower()
    if wanted not in catalog_names():
        raise ModelNotFound(
            f"The catalogue has no '{name[:80]}'.", hint="`moerun plan` lists its entries"
        )
    return _read(json.loads((FOLDER / f"{wanted}.json").read_text(encoding="utf-8")), wanted)


def _read(data: dict[str, Any], name: str) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        title=data["title"],
        shape=Shape(
            architecture=data["architecture"],
            keys={key: _item(value) for key, value in data["keys"].items()},
            vocabulary_size=data["vocabulary_size"],
            is_tied=data.get("is_tied", False),
            extras=frozenset(data.get("extras", ())),
        ),
        parameter_count_billions=data.get("parameter_count_billions"),
        repositories=tuple(data["repositories"]),
        ollama_name=data.get("ollama_name"),
        quantizations=tuple(data["quantizations"]),
        recommended=data["recommended"],
        numbers=_source(data["numbers"]),
        published_sizes=tuple(
            PublishedSize(
                quantization=size["quantization"],
                size_bytes=size["size_bytes"],
                counts_header=size["counts"] == "file",
                source=_source(size),
            )
            for size in data.get("published_sizes", ())
        ),
    )


def _source(data: dict[str, Any]) -> Source:
    return Source(text=data["source"], read_on=data["read_on"])


def _item(value: Any) -> KeyItem:
    if isinstance(value, list):
        return tuple(int(item) for item in value)
    if isinstance(value, int | float | str):
        return value
    raise TypeError(f"{value!r} is no value of a key")
