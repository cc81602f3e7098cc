"""Templates of Modelfiles: the part of Go's text/template that prompts are written in.

    {{ if .System }}<|sys|>{{ .System }}{{ end }}<|user|>{{ .Prompt }}<|bot|>{{ .Response }}

Understood are `.System`, `.Prompt`, `.Response` (or `.Messages` with `range`, `.Role` and
`.Content`), `if`, `else if`, `else`, `end`, `eq`, `ne`, `and`, `or`, `not`, `len`, `slice`,
variables, numbers, parentheses, comments and the marks that trim white space. Tools, thoughts and
what follows the answer may be asked for, and are never there. Anything else is refused when a model
is made, so that no template is half obeyed. A variable is known to all that is written after it, in
whatever block it was set. Belief: a template without `.Messages` is used once for each turn of the
user with what answered it, and cut at the last `.Response` - template/template.go of ollama 0.12 -
checked by tests/test_go_template.py against prompts written by hand.

Knows: the grammar, and what a conversation becomes.
Does not know: tokens, or what marks a model wants.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from moerun.errors import UsageError

_ACTION: Final = re.compile(r"\{\{(?P<left>-\s)?(?P<inner>.*?)(?P<right>\s-)?\}\}", re.S)
_WORD: Final = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|`[^`]*`|[^\s()"`]+')
_TURN_FIELDS: Final = frozenset({"System", "Prompt", "Response"})
_MESSAGE_FIELDS: Final = frozenset({"Role", "Content"})
# What templates of ollama's library ask for beside these; a conversation here has none of it.
_NEVER_THERE: Final = frozenset({"Tools", "Suffix", "Think", "ThinkLevel", "IsThinkSet"})
_NEVER_IN_MESSAGES: Final = frozenset({"ToolCalls", "ToolName", "Thinking", "Images"})
_FUNCTIONS: Final = frozenset({"eq", "ne", "and", "or", "not", "len", "slice", "json"})
_LONE: Final = frozenset({"not", "len", "json"})  # functions of one argument
_VARIABLE: Final = re.compile(r"\$[A-Za-z_]\w*")
_NUMBER: Final = re.compile(r"-?\d{1,9}")
_DEEPEST: Final = 32
_ROUNDS: Final = "rounds"  # no variable is called so, without a $
_MOST_ROUNDS: Final = 100_000
_FORMS: Final = "moerun reads if, else, end, range, eq, ne, and, or, not, len, slice, and fields"

Turn = tuple[str, str]  # a role and what was said


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """A field of what is looked at, of all (`$`), or of a variable; no name means all of that."""

    name: str
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    variable: str
    value: "_Value"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """Which names may stand where: within a message, within what is never there, or outside."""

    fields: frozenset[str] | None
    variables: frozenset[str] = frozenset()

    def knowing(self, *names: str) -> "_Scope":
        return replace(self, variables=self.variables | {name for name in names if name})


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
    items: "_Value"
    body: "tuple[_Node, ...]"
    index: str = ""
    item: str = ""


_Value = _Text | _Number | _Field | _Call
_Node = _Text | _Number | _Field | _Call | _Set | _If | _Range
_OUTSIDE: Final = _Scope(fields=_TURN_FIELDS | _NEVER_THERE | {"Messages"})
_Values = Mapping[str, Any]


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
            root = {"System": system, "Prompt": "", "Response": "", "Messages": messages}
            return "".join(_written(self.nodes, root, {"$": root}, cuts=False))
        pieces: list[str] = []
        rounds = _rounds(turns)
        for index, values in enumerate(rounds):
            is_last = index == len(rounds) - 1
            try:
                for piece in _written(self.nodes, values, {"$": values}, cuts=is_last):
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
    nodes, rest = _nodes(tokens, 0, depth=0, scope=_OUTSIDE)
    if rest != len(tokens):
        raise UsageError(f"'{tokens[rest][1][0]}' stands without its beginning")
    fields = set(_fields(nodes))
    uses_messages = "Messages" in fields
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
    tokens: list[tuple[str, list[str]]], at: int, *, depth: int, scope: _Scope
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
            node, at = _if(tokens, at, words[1:], depth=depth, scope=scope)
            found.append(node)
        elif words[0] == "range":
            ranged, at = _range(tokens, at, words, depth=depth, scope=scope)
            found.append(ranged)
        elif words[1:2] in (["="], [":="]) and _VARIABLE.fullmatch(words[0]):
            if words[1] == "=" and words[0] not in scope.variables:
                raise _unknown(words)
            found.append(_Set(variable=words[0], value=_whole(words[2:], scope=scope)))
            scope = scope.knowing(words[0])
            at += 1
        else:
            value = _whole(words, scope=scope)
            if isinstance(value, _Call) and value.function != "json":
                raise _unknown(words)
            found.append(value)
            at += 1
    return tuple(found), at


def _range(
    tokens: list[tuple[str, list[str]]],
    at: int,
    words: list[str],
    *,
    depth: int,
    scope: _Scope,
) -> tuple[_Range, int]:
    """Return a loop; its variables are the index and the item."""
    head, rest = [], words[1:]
    if ":=" in rest:
        place = rest.index(":=")
        head, rest = " ".join(rest[:place]).replace(",", " ").split(), rest[place + 1 :]
    names = all(_VARIABLE.fullmatch(word) for word in head)
    if not names or len(head) > 2 or (":=" in words and not head):
        raise _unknown(words)
    items = _whole(rest, scope=scope)
    if not isinstance(items, _Field):
        raise _unknown(words)
    index, item = (head[0], head[1]) if len(head) == 2 else ("", head[0] if head else "")
    is_messages = items.name == "Messages"
    fields = _MESSAGE_FIELDS | _NEVER_IN_MESSAGES if is_messages else None
    inner = replace(scope.knowing(index, item), fields=fields)
    body, at = _nodes(tokens, at + 1, depth=depth + 1, scope=inner)
    return _Range(items=items, body=body, index=index, item=item), _closed(tokens, at)


def _if(
    tokens: list[tuple[str, list[str]]],
    at: int,
    words: list[str],
    *,
    depth: int,
    scope: _Scope,
) -> tuple[_If, int]:
    condition = _whole(words, scope=scope)
    then, at = _nodes(tokens, at + 1, depth=depth + 1, scope=scope)
    otherwise: tuple[_Node, ...] = ()
    if at < len(tokens) and tokens[at][1][0] == "else":
        rest = tokens[at][1][1:]
        if rest[:1] == ["if"]:  # one `end` closes both
            nested, at = _if(tokens, at, rest[1:], depth=depth + 1, scope=scope)
            return _If(condition=condition, then=then, otherwise=(nested,)), at
        if rest:
            raise _unknown(tokens[at][1])
        otherwise, at = _nodes(tokens, at + 1, depth=depth + 1, scope=scope)
    return _If(condition=condition, then=then, otherwise=otherwise), _closed(tokens, at)


def _closed(tokens: list[tuple[str, list[str]]], at: int) -> int:
    if at >= len(tokens) or tokens[at][1] != ["end"]:
        raise UsageError("an if or a range has no end")
    return at + 1


def _whole(words: list[str], *, scope: _Scope) -> _Value:
    """Return what all words of an action say together."""
    value, at = _expression(words, 0, scope=scope, depth=0)
    if at != len(words):
        raise _unknown(words)
    return value


def _expression(words: list[str], at: int, *, scope: _Scope, depth: int) -> tuple[_Value, int]:
    if at < len(words) and words[at] in _FUNCTIONS:
        function, at = words[at], at + 1
        arguments: list[_Value] = []
        while at < len(words) and words[at] != ")":
            value, at = _operand(words, at, scope=scope, depth=depth)
            arguments.append(value)
        wanted = 1 if function in _LONE else 2
        most = {"slice": 3}.get(function, 1 if function in _LONE else len(arguments))
        if not wanted <= len(arguments) <= most:
            raise _unknown(words)
        return _Call(function=function, arguments=tuple(arguments)), at
    return _operand(words, at, scope=scope, depth=depth)


def _operand(words: list[str], at: int, *, scope: _Scope, depth: int) -> tuple[_Value, int]:
    word = words[at] if at < len(words) else ""
    if word == "(" and depth < _DEEPEST:
        value, at = _expression(words, at + 1, scope=scope, depth=depth + 1)
        if at >= len(words) or words[at] != ")":
            raise _unknown(words)
        return value, at + 1
    if len(word) > 1 and word[0] in '"`' and word[-1] == word[0]:
        inner = word[1:-1]
        return _Text(text=_unescaped(inner) if word[0] == '"' else inner), at + 1
    if _NUMBER.fullmatch(word):
        return _Number(value=int(word)), at + 1
    if word in ("true", "false"):
        return _Number(value=int(word == "true")), at + 1
    base, _, name = word.partition(".")
    if base in ("", "$") and not name and scope.fields is not None:
        raise _unknown(words)
    if base == "$":
        known: frozenset[str] | None = _OUTSIDE.fields
    elif base:
        known = _MESSAGE_FIELDS | _NEVER_IN_MESSAGES | {""} if base in scope.variables else None
        if base not in scope.variables:
            raise _unknown(words)
    else:
        known = scope.fields
        if not word.startswith("."):
            raise _unknown(words)
    # Within what is never there, anything may be asked for: it is not written.
    if known is not None and scope.fields is not None and name not in known:
        raise _unknown(words)
    return _Field(name=name, base=base), at + 1


def _written(
    nodes: tuple[_Node, ...], values: _Values, variables: dict[str, Any], *, cuts: bool
) -> Iterator[str]:
    """Yield the text; raises _Cut where the answer is to begin."""
    for node in nodes:
        match node:
            case _Text():
                yield node.text
            case _Number() | _Call():
                yield _said(_evaluated(node, values, variables))
            case _Field():
                if cuts and node.name == "Response":
                    raise _Cut
                yield _said(_evaluated(node, values, variables))
            case _Set():
                variables[node.variable] = _evaluated(node.value, values, variables)
            case _If():
                holds = bool(_evaluated(node.condition, values, variables))
                # Whether there is an answer is not asked of the one that is still to come.
                if cuts and isinstance(node.condition, _Field):
                    holds = holds or node.condition.name == "Response"
                chosen = node.then if holds else node.otherwise
                yield from _written(chosen, values, variables, cuts=cuts)
            case _Range():
                items = _evaluated(node.items, values, variables)
                for index, item in enumerate(items if isinstance(items, tuple) else ()):
                    variables[_ROUNDS] = variables.get(_ROUNDS, 0) + 1
                    if variables[_ROUNDS] > _MOST_ROUNDS:
                        raise UsageError("the model's template goes through messages without end")
                    variables |= {node.index: index, node.item: item}
                    yield from _written(node.body, item, variables, cuts=cuts)


def _said(value: Any) -> str:
    return "" if value is None or isinstance(value, tuple | Mapping) else str(value)


def _evaluated(value: _Value, values: _Values, variables: _Values) -> Any:
    match value:
        case _Text():
            return value.text
        case _Number():
            return value.value
        case _Field():
            found = variables.get(value.base) if value.base else values
            if not value.name:
                return found
            return found.get(value.name, "") if isinstance(found, Mapping) else ""
        case _Call():
            found = [_evaluated(item, values, variables) for item in value.arguments]
            return _called(value.function, found)


def _called(function: str, found: list[Any]) -> Any:
    match function:
        case "eq":
            return any(found[0] == other for other in found[1:])
        case "ne":
            return found[0] != found[1]
        case "not":
            return not found[0]
        case "len":
            return len(found[0]) if isinstance(found[0], str | tuple) else 0
        case "slice":
            if not isinstance(found[0], str | tuple):
                return ()
            bounds = [bound if isinstance(bound, int) and bound >= 0 else 0 for bound in found[1:]]
            return found[0][bounds[0] : bounds[1] if len(bounds) > 1 else None]
        case "json":
            return json.dumps(found[0])
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
        match node:
            case _Field():
                yield node.name
            case _Range(items=_Field(name=name)):
                yield name


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
