"""Tool calls in the text of an answer, in the forms that families of models write them.

Knows: the forms and the marks around them, and how to hold back what may become a call.
Does not know: tokens, templates as a whole, or what the tools do.
"""

import json
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from moerun.engine.interface import Tool, ToolCall
from moerun.engine.pieces import overlap


class ToolForm(StrEnum):
    """How calls are written: in tags, behind a mark to the end, or as the whole answer.

    TAGGED is Hermes, Qwen, GLM and Granite's newer form; CHANNELS come through `thinking`.
    """

    TAGGED = "tagged"
    MISTRAL = "mistral"
    DEEPSEEK = "deepseek"
    BARE = "bare"
    CHANNELS = "channels"


_BAR: Final = "\uff5c"  # DeepSeek writes a wide bar, which looks like the narrow one
_DEEPSEEK_OPEN: Final = f"<{_BAR}tool▁calls▁begin{_BAR}>"
_DEEPSEEK_CLOSE: Final = f"<{_BAR}tool▁calls▁end{_BAR}>"
_CALL_OPEN: Final = f"<{_BAR}tool▁call▁begin{_BAR}>"
_CALL_MIDDLE: Final = f"<{_BAR}tool▁sep{_BAR}>"
_CALL_CLOSE: Final = f"<{_BAR}tool▁call▁end{_BAR}>"
# The mark that opens a stretch of calls, and the one that ends it; without one the answer does.
_MARKS: Final[dict[ToolForm, tuple[str, str]]] = {
    ToolForm.TAGGED: ("<tool_call>", "</tool_call>"),
    ToolForm.MISTRAL: ("[TOOL_CALLS]", ""),
    ToolForm.DEEPSEEK: (_DEEPSEEK_OPEN, _DEEPSEEK_CLOSE),
}
_DEEPSEEK_CALL: Final = re.compile(
    rf"{_CALL_OPEN}(?P<head>.*?){_CALL_MIDDLE}(?P<body>.*?)(?:{_CALL_CLOSE}|$)", re.S
)
_FUNCTION: Final = re.compile(r"<function=(?P<name>[^>\n]+)>(?P<body>.*?)(?:</function>|$)", re.S)
_PARAMETER: Final = re.compile(
    r"<parameter=(?P<name>[^>\n]+)>(?P<value>.*?)(?:</parameter>|(?=<parameter=)|$)", re.S
)
_ARGUMENT: Final = re.compile(
    r"<arg_key>(?P<name>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.S
)
_FENCE: Final = re.compile(r"^```(?:json)?\s*|\s*```$")
PYTHON_TAG: Final = "<|python_tag|>"
# Control tokens that the forms are told by; they have no text of their own otherwise.
TOOL_MARKS: Final = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    PYTHON_TAG,
    _DEEPSEEK_OPEN,
    _DEEPSEEK_CLOSE,
    _CALL_OPEN,
    _CALL_MIDDLE,
    _CALL_CLOSE,
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)


def tool_form(template: str) -> ToolForm:
    """Return the form that a chat template teaches; the bare one when it names no mark."""
    if "<|channel|>" in template and "<|message|>" in template:
        return ToolForm.CHANNELS
    return next(
        (form for form, (opening, _) in _MARKS.items() if opening in template), ToolForm.BARE
    )


class ToolReader:
    """Takes the calls out of a stream of content."""

    def __init__(
        self, form: ToolForm, tools: tuple[Tool, ...], *, new_id: Callable[[], str]
    ) -> None:
        self._form = form
        self._schemas = {tool.name: _properties(tool.parameters) for tool in tools}
        self._new_id = new_id
        self._opening, self._closing = _MARKS.get(form, ("", ""))
        self._held = ""
        self._is_inside = False
        self._is_plain = form is ToolForm.CHANNELS
        self._has_called = False
        self._ready: list[ToolCall] = []

    def feed(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the content that can be shown, and the calls that are whole."""
        if self._form is ToolForm.BARE:
            content = self._feed_bare(text)
        elif self._is_plain:
            content = text
        else:
            content = self._feed_marked(text)
        calls, self._ready = tuple(self._ready), []
        return content, calls

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """Return what was held back; a stretch that no mark ended counts as one."""
        held, self._held = self._held, ""
        content = held
        if self._is_inside or (self._form is ToolForm.BARE and held):
            content = self._take(held)
        calls, self._ready = tuple(self._ready), []
        return content, calls

    def call(self, text: str) -> None:
        """Take a call that came in a channel of its own: its name, a newline, its arguments."""
        name, _, arguments = text.partition("\n")
        self._add(name.strip(), _loaded(arguments.strip()) or {})

    def _feed_marked(self, text: str) -> str:
        self._held += text
        shown = ""
        while True:
            if not self._is_inside:
                before, mark, rest = self._held.partition(self._opening)
                if not mark:
                    keep = overlap(before, self._opening)
                    shown += self._visible(before[: len(before) - keep])
                    self._held = before[len(before) - keep :]
                    return shown
                shown += self._visible(before)
                self._held, self._is_inside = rest, True
            if not self._closing or self._closing not in self._held:
                return shown
            body, _, self._held = self._held.partition(self._closing)
            self._is_inside = False
            shown += self._take(body)

    def _visible(self, text: str) -> str:
        """Return content; blank space behind a call only parts it from the next."""
        return "" if self._has_called and not text.strip() else text

    def _feed_bare(self, text: str) -> str:
        if self._is_plain:
            return text
        self._held += text
        ahead = self._held.lstrip()
        if not ahead or PYTHON_TAG.startswith(ahead) or ahead.startswith((PYTHON_TAG, "{", "[")):
            return ""
        self._is_plain = True
        held, self._held = self._held, ""
        return held

    def _take(self, body: str) -> str:
        """Read the calls of a stretch; return its text when there is none in it."""
        self._is_inside = False
        calls = read_calls(self._form, body, self._schemas)
        if self._form is ToolForm.BARE and any(name not in self._schemas for name, _ in calls):
            calls = []  # JSON that was meant as the answer
        if not calls:
            return self._opening + body + (self._closing if self._form is ToolForm.TAGGED else "")
        for name, arguments in calls:
            self._add(name, arguments)
        return ""

    def _add(self, name: str, arguments: Any) -> None:
        self._has_called = True
        self._ready.append(
            ToolCall(
                id=self._new_id(), name=name, arguments=json.dumps(arguments, ensure_ascii=False)
            )
        )


def read_calls(
    form: ToolForm, body: str, schemas: dict[str, dict[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of the calls in a stretch of text, none when it is no call."""
    text = body.strip()
    match form:
        case ToolForm.DEEPSEEK:
            return [call for found in _DEEPSEEK_CALL.finditer(text) for call in _deepseek(found)]
        case ToolForm.MISTRAL:
            return _mistral(text)
        case ToolForm.BARE:
            return _json_calls(text.removeprefix(PYTHON_TAG).strip())
        case ToolForm.TAGGED | ToolForm.CHANNELS:
            if "<function=" in text:
                return [
                    (
                        name := found["name"].strip(),
                        _typed(_PARAMETER.finditer(found["body"]), schemas.get(name, {})),
                    )
                    for found in _FUNCTION.finditer(text)
                ]
            if text.startswith(("{", "[")):
                return _json_calls(text)
            name = re.split(r"[\n<]", text, maxsplit=1)[0].strip()
            if not re.fullmatch(r"[\w.\-/]+", name):
                return []
            return [(name, _typed(_ARGUMENT.finditer(text), schemas.get(name, {})))]


def _deepseek(found: re.Match[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return a call of DeepSeek: `function<sep>name` and a fenced block, or `name<sep>{...}`."""
    head, body = found["head"].strip(), found["body"].strip()
    if head == "function":
        head, _, body = body.partition("\n")
    arguments = _loaded(_FENCE.sub("", body.strip()))
    return [(head.strip(), arguments)] if isinstance(arguments, dict) else []


def _mistral(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return calls of Mistral: a JSON list, or `name[ARGS]{...}` as often as there are calls."""
    if text.startswith(("[", "{")):
        return _json_calls(text)
    calls = []
    for part in text.split("[TOOL_CALLS]"):
        head, _, arguments = part.partition("[ARGS]")
        if not arguments:
            head, brace, rest = part.partition("{")
            arguments = brace + rest
        value = _loaded(arguments.strip())
        name = head.partition("[CALL_ID]")[0].strip()
        if name and isinstance(value, dict):
            calls.append((name, value))
    return calls


def _json_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return calls written as JSON: one, a list, or several one after the other."""
    decoder, at, values = json.JSONDecoder(), 0, []
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        while at < len(text) and text[at] in " \t\r\n;,":
            at += 1
    calls = [_json_call(value) for value in values]
    return [call for call in calls if call is not None] if all(calls) else []


def _json_call(value: Any) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name") or value.get("tool_name") or value.get("function")
    arguments: Any = next((value[k] for k in ("arguments", "parameters", "args") if k in value), {})
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, arguments


def _typed(found: Any, properties: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that came as text, read by the types of their schema."""
    values: dict[str, Any] = {}
    for match in found:
        name, text = match["name"].strip(), match["value"]
        text = text.removeprefix("\n").removesuffix("\n")
        schema = properties.get(name)
        kind = schema.get("type") if isinstance(schema, dict) else None
        values[name] = text
        if kind != "string":
            value = _loaded(text)
            is_read = value is not None or text.strip() == "null"
            values[name] = value if is_read else text
    return values


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _properties(parameters: str) -> dict[str, Any]:
    schema = _loaded(parameters)
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}
