"""An entry of the catalogue as a `Model`, as if a file of it had been read.

The tensors come from the entry's numbers, their encodings from the quantizer's rules; the header
that they would be read from is put together here, so that the same code gives them roles, state
and checks. What a vocabulary takes in a file is assumed by its number of tokens.

Knows: how an entry becomes a header, and the size of the file that it would have.
Does not know: which entries there are, files on disk, or plans.
"""

from dataclasses import replace
from functools import cache
from typing import Final

from moerun.errors import UsageError
from moerun.model.assembly import assemble
from moerun.model.catalog import CatalogEntry, catalog_entry
from moerun.model.catalog_tensors import KeyItem, Shape, sketch_tensors
from moerun.model.description import Model
from moerun.model.encodings import FILE_TYPES, row_bytes
from moerun.model.gguf_values import ArrayValue, GgufFile, TensorEntry, Value, ValueType
from moerun.model.mixtures import MixtureFacts, TensorSketch, encodings_of, file_type_of

_ALIGNMENT_BYTES: Final = 32  # general.alignment, where a file does not say another
# Text, type and merges of one token: 5.9 MB of header stand before the tensors of Qwen3's files,
# with 151,936 tokens. It is a thousandth of any file here at most.
_HEADER_BYTES_PER_TOKEN: Final = 39
_NUMBER_OF: Final = {label: number for number, label in FILE_TYPES.items()}


def catalog_model(name: str, quantization: str | None = None) -> Model:
    """Return the model of an entry; UsageError lists its quantizations when it has no such one."""
    entry = catalog_entry(name)
    return derived_model(entry.name, quantization_of(entry, quantization))


def quantization_of(entry: CatalogEntry, wanted: str | None) -> str:
    """Return the entry's spelling of a quantization, the recommended one for None."""
    if wanted is None:
        return entry.recommended
    for label in entry.quantizations:
        if label.lower() == wanted.lower():
            return label
    raise UsageError(
        f"The catalogue does not know {entry.name} in {wanted[:40]}.",
        hint=f"it knows {', '.join(entry.quantizations)}; other files are planned by the name of "
        f"their repository, such as hf.co/{entry.repositories[0]}:{wanted[:40]}",
    )


@cache
def derived_model(name: str, quantization: str) -> Model:
    """Return the model that the file of a known quantization would hold."""
    entry = catalog_entry(name)
    file = _header(entry, quantization)
    model = assemble((file,))
    return replace(model, name=entry.title, quantization=quantization)


@cache
def derived_bytes(name: str, quantization: str) -> int:
    """Return the size of the file of a known quantization, without deriving the whole model."""
    shape = catalog_entry(name).shape
    sketches = _sketches(name)
    encodings = encodings_of(sketches, quantization, _facts(shape))
    header_bytes = _aligned(_HEADER_BYTES_PER_TOKEN * shape.vocabulary_size)
    pairs = zip(sketches, encodings, strict=True)
    return header_bytes + sum(_aligned(_size_bytes(sketch, kind)) for sketch, kind in pairs)


def _header(entry: CatalogEntry, quantization: str) -> GgufFile:
    shape = entry.shape
    sketches = _sketches(entry.name)
    encodings = encodings_of(sketches, quantization, _facts(shape))
    offset = data_offset = _aligned(_HEADER_BYTES_PER_TOKEN * shape.vocabulary_size)
    tensors: list[TensorEntry] = []
    for sketch, encoding in zip(sketches, encodings, strict=True):
        size_bytes = _size_bytes(sketch, encoding)
        tensors.append(
            TensorEntry(
                name=sketch.name,
                shape=sketch.shape,
                encoding=encoding,
                size_bytes=size_bytes,
                offset_bytes=offset,
                file_index=0,
            )
        )
        offset = _aligned(offset + size_bytes)
    metadata, types = _metadata(entry, quantization)
    return GgufFile(
        path=f"{entry.name}:{quantization}",
        size_bytes=offset,
        version=3,
        alignment_bytes=_ALIGNMENT_BYTES,
        data_offset_bytes=data_offset,
        metadata=metadata,
        value_types=types,
        tensors=tuple(tensors),
    )


@cache
def _sketches(name: str) -> tuple[TensorSketch, ...]:
    return sketch_tensors(catalog_entry(name).shape)


def _facts(shape: Shape) -> MixtureFacts:
    kept = shape.kv_heads(0)
    return MixtureFacts(
        layer_count=shape.blocks,
        expert_count=shape.number("expert_count"),
        heads_per_kv_head=shape.heads // kept if kept else 0,
    )


def _metadata(
    entry: CatalogEntry, quantization: str
) -> tuple[dict[str, Value], dict[str, ValueType]]:
    architecture = entry.shape.architecture
    values: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": entry.title,
        "general.file_type": _NUMBER_OF[file_type_of(quantization)],
    }
    for key, item in entry.shape.keys.items():
        values[f"{architecture}.{key}"] = _value(item)
    return values, {key: _type_of(value) for key, value in values.items()}


def _value(item: KeyItem) -> Value:
    if not isinstance(item, tuple):
        return item
    return ArrayValue(
        item_type=ValueType.UINT32,
        length=len(item),
        path="",
        offset_bytes=0,
        span_bytes=4 * len(item),
        values=item,
    )


def _type_of(value: Value) -> ValueType:
    match value:
        case bool():
            return ValueType.BOOL
        case int():
            return ValueType.UINT32
        case float():
            return ValueType.FLOAT32
        case str():
            return ValueType.STRING
        case _:
            return ValueType.ARRAY


def _size_bytes(sketch: TensorSketch, encoding: str) -> int:
    rows = 1
    for extent in sketch.shape[1:]:
        rows *= extent
    return rows * row_bytes(encoding, sketch.shape[0])


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
