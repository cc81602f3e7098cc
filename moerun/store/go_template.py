"""Templates of Modelfiles: the part of Go's text/template that prompts are written in.

    {{ if .System }}<|sys|>{{ .System }}{{ end }}<|user|>{{ .Prompt }}<|bot|>{{ .Response }}

Understood are `.System`, `.Prompt`, `.Response` (or `.Messages` with `range`, `.Role` and
`.Content`), `if`, `else if`, `else`, `end`, `eq`, `ne`, `and`, `or`, `not`, parentheses, comments
and the marks that trim white space. Anything else is refused when a model is made, so that no
template is half obeyed. Belief: a template without `.Messages` is used once for each turn of the
user with what answered it, and cut at the last `.Response` - template/template.go of ollama 0.12 -
checked by tests/test_go_template.py against prompts written by hand.

Knows: the grammar, and what a conversation becomes.
Does not know: tokens, or what marks a model wants.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moerun.errors import UsageError

_ACTION: Final = re.compile(r"\{\{(?P<left>-\s)?(?P<inner>.*?)(?P<right>\s-)?\}\}", re.S)
_WORD: Final = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|`[^`]*`|[^\s()"`]+')
_TURN_FIELDS: Final = frozenset({"System", "Prompt", "Response"})
_MESSAGE_FIELDS: Final = frozenset({"Role", "Content"})
_FUNCTIONS: Final = frozenset({"eq", "ne", "and", "or", "not"})
_DEEPEST: Final = 32
_FORMS: Final = "moerun reads if, else, end, range .Messages, eq, ne, and, or, not, and fields"

Turn = tuple[str, str]  # a role and what was said


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    function: str
    arguments: "tuple[_Value, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _If:
    condition: "_Value"
    then: "tuple[_Node, ...]"
    otherwise: "tuple[_Node, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    body: "tuple[_Node, ...]"


_Value = _Text | _Field | _Call
_Node = _Text | _Field | _If | _Range


class _Cut(Exception):
    """The answer begins here, so the prompt ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A template that was understood."""

    nodes: tuple[_Node, ...]
    uses_messages: bool
    has_response: bool

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the prompt that asks for the next answer."""
        if self.uses_messages:
            system = "\n\n".join(text for role, text in turns if role == "system")
            messages = tuple({"Role": role, "Content": text} for role, text in turns)
            values = {"System": system, "Prompt": "", "Response": ""}
            return "".join(_written(self.nodes, values, messages, cuts=True))
        pieces: list[str] = []
        rounds = _rounds(turns)
        for index, values in enumerate(rounds):
            is_last = index == len(rounds) - 1
            try:
                for piece in _written(self.nodes, values, (), cuts=is_last):
                    pieces.append(piece)  # noqa: PERF402 - what was written before the cut stays
            except _Cut:
                break
            if not is_last and not self.has_response:
                pieces.append(values["Response"])
        return "".join(pieces)


def parse_template(text: str) -> PromptTemplate:
    """Return a template; UsageError names what in it is not understood."""
    if "{%" in text:
        raise UsageError(
            "it is written in Jinja, and a Modelfile's is in Go's text/template",
            hint="a Jinja template belongs in the GGUF (tokenizer.chat_template), which moerun "
            "uses without a TEMPLATE",
        )
    tokens = list(_tokens(text))
    if any("{{" in said for said, words in tokens if not words):
        raise UsageError("an action that begins with {{ has no }}")
    nodes, rest = _nodes(tokens, 0, depth=0, within_range=False)
    if rest != len(tokens):
        raise UsageError(f"'{tokens[rest][1][0]}' stands without its beginning")
    fields = set(_fields(nodes))
    uses_messages = any(isinstance(node, _Range) for node in _all(nodes))
    if not uses_messages and "Prompt" not in fields:
        raise UsageError("it uses neither .Prompt nor .Messages", hint=_FORMS)
    return PromptTemplate(
        nodes=nodes, uses_messages=uses_messages, has_response="Response" in fields
    )


def _tokens(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield texts (with no words) and actions (as their words), with white space trimmed."""
    position, trims = 0, False
    for match in _ACTION.finditer(text):
        before = text[position : match.start()]
        before = before.lstrip() if trims else before
        yield (before.rstrip() if match["left"] else before), []
        inner = match["inner"].strip()
        if not inner.startswith("/*"):
            yield "", _WORD.findall(inner) or [""]
        position, trims = match.end(), bool(match["right"])
    rest = text[position:]
    yield (rest.lstrip() if trims else rest), []


def _nodes(
    tokens: list[tuple[str, list[str]]], at: int, *, depth: int, within_range: bool
) -> tuple[tuple[_Node, ...], int]:
    """Return the nodes from a place on, up to an `else` or `end` that is not theirs."""
    if depth > _DEEPEST:
        raise UsageError(f"it is nested more than {_DEEPEST} deep")
    found: list[_Node] = []
    while at < len(tokens):
        text, words = tokens[at]
        if not words:
            if text:
                found.append(_Text(text=text))
            at += 1
            continue
        if words[0] in ("else", "end"):
            break
        if words[0] == "if":
            node, at = _if(tokens, at, words[1:], depth=depth, within_range=within_range)
            found.append(node)
        elif words[0] == "range":
            if words[1:] != [".Messages"] or within_range:
                raise _unknown(words)
            body, at = _nodes(tokens, at + 1, depth=depth + 1, within_range=True)
            at = _closed(tokens, at)
            found.append(_Range(body=body))
        else:
            value = _whole(words, within_range=within_range)
            if isinstance(value, _Call):
                raise _unknown(words)
            found.append(value)
            at += 1
    return tuple(found), at


def _if(
    tokens: list[tuple[str, list[str]]],
    at: int,
    words: list[str],
    *,
    depth: int,
    within_range: bool,
) -> tuple[_If, int]:
    condition = _whole(words, within_range=within_range)
    then, at = _nodes(tokens, at + 1, depth=depth + 1, within_range=within_range)
    otherwise: tuple[_Node, ...] = ()
    if at < len(tokens) and tokens[at][1][0] == "else":
        rest = tokens[at][1][1:]
        if rest[:1] == ["if"]:  # one `end` closes both
            nested, at = _if(tokens, at, rest[1:], depth=depth + 1, within_range=within_range)
            return _If(condition=condition, then=then, otherwise=(nested,)), at
        if rest:
            raise _unknown(tokens[at][1])
        otherwise, at = _nodes(tokens, at + 1, depth=depth + 1, within_range=within_range)
    return _If(condition=condition, then=then, otherwise=otherwise), _closed(tokens, at)


def _closed(tokens: list[tuple[str, list[str]]], at: int) -> int:
    if at >= len(tokens) or tokens[at][1] != ["end"]:
        raise UsageError("an if or a range has no end")
    return at + 1


def _whole(words: list[str], *, within_range: bool) -> _Value:
    """Return what all words of an action say together."""
    value, at = _expression(words, 0, within_range=within_range, depth=0)
    if at != len(words):
        raise _unknown(words)
    return value


def _expression(words: list[str], at: int, *, within_range: bool, depth: int) -> tuple[_Value, int]:
    if at < len(words) and words[at] in _FUNCTIONS:
        function, at = words[at], at + 1
        arguments: list[_Value] = []
        while at < len(words) and words[at] != ")":
            value, at = _operand(words, at, within_range=within_range, depth=depth)
            arguments.append(value)
        wanted = 1 if function == "not" else 2
        if len(arguments) < wanted or (function == "not" and len(arguments) > 1):
            raise _unknown(words)
        return _Call(function=function, arguments=tuple(arguments)), at
    return _operand(words, at, within_range=within_range, depth=depth)


def _operand(words: list[str], at: int, *, within_range: bool, depth: int) -> tuple[_Value, int]:
    word = words[at] if at < len(words) else ""
    if word == "(" and depth < _DEEPEST:
        value, at = _expression(words, at + 1, within_range=within_range, depth=depth + 1)
        if at >= len(words) or words[at] != ")":
            raise _unknown(words)
        return value, at + 1
    if len(word) > 1 and word[0] in '"`' and word[-1] == word[0]:
        inner = word[1:-1]
        return _Text(text=_unescaped(inner) if word[0] == '"' else inner), at + 1
    name = word.removeprefix("$" if word.startswith("$.") else "").removeprefix(".")
    is_outer = word.startswith("$.") or not within_range
    known = _TURN_FIELDS if is_outer else _MESSAGE_FIELDS
    if not word.startswith((".", "$.")) or name not in known | {"Messages"}:
        raise _unknown(words)
    return _Field(name=name), at + 1


def _written(
    nodes: tuple[_Node, ...],
    values: Mapping[str, str],
    messages: tuple[Mapping[str, str], ...],
    *,
    cuts: bool,
) -> Iterator[str]:
    """Yield the text; raises _Cut where the answer is to begin."""
    for node in nodes:
        match node:
            case _Text():
                yield node.text
            case _Field():
                if node.name == "Response" and cuts and not messages:
                    raise _Cut
                yield values.get(node.name, "")
            case _If():
                holds = bool(_evaluated(node.condition, values, messages))
                # Whether there is an answer is not asked of the one that is still to come.
                if cuts and not messages and node.condition == _Field(name="Response"):
                    holds = True
                chosen = node.then if holds else node.otherwise
                yield from _written(chosen, values, messages, cuts=cuts)
            case _Range():
                for message in messages:
                    yield from _written(node.body, {**values, **message}, messages, cuts=cuts)


def _evaluated(
    value: _Value, values: Mapping[str, str], messages: tuple[Mapping[str, str], ...]
) -> str | bool:
    match value:
        case _Text():
            return value.text
        case _Field():
            return bool(messages) if value.name == "Messages" else values.get(value.name, "")
        case _Call():
            found = [_evaluated(item, values, messages) for item in value.arguments]
            match value.function:
                case "eq":
                    return any(found[0] == other for other in found[1:])
                case "ne":
                    return found[0] != found[1]
                case "not":
                    return not found[0]
                case "and":
                    return next((item for item in found if not item), found[-1])
                case _:
                    return next((item for item in found if item), found[-1])


def _rounds(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return what was said in rounds of system, prompt and response."""
    rounds: list[dict[str, str]] = []
    for role, text in turns:
        field = {"system": "System", "user": "Prompt"}.get(role, "Response")
        is_new = not rounds or any(
            rounds[-1][name]
            for name in {
                "System": ("System", "Prompt", "Response"),
                "Prompt": ("Prompt", "Response"),
                "Response": ("Response",),
            }[field]
        )
        if is_new:
            rounds.append({"System": "", "Prompt": "", "Response": ""})
        rounds[-1][field] = text
    return rounds


def _fields(nodes: tuple[_Node, ...]) -> Iterator[str]:
    for node in _all(nodes):
        if isinstance(node, _Field):
            yield node.name


def _all(nodes: tuple[_Node, ...]) -> Iterator[_Node]:
    for node in nodes:
        yield node
        if isinstance(node, _If):
            yield from _all((*node.then, *node.otherwise))
        elif isinstance(node, _Range):
            yield from _all(node.body)


def _unescaped(text: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[0]), text)


def _unknown(words: list[str]) -> UsageError:
    said = " ".join(words)[:80]
    return UsageError(f"'{{{{ {said} }}}}' is not understood", hint=_FORMS)
