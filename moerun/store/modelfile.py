"""A Modelfile: what a model is made from, and what it is to carry.

    FROM qwen3-30b-a3b
    PARAMETER temperature 0.6
    PARAMETER ram_limit 24G
    SYSTEM Answer briefly.

The grammar is ollama's (docs/modelfile.md and parser/parser.go of ollama 0.12): an instruction in
any case and its text, on one line or in triple quotes; lines that begin with # say nothing.

Knows: instructions, quotes, and what may stand several times.
Does not know: what FROM means, or which templates can be used.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from moerun.errors import UsageError
from moerun.store.parameters import LISTED, read_parameter

_LARGEST_CHARACTERS: Final = 4 << 20
_QUOTES: Final = '"""'
_ROLES: Final = ("system", "user", "assistant")
_LINE: Final = re.compile(r"\s*(?P<word>[A-Za-z]+)(?:[ \t]+(?P<text>.*))?\Z", re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """What a Modelfile says; an empty `system` removes that of the model it is made from."""

    source: str
    parameters: tuple[tuple[str, Any], ...] = ()
    system: str | None = None
    template: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instruction:
    word: str
    text: str
    line: int


def parse_modelfile(text: str, *, name: str = "Modelfile") -> Modelfile:
    """Return what a Modelfile says; UsageError names the line that cannot be meant."""
    if len(text) > _LARGEST_CHARACTERS:
        raise UsageError(f"{name} has more than {_LARGEST_CHARACTERS:,} characters")
    found: dict[str, list[_Instruction]] = {}
    for instruction in _instructions(text.lstrip("\ufeff"), name):
        found.setdefault(instruction.word, []).append(instruction)
    return Modelfile(
        source=_once(found, "FROM", name, is_needed=True) or "",
        parameters=_parameters(found.get("PARAMETER", []), name),
        system=_once(found, "SYSTEM", name),
        template=_once(found, "TEMPLATE", name),
        messages=tuple(_message(item, name) for item in found.get("MESSAGE", [])),
        licenses=tuple(item.text for item in found.get("LICENSE", [])),
        adapters=tuple(_path(item, name) for item in found.get("ADAPTER", [])),
    )


_WORDS: Final = (
    "FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "MESSAGE", "LICENSE",
)  # fmt: skip


def _instructions(text: str, name: str) -> Iterator[_Instruction]:
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        word = match["word"].upper() if match is not None else ""
        if match is None or word not in _WORDS:
            said = line.split()[0][:40]
            raise UsageError(
                f"{name}:{number}: '{said}' is no instruction",
                hint=f"there are {', '.join(_WORDS)}",
            )
        head, quotes, rest = (match["text"] or "").partition(_QUOTES)
        if quotes and not (head.strip() and word not in ("MESSAGE", "PARAMETER")):
            while _QUOTES not in rest:
                following = next(lines, None)
                if following is None:
                    raise UsageError(f"{name}:{number}: the text in triple quotes does not end")
                rest += "\n" + following[1]
            inner, _, behind = rest.partition(_QUOTES)
            if behind.strip():
                raise UsageError(f"{name}:{number}: something stands behind the triple quotes")
            yield _Instruction(word=word, text=head + inner, line=number)
        else:
            yield _Instruction(word=word, text=_unquoted(match["text"] or ""), line=number)


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    return text


def _once(
    found: dict[str, list[_Instruction]], word: str, name: str, *, is_needed: bool = False
) -> str | None:
    items = found.get(word, [])
    if len(items) > 1:
        raise UsageError(
            f"{name}:{items[1].line}: {word} stands here again (first in line {items[0].line})"
        )
    if not items and is_needed:
        raise UsageError(
            f"{name} has no {word}", hint=f"{word} names a model, or the path of a GGUF file"
        )
    if items and is_needed and not items[0].text.strip():
        raise UsageError(f"{name}:{items[0].line}: {word} names nothing")
    return items[0].text if items else None


def _parameters(items: list[_Instruction], name: str) -> tuple[tuple[str, Any], ...]:
    values: dict[str, Any] = {}
    for item in items:
        where = f"{name}:{item.line}"
        key, _, text = item.text.strip().partition(" ")
        key = key.lower()
        if not text.strip():
            raise UsageError(f"{where}: PARAMETER wants a name and a value")
        value = read_parameter(key, _unquoted(text), where=where)
        if key in LISTED:
            values.setdefault(key, []).append(value)
        elif key in values:
            raise UsageError(f"{where}: {key} is set a second time")
        else:
            values[key] = value
    return tuple(values.items())


def _path(item: _Instruction, name: str) -> str:
    path = item.text.strip()
    if not path or "\0" in path:
        raise UsageError(f"{name}:{item.line}: {item.word} wants the path of a file")
    return path


def _message(item: _Instruction, name: str) -> tuple[str, str]:
    role, _, text = item.text.strip().partition(" ")
    if role.lower() not in _ROLES or not text.strip():
        raise UsageError(
            f"{name}:{item.line}: MESSAGE wants a role ({', '.join(_ROLES)}) and a text"
        )
    return role.lower(), _unquoted(text)
