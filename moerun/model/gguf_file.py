"""The header of one GGUF file, walked over a memory map; tensor data is never read.

A header is untrusted input: every length is compared with the bytes that are left before it is
used, nothing is allocated from a number in the file, and long arrays are stepped over.

Knows: GGUF versions 2 and 3 (little-endian), value types, the layout rules of the engine's own
reader (ggml/src/gguf.cpp @ llama-cpp-python 0.3.36, checked by tests/test_gguf_header.py).
Does not know: what keys or tensors mean, or how files are split.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from moerun.errors import ModelNotFound, NotGguf, UnsupportedModel
from moerun.model.encodings import ENCODINGS, REMOVED_ENCODINGS
from moerun.model.gguf_values import (
    FORMATS,
    LENGTH,
    ArrayValue,
    GgufFile,
    Scalar,
    TensorEntry,
    Value,
    ValueType,
    decode_texts,
    shown,
)
from moerun.units import format_gib

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT_BYTES: Final = 32
MAX_ALIGNMENT_BYTES: Final = 1 << 20
MAX_HEADER_BYTES: Final = 1 << 28  # a vocabulary of 256,000 takes some 15 MB
MAX_TEXT_BYTES: Final = 1 << 22  # longer ones are located as bytes; chat templates have 1 to 100 kB
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 1_000_000
MAX_KEY_BYTES: Final = 65_535
MAX_TENSOR_NAME_BYTES: Final = 63  # GGML_MAX_NAME is 64 with its closing zero
SHORT_ARRAY_ITEMS: Final = 1_024  # decoded at once; per-layer arrays have at most 512 items
SMALLEST_KEY_BYTES: Final = 8 + 1 + 4 + 1
SMALLEST_TENSOR_BYTES: Final = 8 + 1 + 4 + 8 + 4 + 8


def read_file(path: str | os.PathLike[str], *, file_index: int = 0) -> GgufFile:
    """Read the header of one file; raises ModelNotFound, NotGguf or UnsupportedModel."""
    place = Path(path)
    name = shown(place.name)
    try:
        if place.is_dir():
            raise ModelNotFound(_directory_sentence(place))
        if place.exists() and not place.is_file():
            # opening a pipe would wait for someone to write to it
            raise ModelNotFound(f"{shown(str(place))} is no file; name a GGUF file")
        with open(place, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < 24:
                raise NotGguf(
                    f"{name} has {size_bytes} bytes, and the shortest GGUF has 24; "
                    "download the model again"
                )
            with mmap.mmap(
                file.fileno(), min(size_bytes, MAX_HEADER_BYTES), access=mmap.ACCESS_READ
            ) as view:
                walker = _Walker(
                    view=view, path=str(place), size_bytes=size_bytes, file_index=file_index
                )
                return walker.read()
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"there is no file {shown(str(place))}; check the path, or name a model that "
            "`moerun list` shows"
        ) from error
    except (OSError, ValueError, OverflowError) as error:
        # ValueError: a path with a zero byte, or a file that cannot be mapped
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelNotFound(
            f"{shown(str(place))} cannot be read ({shown(reason)}); check the path and its rights"
        ) from error


class HeaderEndsEarly(NotGguf):
    """The bytes that were given end before the header does; more of the file may do."""


def read_prefix(prefix: bytes, *, path: str, size_bytes: int, file_index: int = 0) -> GgufFile:
    """Read the header of a file of which the beginning is at hand; `path` is what it is called.

    Raises HeaderEndsEarly where more of the file is needed. Long arrays cannot be iterated.
    """
    walker = _Walker(view=prefix, path=path, size_bytes=size_bytes, file_index=file_index)
    return walker.read()


def _directory_sentence(place: Path) -> str:
    found = sorted(p.name for p in place.iterdir() if p.suffix.lower() == ".gguf")
    if not found:
        return f"{shown(str(place))} is a folder without GGUF files; name a GGUF file"
    names = ", ".join(shown(name) for name in found[:3])
    return (
        f"{shown(str(place))} is a folder with {len(found)} GGUF files; name one of them: {names}"
    )


class _Walker:
    """A position in the map of one header, with checked reads."""

    def __init__(
        self, *, view: mmap.mmap | bytes, path: str, size_bytes: int, file_index: int
    ) -> None:
        self._view = view
        self._end = len(view)
        self._is_prefix = isinstance(view, bytes) and self._end < size_bytes
        self._position = 0
        self._path = path
        self._name = shown(Path(path).name)
        self._size_bytes = size_bytes
        self._file_index = file_index

    def read(self) -> GgufFile:
        version, tensor_count, key_count = self._read_preamble()
        metadata: dict[str, Value] = {}
        value_types: dict[str, ValueType] = {}
        for index in range(key_count):
            key = self._read_key(index)
            if key in metadata:
                raise self._bad(f"key '{shown(key)}' is there twice")
            value_types[key], metadata[key] = self._read_value(key)
        alignment_bytes = self._find_alignment(metadata, value_types)
        entries = [self._read_entry(index) for index in range(tensor_count)]
        data_offset_bytes = _padded(self._position, alignment_bytes)
        return GgufFile(
            path=self._path,
            size_bytes=self._size_bytes,
            version=version,
            alignment_bytes=alignment_bytes,
            data_offset_bytes=data_offset_bytes,
            metadata=MappingProxyType(metadata),
            value_types=MappingProxyType(value_types),
            tensors=self._locate(entries, data_offset_bytes, alignment_bytes),
        )

    def _read_preamble(self) -> tuple[int, int, int]:
        magic = self._view[:4]
        if magic != MAGIC:
            raise NotGguf(
                f"{self._name} begins with {magic!r} and not with {MAGIC!r}, so it is not a GGUF "
                "file; convert the model to GGUF or download a GGUF of it"
            )
        self._position = 4
        version = self._unsigned(4)
        if version & 0xFFFF == 0:
            raise NotGguf(
                f"{self._name} is a big-endian GGUF, and only little-endian files are read; "
                "download or convert a little-endian one"
            )
        if version not in (2, 3):
            raise NotGguf(
                f"{self._name} is GGUF version {version}, and versions 2 and 3 are read; "
                "download a current file of the model"
            )
        tensor_count, key_count = self._unsigned(8), self._unsigned(8)
        self._check_count("tensors", tensor_count, MAX_TENSORS, SMALLEST_TENSOR_BYTES)
        self._check_count("keys", key_count, MAX_KEYS, SMALLEST_KEY_BYTES)
        return version, tensor_count, key_count

    def _check_count(self, what: str, count: int, most: int, smallest_bytes: int) -> None:
        if count > most:
            raise self._bad(f"it claims {count:,} {what}, and at most {most:,} are read")
        left_bytes = self._end - self._position
        if count * smallest_bytes > left_bytes:
            raise self._short(f"it claims {count:,} {what} in the {left_bytes:,} bytes that follow")

    def _read_key(self, index: int) -> str:
        size = self._length(f"the name of key {index}", MAX_KEY_BYTES)
        if size == 0:
            raise self._bad(f"key {index} has no name")
        return self._text(size, f"the name of key {index}")

    def _read_value(self, key: str) -> tuple[ValueType, Value]:
        kind = self._value_type(key)
        if kind is ValueType.ARRAY:
            return kind, self._read_array(key)
        if kind is ValueType.STRING:
            size = self._length(f"key '{shown(key)}'", self._size_bytes)
            if size > MAX_TEXT_BYTES:
                return kind, self._located(ValueType.UINT8, size, size)
            return kind, self._take(size).decode("utf-8", "replace")
        return kind, self._scalar(kind)

    def _read_array(self, key: str) -> ArrayValue:
        kind = self._value_type(key)
        length = self._unsigned(8)
        left_bytes = self._end - self._position
        if kind is ValueType.ARRAY:
            raise self._bad(f"key '{shown(key)}' is an array of arrays, which the engine refuses")
        item_bytes = 8 if kind is ValueType.STRING else FORMATS[kind].size
        if length * item_bytes > left_bytes:
            raise self._short(
                f"key '{shown(key)}' claims {length:,} items in the {left_bytes:,} bytes that "
                "follow"
            )
        start = self._position
        if kind is ValueType.STRING:
            self._skip_texts(key, length)
        else:
            self._position += length * item_bytes
        span_bytes = self._position - start
        self._position = start
        return self._located(kind, length, span_bytes)

    def _located(self, kind: ValueType, length: int, span_bytes: int) -> ArrayValue:
        """Step over an array and return where it lies, with its items when they are few."""
        start = self._position
        self._position += span_bytes
        values = None
        if length <= SHORT_ARRAY_ITEMS and span_bytes <= MAX_TEXT_BYTES:
            values = self._decode_items(kind, length, start)
        return ArrayValue(
            item_type=kind,
            length=length,
            path=self._path,
            offset_bytes=start,
            span_bytes=span_bytes,
            values=values,
        )

    def _skip_texts(self, key: str, count: int) -> None:
        # the one hot loop: a vocabulary has some 150,000 tokens and as many merges
        view, unpack, position = self._view, LENGTH.unpack_from, self._position
        try:
            for _ in range(count):
                position += 8 + unpack(view, position)[0]
        except (struct.error, OverflowError):
            position = self._end + 1
        if position > self._end:
            raise self._short(f"the texts of key '{shown(key)}' run past the end of the file")
        self._position = position

    def _decode_items(self, kind: ValueType, length: int, start: int) -> tuple[Scalar, ...]:
        data = self._view[start : self._position]
        if kind is ValueType.STRING:
            return tuple(decode_texts(data, length))
        return tuple(value for (value,) in FORMATS[kind].iter_unpack(data))

    def _find_alignment(
        self, metadata: Mapping[str, Value], value_types: Mapping[str, ValueType]
    ) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or (
            value_types.get("general.alignment", ValueType.UINT32) is not ValueType.UINT32
        ):
            raise self._bad("general.alignment is not an unsigned 32-bit number")
        if alignment == 0 or alignment & (alignment - 1) or alignment > MAX_ALIGNMENT_BYTES:
            raise self._bad(
                f"general.alignment is {alignment}, and only powers of two up to "
                f"{MAX_ALIGNMENT_BYTES:,} are sound"
            )
        if alignment < DEFAULT_ALIGNMENT_BYTES:
            # ggml_backend_cpu_buffer_from_ptr aborts on less - ggml/src/ggml-backend.cpp @ 0.3.36
            raise UnsupportedModel(
                f"{self._name} aligns its tensors to {alignment} bytes, and the engine needs "
                f"{DEFAULT_ALIGNMENT_BYTES}; convert the model again with the default alignment"
            )
        return alignment

    def _read_entry(self, index: int) -> TensorEntry:
        size = self._length(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        if size == 0:
            raise self._bad(f"tensor {index} has no name")
        name = self._text(size, f"the name of tensor {index}")
        dimensions = self._unsigned(4)
        if not 1 <= dimensions <= 4:
            raise self._bad(f"tensor '{shown(name)}' has {dimensions} dimensions, not 1 to 4")
        shape = tuple(self._unsigned(8) for _ in range(dimensions))
        if 0 in shape or max(shape) >= 1 << 63:
            raise self._bad(f"tensor '{shown(name)}' has the impossible shape {shape}")
        kind = self._unsigned(4)
        offset_bytes = self._unsigned(8)
        encoding = ENCODINGS.get(kind)
        if encoding is None:
            raise self._unknown_encoding(name, kind)
        if shape[0] % encoding.block_values:
            raise self._bad(
                f"rows of tensor '{shown(name)}' have {shape[0]} values, not whole blocks of "
                f"{encoding.block_values} ({encoding.name})"
            )
        values = 1
        for extent in shape:
            values *= extent
        return TensorEntry(
            name=name,
            shape=shape,
            encoding=encoding.name,
            size_bytes=values // encoding.block_values * encoding.block_bytes,
            offset_bytes=offset_bytes,
            file_index=self._file_index,
        )

    def _unknown_encoding(self, name: str, kind: int) -> UnsupportedModel | NotGguf:
        removed = REMOVED_ENCODINGS.get(kind)
        if removed is not None:
            return UnsupportedModel(
                f"tensor '{shown(name)}' of {self._name} is {removed}, which llama.cpp no longer "
                "reads; download a Q4_0 or IQ4_NL file of the model"
            )
        return NotGguf(
            f"tensor '{shown(name)}' of {self._name} has type number {kind}, which this engine "
            "does not know; the file is damaged or newer than this moerun"
        )

    def _locate(
        self, entries: list[TensorEntry], data_offset_bytes: int, alignment_bytes: int
    ) -> tuple[TensorEntry, ...]:
        """Turn offsets within the data into offsets within the file, and prove them sound."""
        seen: set[str] = set()
        located: list[TensorEntry] = []
        expected = needed_bytes = 0
        for entry in entries:
            if entry.name in seen:
                raise self._bad(f"tensor '{shown(entry.name)}' is there twice")
            seen.add(entry.name)
            if entry.offset_bytes != expected:
                raise self._bad(
                    f"tensor '{shown(entry.name)}' is said to lie at {entry.offset_bytes:,}, and "
                    f"the tensors before it end at {expected:,}"
                )
            needed_bytes = data_offset_bytes + expected + entry.size_bytes
            expected += _padded(entry.size_bytes, alignment_bytes)
            located.append(
                TensorEntry(
                    name=entry.name,
                    shape=entry.shape,
                    encoding=entry.encoding,
                    size_bytes=entry.size_bytes,
                    offset_bytes=data_offset_bytes + entry.offset_bytes,
                    file_index=entry.file_index,
                )
            )
        if needed_bytes > self._size_bytes:
            raise NotGguf(
                f"{self._name} is truncated: {self._size_bytes:,} bytes are present and "
                f"{needed_bytes:,} are needed ({format_gib(needed_bytes - self._size_bytes)} are "
                "missing); download it again"
            )
        return tuple(located)

    def _value_type(self, key: str) -> ValueType:
        number = self._unsigned(4)
        try:
            return ValueType(number)
        except ValueError:
            raise self._bad(f"key '{shown(key)}' has value type {number}, not 0 to 12") from None

    def _scalar(self, kind: ValueType) -> Scalar:
        layout = FORMATS[kind]
        (value,) = layout.unpack(self._take(layout.size))
        result: Scalar = value
        return result

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _length(self, what: str, most: int) -> int:
        size = self._unsigned(8)
        left_bytes = self._end - self._position
        if size > min(most, left_bytes):
            refuse = self._bad if size > most else self._short
            raise refuse(
                f"{what} claims {size:,} bytes, where at most {min(most, left_bytes):,} can be"
            )
        return size

    def _text(self, size: int, what: str) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(f"{what} is not UTF-8") from None

    def _take(self, size: int) -> bytes:
        start, stop = self._position, self._position + size
        if stop > self._end:
            kind = HeaderEndsEarly if self._is_prefix else NotGguf
            raise kind(
                f"{self._name} is truncated: {self._size_bytes:,} bytes are present and its header "
                "is longer; download it again"
            )
        self._position = stop
        return self._view[start:stop]

    def _short(self, what: str) -> NotGguf:
        """Return what a length means that goes beyond the bytes at hand."""
        if self._is_prefix:
            return HeaderEndsEarly(f"more than {self._end:,} bytes of {self._name} are needed")
        return self._bad(what)

    def _bad(self, what: str) -> NotGguf:
        return NotGguf(f"{self._name} is damaged: {what}; download it again")


def _padded(size_bytes: int, alignment_bytes: int) -> int:
    return -(-size_bytes // alignment_bytes) * alignment_bytes
