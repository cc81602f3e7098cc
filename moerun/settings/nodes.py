"""Settings as written: texts, lists and maps, each with the file and line it comes from.

Knows: the YAML that settings use, read as plain text without types, tags or anchors.
Does not know: which keys exist, or what a value means.

Scalars stay text, so that `off`, `8G` and `10:30` are what was typed: YAML 1.1 would make a
boolean, a word and a number to base 60 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from moerun.errors import ConfigError
from moerun.units import KIB

if TYPE_CHECKING:
    import yaml

LARGEST_TEXT_BYTES: Final = 256 * KIB
_DEEPEST: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A scalar as typed. `is_null` when nothing, `~` or `null` stands there unquoted."""

    text: str
    origin: str
    is_null: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """A map in its written order; no key stands twice."""

    entries: tuple[tuple[Text, Node], ...]
    origin: str


Node = Text | Items | Entries


def node_of(value: object, origin: str) -> Node:
    """Return a value that a flag gave as a node: texts, numbers, switches, lists and maps."""
    if isinstance(value, Mapping):
        pairs = ((node_of(str(key), origin), node_of(item, origin)) for key, item in value.items())
        return Entries(
            entries=tuple((key, item) for key, item in pairs if isinstance(key, Text)),
            origin=origin,
        )
    if isinstance(value, list | tuple):
        return Items(items=tuple(node_of(item, origin) for item in value), origin=origin)
    if isinstance(value, bool):
        return Text(text="true" if value else "false", origin=origin)
    return Text(text=str(value), origin=origin)


def read_inline(text: str, origin: str) -> Node:
    """Read the value of a variable: plain text, or a YAML list or map on one line."""
    stripped = text.strip()
    if stripped.startswith(("[", "{")):
        return read_yaml(stripped, origin, has_lines=False) or Text(text="", origin=origin)
    return Text(text=stripped, origin=origin)


def read_yaml(text: str, origin: str, *, has_lines: bool = True) -> Node | None:
    """Read one YAML document, None when it is empty; ConfigError names the line of a fault.

    `origin` is the file or the variable; nodes of a file add `:` and their line.
    """
    import yaml

    reader = _Reader(origin, has_lines=has_lines)
    try:
        return reader.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _fault(reader.at(line), f"it is not YAML: {_problem(error)}") from error
    except yaml.YAMLError as error:  # the reader of characters knows no line
        raise _fault(origin, "it holds characters that YAML does not allow") from error


class _Reader:
    """Builds nodes from the parser's events, refusing what settings do not use."""

    def __init__(self, origin: str, *, has_lines: bool) -> None:
        self._origin = origin
        self._has_lines = has_lines

    def at(self, line: int) -> str:
        return f"{self._origin}:{line}" if self._has_lines else self._origin

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        import yaml

        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a second document starts here; settings are one")
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, depth=0)
        return None if isinstance(root, Text) and root.is_null else root

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], *, depth: int) -> Node:
        import yaml

        origin = self._place(event)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(
                event, "aliases are not supported; put quotes around a text that starts with *"
            )
        if getattr(event, "anchor", None) is not None:
            self._refuse(
                event, "anchors are not supported; put quotes around a text that starts with &"
            )
        if getattr(event, "tag", None) is not None:
            self._refuse(
                event, "tags are not supported; put quotes around a text that starts with !"
            )
        if depth > _DEEPEST:
            self._refuse(event, f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.style is None and event.value in ("", "~", "null", "Null", "NULL")
            return Text(text=event.value, origin=origin, is_null=is_null)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(events, origin, depth=depth)
        return self._entries(events, origin, depth=depth)

    def _items(self, events: Iterator[yaml.Event], origin: str, *, depth: int) -> Items:
        import yaml

        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, events, depth=depth + 1))
        return Items(items=tuple(items), origin=origin)

    def _entries(self, events: Iterator[yaml.Event], origin: str, *, depth: int) -> Entries:
        import yaml

        entries: dict[str, tuple[Text, Node]] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._node(event, events, depth=depth + 1)
            if not isinstance(key, Text):
                self._refuse(event, "a key must be a text")
            if key.text in entries:
                first = entries[key.text][0].origin
                self._refuse(event, f"'{key.text}' was already set at {first}")
            entries[key.text] = (key, self._node(next(events), events, depth=depth + 1))
        return Entries(entries=tuple(entries.values()), origin=origin)

    def _place(self, event: yaml.Event) -> str:
        mark = event.start_mark
        return self.at(mark.line + 1 if mark is not None else 1)

    def _refuse(self, event: yaml.Event, why: str) -> NoReturn:
        raise _fault(self._place(event), why)


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong in words of our own where the parser's would puzzle."""
    problem, context = error.problem or "it cannot be read", error.context or ""
    if "'\\t'" in problem:
        return "a tab stands where YAML wants spaces"
    if "alias" in context or "anchor" in context:
        return "put quotes around a text that starts with * or &"
    return problem


def _fault(origin: str, why: str) -> ConfigError:
    return ConfigError(f"{origin}: {why}", key="", origin=origin)
