"""Frozen values to plain JSON data and back.

Knows: dataclasses, enums, tuples, frozensets, optional and scalar fields.
Does not know: which documents exist, or their schema numbers.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

Value = TypeVar("Value")

_SCALARS = (int, bool, str, float)


def to_plain(value: object) -> Any:
    """Return `value` as JSON-ready data; keys of a dataclass are its field names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        # Long tuples are of numbers: the uses of each expert of each layer.
        return [item if type(item) in _SCALARS else to_plain(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(kind: type[Value], data: object) -> Value:
    """Build a `kind` from what `to_plain` gave, checking every type on the way.

    Unknown keys and missing ones without a default raise ValueError with the path of the field.
    """
    return cast(Value, _build(kind, data, "$"))


def _build(kind: Any, data: object, path: str) -> object:
    if isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    if kind is Any or kind is object:
        return data
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _build_union(typing.get_args(kind), data, path)
    if origin in (tuple, frozenset):
        return _build_sequence(origin, typing.get_args(kind), data, path)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, data, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise ValueError(f"{path}: a number is too large") from None
    if (
        isinstance(kind, type)
        and isinstance(data, kind)
        and isinstance(data, bool) == (kind is bool)
    ):
        return data
    raise ValueError(f"{path}: expected {getattr(kind, '__name__', kind)}, got {data!r:.60}")


def _build_union(kinds: tuple[Any, ...], data: object, path: str) -> object:
    if data is None and type(None) in kinds:
        return None
    failure: ValueError | None = None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _build(kind, data, path)
        except ValueError as error:
            failure = error
    raise failure or ValueError(f"{path}: got {data!r:.60}")


def _build_sequence(origin: Any, kinds: tuple[Any, ...], data: object, path: str) -> object:
    if not isinstance(data, list | tuple):
        raise ValueError(f"{path}: expected a list, got {data!r:.60}")
    is_uniform = origin is frozenset or kinds[-1] is Ellipsis
    if is_uniform and kinds[0] in _SCALARS and all(type(item) is kinds[0] for item in data):
        return origin(data)
    if origin is tuple and not (len(kinds) == 2 and kinds[1] is Ellipsis):
        if len(data) != len(kinds):
            raise ValueError(f"{path}: expected {len(kinds)} items, got {len(data)}")
        return tuple(
            _build(kind, item, f"{path}[{index}]")
            for index, (kind, item) in enumerate(zip(kinds, data, strict=True))
        )
    return origin(_build(kinds[0], item, f"{path}[{index}]") for index, item in enumerate(data))


def _build_dataclass(kind: type, data: object, path: str) -> object:
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: expected an object, got {data!r:.60}")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise ValueError(f"{path}: unknown field '{unknown[0]}'")
    values = {name: _build(hints[name], item, f"{path}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
