"""A request's body as values: read once, bounded, and asked for by name and kind.

Bodies are JSON whatever their content type says, as ollama reads them; fields that nobody asks for
are passed over. What is null is absent.

Knows: limits of size and depth, and the sentence for a field of the wrong kind.
Does not know: which fields an endpoint has.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moerun.server.refusals import Refused

MOST_BODY_BYTES: Final = 64 << 20
_DEEPEST: Final = 100
_LARGEST_INTEGER: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """An object of a body; `where` names it in sentences."""

    values: Mapping[str, Any]
    where: str = ""

    def has(self, name: str) -> bool:
        """Whether a field is given and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def needed_text(self, name: str) -> str:
        """Return a text that must be there and not be empty."""
        value = self.text(name)
        if not value:
            raise Refused(f"{self.where}{name} is required")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str) -> float | None:
        """Return a number, None when it is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        if abs(value) > 1e300:
            raise self.wrong(name, "a number of reasonable size")
        return float(value)

    def integer(self, name: str) -> int | None:
        """Return a whole number, None when it is absent; 4096.0 is one, as JavaScript sends it."""
        value = self.number(name)
        if value is None:
            return None
        if value != int(value) or abs(value) > _LARGEST_INTEGER:
            raise self.wrong(name, "a whole number")
        return int(value)

    def objects(self, name: str) -> "tuple[Fields, ...]":
        """Return a list of objects."""
        found = self.items(name)
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                raise self.wrong(f"{name}[{index}]", "an object")
        return tuple(
            Fields(values=item, where=f"{self.where}{name}[{index}].")
            for index, item in enumerate(found)
        )

    def child(self, name: str) -> "Fields":
        """Return an object; an absent one is empty."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(values=value, where=f"{self.where}{name}.")

    def items(self, name: str) -> tuple[Any, ...]:
        """Return a list."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts; one text stands for itself."""
        value = self.values.get(name)
        if isinstance(value, str):
            return (value,)
        found = self.items(name)
        if not all(isinstance(item, str) for item in found):
            raise self.wrong(name, "a text, or a list of texts")
        return found

    def wrong(self, name: str, wanted: str) -> Refused:
        """Return the refusal of a field that is not what it should be."""
        return Refused(f"{self.where}{name} must be {wanted}")


def parse_body(body: bytes) -> Fields:
    """Return a body's object; Refused with a sentence when it is none."""
    if not body.strip():
        raise Refused("missing request body")
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also what is no UTF-8, and integers of too many digits
        raise Refused(f"the request body is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refused("the request body is not a JSON object")
    if _depth_exceeds(value, _DEEPEST):
        raise _too_deep()
    if b"\\u" in body:  # halves of surrogate pairs, which no UTF-8 can hold
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return Fields(values=value)


def _too_deep() -> Refused:
    return Refused(f"the request body is nested more than {_DEEPEST} levels deep")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = [each for each in inner if isinstance(each, dict | list)]
        if not level:
            return False
    return True
