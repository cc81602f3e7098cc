"""The values that a GGUF header holds.

Knows: value types, arrays that are decoded only when iterated, tensor entries, one file's header.
Does not know: how a header is walked, or what its keys and tensors mean.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from moerun.errors import ModelNotFound, NotGguf


class ValueType(IntEnum):
    """The types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FORMATS: Final[dict[ValueType, struct.Struct]] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
LENGTH: Final = FORMATS[ValueType.UINT64]

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayValue:
    """An array of the metadata: short ones are decoded, long ones are only located.

    `values` is None for long arrays; iterate to decode those from the file, item by item.
    """

    item_type: ValueType
    length: int
    path: str
    offset_bytes: int
    span_bytes: int
    values: tuple[Scalar, ...] | None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Scalar]:
        if self.values is not None:
            yield from self.values
            return
        data = self._read_span()
        if self.item_type is ValueType.STRING:
            yield from decode_texts(data, self.length)
        else:
            for (value,) in FORMATS[self.item_type].iter_unpack(data):
                yield value

    def _read_span(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset_bytes)
                data = file.read(self.span_bytes)
        except OSError as error:
            raise ModelNotFound(
                f"{shown(self.path)} can no longer be read ({error.strerror}); load the model again"
            ) from error
        if len(data) != self.span_bytes:
            raise NotGguf(f"{shown(self.path)} became shorter while it was read; download it again")
        return data


def decode_texts(data: bytes, count: int) -> Iterator[str]:
    """Yield `count` texts that each follow their length; NotGguf when they do not fit."""
    position = 0
    for _ in range(count):
        if position + LENGTH.size > len(data):
            raise NotGguf("a list of texts ends early; download the model again")
        (size,) = LENGTH.unpack_from(data, position)
        position += LENGTH.size
        yield data[position : position + size].decode("utf-8", "replace")
        position += size


Value = Scalar | ArrayValue


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor as the header lists it; `offset_bytes` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    size_bytes: int
    offset_bytes: int
    file_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """The header of one file."""

    path: str
    size_bytes: int
    version: int
    alignment_bytes: int
    data_offset_bytes: int
    metadata: Mapping[str, Value]
    value_types: Mapping[str, ValueType]
    tensors: tuple[TensorEntry, ...]


def shown(text: str, limit: int = 200) -> str:
    """Return text from outside as one printable line, cut at `limit` characters."""
    line = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return line if len(line) <= limit else line[:limit] + "..."
