"""Writing GGUF files of true size whose tensor data are holes, and headers byte by byte.

Knows: the layout of version 3.
Does not know: models.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from moerun.model.encodings import ENCODINGS, row_bytes
from tests.model_keys import U16, U64, KeyValue

ALIGNMENT_BYTES = 32
TENSOR_TYPES = {encoding.name: number for number, encoding in ENCODINGS.items()}

TensorShape = tuple[str, tuple[int, ...], str]
"""Name, shape (fastest dimension first) and encoding."""


def text_bytes(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value: object) -> bytes:
    """Return type and value as a header holds them."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case U16():
            return struct.pack("<IH", 2, value)
        case U64():
            return struct.pack("<IQ", 10, value)
        case int() if value < 0:
            return struct.pack("<Ii", 5, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text_bytes(value)
        case [str(), *_]:
            items = b"".join(text_bytes(str(item)) for item in value)
            return struct.pack("<IIQ", 9, 8, len(value)) + items
        case [bool(), *_]:
            return struct.pack(f"<IIQ{len(value)}?", 9, 7, len(value), *value)
        case [U64(), *_]:
            return struct.pack(f"<IIQ{len(value)}Q", 9, 10, len(value), *value)
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        case _:
            raise TypeError(f"no GGUF form of {value!r:.60}")


def tensor_bytes(shape: tuple[int, ...], encoding: str) -> int:
    rows = 1
    for extent in shape[1:]:
        rows *= extent
    return row_bytes(encoding, shape[0]) * rows


def padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def header_bytes(keys: Mapping[str, KeyValue], tensors: Iterable[TensorShape]) -> bytes:
    """Return a whole header, padded to where its data begin."""
    listed = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(listed), len(keys))]
    parts += [text_bytes(key) + value_bytes(value) for key, value in keys.items()]
    offset = 0
    for name, shape, encoding in listed:
        parts.append(text_bytes(name))
        parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", TENSOR_TYPES[encoding], offset))
        offset += padded(tensor_bytes(shape, encoding))
    raw = b"".join(parts)
    return raw + b"\0" * (padded(len(raw)) - len(raw))


def write_sparse(path: Path, keys: Mapping[str, KeyValue], tensors: Iterable[TensorShape]) -> Path:
    """Write a file of true size: a real header, and holes where the data would be."""
    listed = list(tensors)
    header = header_bytes(keys, listed)
    data = sum(padded(tensor_bytes(shape, encoding)) for _, shape, encoding in listed)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + data)
    return path
