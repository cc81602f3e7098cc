"""Real models as headers: shapes and encodings of published files, without their weights.

`real_model(name)` is what moerun reads from such a file; `write_sparse_gguf(path, name)` writes
one of true size whose data are holes (142 GiB take some 5 MB of disk).

Knows: the fixtures in tests/fixtures/models.
Does not know: how they were made, or the engine.
"""

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from moerun.model.description import Model
from moerun.model.encodings import FILE_TYPES
from moerun.model.gguf_header import read_model
from tests.model_keys import U16, KeyValue
from tests.sparse_gguf import TensorShape, write_sparse

FOLDER = Path(__file__).parent / "fixtures" / "models"
REAL_MODELS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def real_model(name: str) -> Model:
    """Return the model of a fixture, as read from its header; its path is that of no file."""
    with tempfile.TemporaryDirectory() as folder:
        return read_model(write_sparse_gguf(Path(folder) / f"{name}.gguf", name, vocabulary=8))


def write_sparse_gguf(
    path: Path, name: str, *, shards: int = 1, vocabulary: int | None = None
) -> Path:
    """Write a file (or parts) of true size with holes for data; return what the engine is given.

    With several `shards` the path is that of the whole, without the ending that parts have.
    `vocabulary` writes fewer tokens than the model has, for headers that are quick to read.
    """
    spec = fixture(name)
    tensors = list(tensor_rows(spec))
    keys = file_keys(spec, vocabulary)
    if shards == 1:
        return write_sparse(path, keys, tensors)
    paths = [
        path.with_name(f"{path.stem}-{part + 1:05d}-of-{shards:05d}.gguf") for part in range(shards)
    ]
    share = -(-len(tensors) // shards)
    for part, place in enumerate(paths):
        split: dict[str, KeyValue] = {
            "split.no": U16(part),
            "split.count": U16(shards),
            "split.tensors.count": len(tensors),
        }
        own = keys if part == 0 else {}
        write_sparse(place, {**own, **split}, tensors[part * share : (part + 1) * share])
    return paths[0]


def fixture(name: str) -> dict[str, Any]:
    """Return the data of a fixture."""
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def file_keys(spec: dict[str, Any], vocabulary: int | None = None) -> dict[str, KeyValue]:
    """Return the keys of the file, a vocabulary of invented tokens included."""
    architecture = spec["architecture"]
    numbers = {label: number for number, label in FILE_TYPES.items()}
    keys: dict[str, KeyValue] = {
        "general.architecture": architecture,
        "general.name": spec["name"],
        "general.file_type": numbers[spec["quantization"]],
    }
    keys |= {f"{architecture}.{key}": value for key, value in spec["keys"].items()}
    count = vocabulary or spec["vocabulary"]
    return keys | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [f"token{number}" for number in range(count)],
        "tokenizer.ggml.token_type": [1] * count,
        "tokenizer.ggml.merges": [f"a b{number}" for number in range(count)],
    }


def tensor_rows(spec: dict[str, Any]) -> Iterator[TensorShape]:
    """Yield every tensor: shared ones, then layer by layer."""
    for name, shape, encoding in spec["shared"]:
        yield name, tuple(shape), encoding
    by_layer: dict[int, list[TensorShape]] = {}
    for name, shape, encoding, spans in spec["blocks"]:
        for layer in _expand(spans):
            row = (name.replace("#", str(layer)), tuple(shape), encoding)
            by_layer.setdefault(layer, []).append(row)
    for layer in sorted(by_layer):
        yield from by_layer[layer]


def _expand(spans: str) -> Iterator[int]:
    for span in spans.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
