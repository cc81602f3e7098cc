"""From a JSON schema to a grammar that only valid documents pass.

What a schema leaves open is narrowed rather than widened: properties come in the order in which
the schema names them, none is added that it does not name, and a pattern is held to from end to
end. Whatever the grammar lets through is valid. A keyword that bounds values in a way that no
grammar of this kind can follow is refused by name.

Knows: the keywords that people use, and GBNF.
Does not know: the engine, models, or where a schema comes from.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from moerun.engine.alternatives import one_of
from moerun.engine.number_ranges import integers_between, numbers_between
from moerun.engine.text_patterns import pattern_rule, quoted
from moerun.errors import UsageError

_MOST_RULES: Final = 4_000
_MOST_DEPTH: Final = 64
_MOST_CHARACTERS: Final = 500_000
_MOST_LITERALS: Final = 4_000
_MOST_LITERAL_CHARACTERS: Final = 100_000
# The engine's own limit on counts — src/llama-grammar.cpp:13 @ 0.3.36
_MOST_REPEATS: Final = 2_000
_BASE: Final[Mapping[str, str]] = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ws ":" ws value',
    "object": '"{" ws (pair (ws "," ws pair)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}
_FORMATS: Final[Mapping[str, str]] = {
    "date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    "time": r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[-+]([01]\d|2[0-3]):[0-5]\d)",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,4}",
    "ipv4": r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
    "hostname": r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,8}",
}
_FORMATS_TIMES: Final = f"{_FORMATS['date']}T{_FORMATS['time']}"
_REFUSED: Final = (
    "not", "if", "then", "else", "patternProperties", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "contains", "minContains", "maxContains", "multipleOf",
    "minProperties", "maxProperties", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef",
)  # fmt: skip
# What says nothing about values where it stands.
_ANNOTATIONS: Final = (
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs",
    "definitions", "deprecated", "readOnly", "writeOnly",
)  # fmt: skip
_OF_OBJECTS: Final = ("properties", "required", "additionalProperties")
_OF_ARRAYS: Final = ("items", "prefixItems", "minItems", "maxItems", "uniqueItems")
_OF_STRINGS: Final = ("pattern", "minLength", "maxLength", "format")
_OF_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

JSON_OBJECT_GRAMMAR: Final = "\n".join(
    ["root ::= object", *(f"{name} ::= {body}" for name, body in _BASE.items())]
)


def grammar_of_schema(source: str) -> str:
    """Return the grammar of a schema given as JSON; UsageError says what it cannot follow."""
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The JSON schema is no JSON ({error}).") from error
    return Compiler(schema).grammar()


def grammar_of_call(names_and_parameters: Sequence[tuple[str, str]]) -> str:
    """Return the grammar of a call of one of several tools, as a JSON object."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": json.loads(parameters)},
            "required": ["name", "arguments"],
        }
        for name, parameters in names_and_parameters
    ]
    roots = [Compiler(call, prefix=f"t{index}-") for index, call in enumerate(calls)]
    lines = [line for each in roots for line in each.rules()]
    alternatives = " | ".join(each.root for each in roots)
    base = [f"{name} ::= {body}" for name, body in _BASE.items()]
    return _bounded("\n".join([f"root ::= {alternatives}", *lines, *base]))


def _bounded(grammar: str) -> str:
    """Return a grammar that the engine reads at once, while other answers wait for it."""
    if len(grammar) > _MOST_CHARACTERS:
        raise UsageError(
            f"The JSON schema is too large: its grammar has {len(grammar):,} characters, and "
            f"{_MOST_CHARACTERS:,} can be held to; shorten names, texts or the list of tools."
        )
    return grammar


class Compiler:
    """Turns one schema into rules; references become rules of their own, so they may recur."""

    def __init__(self, schema: Any, *, prefix: str = "") -> None:
        self._schema = schema
        self._prefix = prefix
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._literals = 0
        self._literal_characters = 0
        self.root = self._add(self._compile(schema, depth=0))

    def grammar(self) -> str:
        """Return the whole grammar."""
        base = [f"{name} ::= {body}" for name, body in _BASE.items()]
        return _bounded("\n".join([f"root ::= {self.root}", *self.rules(), *base]))

    def rules(self) -> list[str]:
        """Return the rules of the schema alone."""
        return [f"{name} ::= {body}" for name, body in self._rules.items()]

    def _add(self, body: str, name: str | None = None) -> str:
        if len(self._rules) >= _MOST_RULES:
            raise UsageError(f"The JSON schema is too large: it takes over {_MOST_RULES:,} rules.")
        name = f"{self._prefix}r{len(self._rules)}" if name is None else name
        self._rules[name] = body
        return name

    def _compile(self, schema: Any, *, depth: int) -> str:
        """Return the expression of a schema."""
        if depth > _MOST_DEPTH:
            raise UsageError(f"The JSON schema is nested deeper than {_MOST_DEPTH} levels.")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise UsageError(f"A part of the JSON schema is no schema: {json.dumps(schema)[:80]}.")
        for keyword in _REFUSED:
            if keyword in schema:
                raise UsageError(
                    f"The JSON schema uses '{keyword}', which answers cannot be held to."
                )
        return self._combined(schema, depth) or self._typed(schema, depth)

    def _combined(self, schema: dict[str, Any], depth: int) -> str | None:
        """Return what references, literals and combinations give; None when there are none."""
        if "$ref" in schema:
            return self._reference(schema["$ref"], depth)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return self._one_of(_list(schema, "enum"))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = {k: v for k, v in schema.items() if k not in (keyword, *_ANNOTATIONS)}
                choices = [
                    self._compile(
                        _merged((rest, self._resolved(each))) if rest else each, depth=depth + 1
                    )
                    for each in _list(schema, keyword)
                ]
                return _any_of([self._add(choice) for choice in choices])
        if "allOf" in schema:
            rest = {k: v for k, v in schema.items() if k != "allOf"}
            parts = [self._resolved(part) for part in _list(schema, "allOf")]
            return self._compile(_merged((rest, *parts)), depth=depth + 1)
        return None

    def _one_of(self, values: list[Any]) -> str:
        """Return the literals of an enumeration; together they are bounded for the whole schema."""
        texts = {json.dumps(value, ensure_ascii=False) for value in values}
        self._literals += len(texts)
        self._literal_characters += sum(len(text) for text in texts)
        if self._literals > _MOST_LITERALS or self._literal_characters > _MOST_LITERAL_CHARACTERS:
            raise UsageError(
                f"The enumerations of the JSON schema are too large: {_MOST_LITERALS:,} values of "
                f"{_MOST_LITERAL_CHARACTERS:,} characters together can be held to."
            )
        return f"({one_of(tuple(texts), quoted)})"

    def _resolved(self, part: Any) -> Any:
        """Return what a reference that is to be merged with others points to."""
        for _ in range(_MOST_DEPTH):
            if not (isinstance(part, dict) and "$ref" in part and len(part) == 1):
                return part
            part = self._target(part["$ref"])
        raise UsageError("A $ref of the JSON schema leads in a circle.")

    def _typed(self, schema: dict[str, Any], depth: int) -> str:
        kinds = schema.get("type", _kind_by_keywords(schema))
        if kinds is None:
            return "value"
        names = kinds if isinstance(kinds, list) else [kinds]
        return _any_of([self._of_type(name, schema, depth) for name in names])

    def _of_type(self, kind: Any, schema: dict[str, Any], depth: int) -> str:
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return _number(schema, is_whole=kind == "integer")
            case "boolean" | "null":
                return str(kind)
            case _:
                raise UsageError(f"The JSON schema has the type {json.dumps(kind)[:40]}.")

    def _reference(self, pointer: Any, depth: int) -> str:
        if not isinstance(pointer, str):
            raise UsageError("A $ref of the JSON schema is no text.")
        if pointer not in self._references:
            name = f"{self._prefix}d{len(self._references)}"
            self._references[pointer] = name
            self._rules[name] = ""  # so that it may name itself
            self._add(self._compile(self._target(pointer), depth=depth + 1), name)
        return self._references[pointer]

    def _target(self, pointer: str) -> Any:
        if not pointer.startswith("#"):
            raise UsageError(f"The JSON schema points outside itself: {pointer[:80]}.")
        target = self._schema
        for step in pointer[1:].strip("/").split("/") if pointer not in ("#", "#/") else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict) and step in target:
                target = target[step]
            else:
                raise UsageError(f"The JSON schema has nothing at {pointer[:80]}.")
        return target

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise UsageError("An object of the JSON schema has odd properties.")
        properties = {**properties, **{k: {} for k in required if k not in properties}}
        if not properties:
            return self._map(schema.get("additionalProperties", True), depth)
        pairs = [
            (
                self._add(
                    f'{_literal(str(name))} ws ":" ws '
                    f"{self._add(self._compile(part, depth=depth + 1))}"
                ),
                name in required,
            )
            for name, part in properties.items()
        ]
        return self._add(f'"{{" ws {self._pairs(pairs)} ws "}}"')

    def _pairs(self, pairs: list[tuple[str, bool]]) -> str:
        """Return the pairs in their order, each optional one there or not, with its comma."""
        # `after` is what may follow once a pair is there, `first` what may when none is.
        after, first, can_be_empty = "", "", True
        for name, is_required in reversed(pairs):
            here = f"{name} {after}".strip()
            following = f'ws "," ws {here}'
            if is_required:
                first, can_be_empty = self._add(here), False
                after = self._add(following)
            else:
                first = self._add(f"{here} | {first}" if first else here)
                after = self._add(f"{following} | {after}" if after else f"({following})?")
        return f"({first})?" if can_be_empty else first

    def _map(self, values: Any, depth: int) -> str:
        if values is False:
            return '"{" ws "}"'
        if values is True or values == {}:
            return "object"
        pair = self._add(f'string ws ":" ws {self._add(self._compile(values, depth=depth + 1))}')
        return self._add(f'"{{" ws ({pair} (ws "," ws {pair})*)? ws "}}"')

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        if schema.get("uniqueItems"):
            raise UsageError("The JSON schema uses 'uniqueItems', which answers cannot be held to.")
        if "prefixItems" in schema:
            parts = [
                self._add(self._compile(part, depth=depth + 1))
                for part in _list(schema, "prefixItems")
            ]
            return self._add('"[" ws ' + ' ws "," ws '.join(parts) + ' ws "]"')
        item = self._add(self._compile(schema.get("items", True), depth=depth + 1))
        least, most = _bounds(schema, "minItems", "maxItems")
        if most == 0:
            return '"[" ws "]"'
        top = "" if most is None else str(most - 1)
        items = f'{item} (ws "," ws {item}){{{max(0, least - 1)},{top}}}'
        return self._add(f'"[" ws {items if least else f"({items})?"} ws "]"')

    def _string(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema:
            return self._add(rf'"\"" {pattern_rule(schema["pattern"])} "\""')
        form = schema.get("format")
        if form == "date-time":
            return self._add(rf'"\"" {pattern_rule(_FORMATS_TIMES)} "\""')
        if isinstance(form, str) and form in _FORMATS:
            return self._add(rf'"\"" {pattern_rule(_FORMATS[form])} "\""')
        least, most = _bounds(schema, "minLength", "maxLength")
        if least == 0 and most is None:
            return "string"
        return self._add(rf'"\"" char{{{least},{"" if most is None else most}}} "\""')


def _number(schema: dict[str, Any], *, is_whole: bool) -> str:
    """Return numbers within bounds; bounds that are no integers are narrowed to ones."""
    least, most = _lower(schema), _upper(schema)
    if least is None and most is None:
        return "integer" if is_whole else "number"
    if least is not None and most is not None and least > most:
        raise UsageError("The JSON schema leaves no whole number between its bounds.")
    return integers_between(least, most) if is_whole else numbers_between(least, most)


def _lower(schema: dict[str, Any]) -> int | None:
    found = []
    if (bound := _real(schema, "minimum")) is not None:
        found.append(math.ceil(bound))
    if (bound := _real(schema, "exclusiveMinimum")) is not None:
        found.append(math.floor(bound) + 1)
    return max(found) if found else None


def _upper(schema: dict[str, Any]) -> int | None:
    found = []
    if (bound := _real(schema, "maximum")) is not None:
        found.append(math.floor(bound))
    if (bound := _real(schema, "exclusiveMaximum")) is not None:
        found.append(math.ceil(bound) - 1)
    return min(found) if found else None


def _real(schema: dict[str, Any], keyword: str) -> float | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise UsageError(f"'{keyword}' of the JSON schema is no number of at most 15 digits.")
    return value


def _bounds(schema: dict[str, Any], lower: str, upper: str) -> tuple[int, int | None]:
    """Return counts, in the range that the engine's grammars can hold."""
    least, most = schema.get(lower, 0), schema.get(upper)
    for keyword, value in ((lower, least), (upper, most)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"'{keyword}' of the JSON schema is no count.")
    if least > _MOST_REPEATS:
        raise UsageError(
            f"'{lower}' of the JSON schema is {least:,}; at most {_MOST_REPEATS:,} can be held to."
        )
    if most is not None and most < least:
        raise UsageError(f"'{upper}' of the JSON schema is below '{lower}'.")
    return least, None if most is None else min(most, _MOST_REPEATS)


def _kind_by_keywords(schema: dict[str, Any]) -> str | None:
    for kind, keywords in (
        ("object", _OF_OBJECTS),
        ("array", _OF_ARRAYS),
        ("string", _OF_STRINGS),
        ("number", _OF_NUMBERS),
    ):
        if any(keyword in schema for keyword in keywords):
            return kind
    return None


def _merged(parts: Sequence[Any]) -> Any:
    """Return one schema for several that must all hold; UsageError where they are not alike."""
    merged: dict[str, Any] = {}
    for part in parts:
        if part is True:
            continue
        if not isinstance(part, dict):
            raise UsageError("A combination in the JSON schema has a part that is no schema.")
        for keyword, value in part.items():
            known = merged.get(keyword)
            if keyword in ("properties", "$defs", "definitions") and isinstance(known, dict):
                merged[keyword] = {**known, **value}
            elif keyword == "required" and isinstance(known, list):
                merged[keyword] = [*known, *value]
            elif keyword in _ANNOTATIONS or known is None:
                merged[keyword] = value
            elif known != value:
                raise UsageError(
                    f"The JSON schema combines different values of '{keyword}', which answers "
                    "cannot be held to."
                )
    return merged


def _list(schema: dict[str, Any], keyword: str) -> list[Any]:
    value = schema[keyword]
    if not isinstance(value, list) or not value:
        raise UsageError(f"'{keyword}' of the JSON schema is no list with anything in it.")
    return value


def _literal(value: Any) -> str:
    return quoted(json.dumps(value, ensure_ascii=False))


def _any_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"
