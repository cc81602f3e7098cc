"""Reading a model's keys by the engine's rules, with the sentences for what breaks them.

Belief: `get_key` wants exactly the type it names, `get_key_or_arr` one number or one for each
layer - src/llama-model-loader.cpp @ llama-cpp-python 0.3.36 - checked by
tests/test_hyperparameters.py.

Knows: key spelling, types, lengths.
Does not know: what a value means for the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moerun.errors import UnsupportedModel
from moerun.model.gguf_values import ArrayValue, GgufFile, Value, ValueType, shown

_WHOLE = frozenset({ValueType.UINT32, ValueType.INT32, ValueType.BOOL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one architecture in the first file of a model."""

    label: str
    architecture: str
    metadata: Mapping[str, Value]
    value_types: Mapping[str, ValueType]

    @classmethod
    def of(cls, file: GgufFile, *, label: str, architecture: str) -> "Keys":
        """Return the keys of a file."""
        return cls(
            label=label,
            architecture=architecture,
            metadata=file.metadata,
            value_types=file.value_types,
        )

    def has(self, name: str) -> bool:
        """Whether the architecture's key is there."""
        return self._full(name) in self.metadata

    def required(self, name: str) -> int:
        """Return a whole number that the engine insists on."""
        if not self.has(name):
            raise self.refusal(f"has no {self._full(name)}, which the engine needs")
        return self.optional(name, 0)

    def optional(self, name: str, default: int) -> int:
        """Return a whole number, or `default` when the key is absent."""
        key = self._full(name)
        value = self.metadata.get(key, default)
        kind = self.value_types.get(key, ValueType.UINT32)
        if not isinstance(value, int) or kind is not ValueType.UINT32:
            raise self.refusal(
                f"has {key} as {kind.name.lower()}, and the engine reads one uint32 there"
            )
        return int(value)

    def per_layer(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return one number for each layer of `default`: an array, one number for all, or it."""
        key = self._full(name)
        value = self.metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, ArrayValue):
            return (self.optional(name, 0),) * len(default)
        if value.length != len(default):
            raise self.refusal(
                f"has {value.length} values in {key}, and {len(default)} layers that need one each"
            )
        return self._whole_numbers(key, value)

    def flags(self, name: str, count: int) -> tuple[bool, ...] | None:
        """Return `count` flags of an array key, padded with False; None when it is no array."""
        key = self._full(name)
        value = self.metadata.get(key)
        if not isinstance(value, ArrayValue):
            return None
        numbers = self._whole_numbers(key, value)[:count]
        return tuple(bool(n) for n in numbers) + (False,) * (count - len(numbers))

    def one_of(self, name: str, known: frozenset[str]) -> None:
        """Refuse a text key with a value that the engine does not know."""
        value = self.metadata.get(self._full(name))
        if value is not None and (not isinstance(value, str) or value not in known):
            raise self.refusal(
                f"has {self._full(name)} = {shown(str(value), 40)!r}, and the engine knows "
                f"{', '.join(sorted(known))}"
            )

    def whole_numbers(self, name: str) -> tuple[int, ...]:
        """Return the numbers of an array key; none when it is absent."""
        key = self._full(name)
        value = self.metadata.get(key)
        return self._whole_numbers(key, value) if isinstance(value, ArrayValue) else ()

    def refusal(self, what: str) -> UnsupportedModel:
        """Return the error for a model that the engine would refuse or crash on."""
        return UnsupportedModel(
            f"{self.label} ({shown(self.architecture, 40)}) {what}; "
            "download another file of the model"
        )

    def _whole_numbers(self, key: str, value: ArrayValue) -> tuple[int, ...]:
        items = value.values
        if items is None or value.item_type not in _WHOLE:
            raise self.refusal(
                f"has {value.length:,} items of {value.item_type.name.lower()} in {key}, and the "
                "engine reads at most 512 whole numbers of 32 bits"
            )
        numbers = tuple(int(item) for item in items if not isinstance(item, str))
        if any(number < 0 for number in numbers):
            raise self.refusal(f"has a negative number in {key}")
        return numbers

    def _full(self, name: str) -> str:
        return f"{self.architecture}.{name}"
