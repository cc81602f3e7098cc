"""The commands of a conversation: one table, from which lines are read, completed and explained.

Pure: a line becomes a value, and nothing happens.

Knows: words, their spelling, and what each command takes.
Does not know: models, terminals, or what a command does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moerun.engine.interface import Thinking
from moerun.errors import UsageError
from moerun.store.parameters import LISTED, PARAMETERS, Target, read_parameter

LONG_QUOTES: Final = '"""'
SHOWN_PARTS: Final = ("info", "license", "modelfile", "parameters", "system", "template")
_SET: Final = "/set parameter"
_LEVELS: Final = tuple(level.value for level in Thinking if level not in ("on", "off"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """End the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear:
    """Forget the turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """Explain; `topic` is empty, `set`, `show`, `shortcuts` or `parameters`."""

    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Show a part of the model, one of `SHOWN_PARTS`."""

    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowMemory:
    """Show what memory the model uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListModels:
    """List the models that can be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Go on with another model, in a new conversation."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Keep model, settings and conversation as a model of that name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetParameter:
    """Set one parameter of ollama's or moerun's names."""

    name: str
    value: int | float | bool | str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSystem:
    """Replace the system message; an empty one removes that of the model."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFormat:
    """Ask for JSON, or for any text again."""

    is_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetThinking:
    """Say how much the model is to think."""

    level: Thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHistory:
    """Keep what is typed from now on, or do not."""

    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVerbose:
    """Print timings after each answer, or do not."""

    is_verbose: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWordwrap:
    """Break lines between words, or leave it to the terminal."""

    wraps: bool


Command = (
    Leave
    | Clear
    | Help
    | Show
    | ShowMemory
    | ListModels
    | Load
    | Save
    | SetParameter
    | SetSystem
    | SetFormat
    | SetThinking
    | SetHistory
    | SetVerbose
    | SetWordwrap
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One command: its words, what it takes, what it does, and how the rest of its line is read.

    `aliases` are other spellings that help and completion leave out.
    """

    words: str
    takes: str
    explanation: str
    read: Callable[[str], Command]
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """Return how it is typed."""
        return f"{self.words} {self.takes}".rstrip()


def read_command(line: str) -> Command:
    """Return what a line that begins with a slash means; UsageError with one sentence."""
    words = line.split()
    for row in _BY_LENGTH:
        for spelling in (row.words, *row.aliases):
            named = spelling.split()
            if words[: len(named)] == named:
                return row.read(_after(line, len(named)))
    if words[0] in ("/set", "/show"):
        if len(words) == 1:
            return Help(topic=words[0][1:])
        raise UsageError(f"Unknown command '{words[0]} {words[1][:80]}'. Type /? for help")
    raise UsageError(f"Unknown command '{words[0][:80]}'. Type /? for help")


def takes_long_text(head: str) -> bool:
    """Whether three quotes after this beginning of a line open a text of several lines."""
    return head.strip() in ("", "/set system")


def completions(line: str, model_names: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Return the words that may stand where the line ends, to replace its last, begun word.

    A blank follows those after which something more is typed.
    """
    if not line.startswith("/"):
        return ()
    *before, begun = line.split(" ")
    if before in (["/load"], ["/save"]):
        candidates: tuple[str, ...] = model_names()
    elif before == ["/set", "parameter"]:
        candidates = tuple(f"{name} " for name in PARAMETER_NAMES)
    elif before == ["/set", "think"]:
        candidates = _LEVELS
    elif before in (["/?"], ["/help"]):
        candidates = ("set", "show", "shortcuts")
    else:
        candidates = _next_words(before)
    return tuple(dict.fromkeys(word for word in candidates if word.startswith(begun)))


def _next_words(before: list[str]) -> tuple[str, ...]:
    """Return the words of the table that may follow these."""
    depth = len(before)
    found = []
    for row in ROWS:
        words = row.words.split()
        if words[:depth] == before != words:
            goes_on = len(words) > depth + 1 or row.takes.startswith("<")
            found.append(words[depth] + (" " if goes_on else ""))
    return tuple(found)


def _after(line: str, count: int) -> str:
    """Return what follows the first words of a line, its own blanks kept."""
    rest = line.strip()
    for _ in range(count):
        parts = rest.split(None, 1)
        rest = parts[1] if len(parts) > 1 else ""
    return rest


def _alone(command: Command) -> Callable[[str], Command]:
    """Return a reader of a command that takes nothing; what follows it is passed over."""
    return lambda _: command


def _load(rest: str) -> Command:
    return Load(name=_one_name("/load", rest))


def _save(rest: str) -> Command:
    return Save(name=_one_name("/save", rest))


def _one_name(command: str, rest: str) -> str:
    if len(rest.split()) != 1:
        raise UsageError(f"{command} takes the name of one model: {command} <model>")
    return rest


def _help(rest: str) -> Command:
    topic = {"shortcut": "shortcuts"}.get(rest.strip("/ "), rest.strip("/ "))
    if topic not in ("", "set", "show", "shortcuts", "parameters"):
        raise UsageError(f"There is no help on '{topic[:80]}'; /? lists what there is")
    return Help(topic=topic)


def _show(part: str) -> Callable[[str], Command]:
    return _alone(Show(part=part))


def _parameter(rest: str) -> Command:
    words = rest.split()
    if len(words) < 2:
        return Help(topic="parameters")
    name = words[0]
    parameter = PARAMETERS.get(name)
    if parameter is not None and parameter.target is Target.NOTHING:
        raise UsageError(f"{name} would have no effect: {parameter.why}")
    if name in LISTED:
        values = tuple(read_parameter(name, word, where=_SET) for word in words[1:])
        return SetParameter(name=name, value=values)
    return SetParameter(name=name, value=read_parameter(name, " ".join(words[1:]), where=_SET))


def _system(rest: str) -> Command:
    return SetSystem(text=rest)


def _format(rest: str) -> Command:
    if rest != "json":
        raise UsageError("/set format takes json: /set format json; /set noformat ends it")
    return SetFormat(is_json=True)


def _think(rest: str) -> Command:
    if rest and rest not in _LEVELS:
        raise UsageError(f"/set think takes nothing, or one of {', '.join(_LEVELS)}")
    return SetThinking(level=Thinking(rest or "on"))


ROWS: Final = (
    Row(
        words="/set parameter",
        takes="<name> <value>",
        explanation="Set a parameter; alone, list them",
        read=_parameter,
    ),
    Row(
        words="/set system", takes="<text>", explanation="Replace the system message", read=_system
    ),
    Row(
        words="/set format json", takes="", explanation="Have answers be JSON",
        read=lambda _: _format("json"),
    ),
    Row(
        words="/set noformat", takes="", explanation="Have answers be any text",
        read=_alone(SetFormat(is_json=False)),
    ),
    Row(
        words="/set history", takes="", explanation="Keep what is typed",
        read=_alone(SetHistory(is_kept=True)),
    ),
    Row(
        words="/set nohistory", takes="", explanation="Keep nothing more of what is typed",
        read=_alone(SetHistory(is_kept=False)),
    ),
    Row(
        words="/set wordwrap", takes="", explanation="Break lines between words",
        read=_alone(SetWordwrap(wraps=True)),
    ),
    Row(
        words="/set nowordwrap", takes="", explanation="Leave lines to the terminal",
        read=_alone(SetWordwrap(wraps=False)),
    ),
    Row(
        words="/set verbose", takes="", explanation="Print timings after each answer",
        read=_alone(SetVerbose(is_verbose=True)),
    ),
    Row(
        words="/set quiet", takes="", explanation="Print no timings",
        read=_alone(SetVerbose(is_verbose=False)),
    ),
    Row(
        words="/set think", takes="[level]", explanation="Have the model think first", read=_think
    ),
    Row(
        words="/set nothink", takes="", explanation="Have it answer at once",
        read=_alone(SetThinking(level=Thinking.OFF)),
    ),
    Row(
        words="/show info", takes="", explanation="What the model is, and where it lies",
        read=_show("info"),
    ),
    Row(words="/show license", takes="", explanation="Its license", read=_show("license")),
    Row(
        words="/show modelfile", takes="", explanation="A Modelfile that makes the same",
        read=_show("modelfile"),
    ),
    Row(
        words="/show parameters", takes="", explanation="Its parameters, and those set here",
        read=_show("parameters"),
    ),
    Row(words="/show system", takes="", explanation="The system message", read=_show("system")),
    Row(
        words="/show template", takes="", explanation="The template of its prompts",
        read=_show("template"),
    ),
    Row(
        words="/memory", takes="", explanation="What it uses of VRAM, RAM and SSD now",
        read=_alone(ShowMemory()),
    ),
    Row(
        words="/load", takes="<model>", explanation="Go on with another model, anew", read=_load
    ),
    Row(
        words="/save", takes="<model>",
        explanation="Keep model, settings and conversation under a name", read=_save,
    ),
    Row(words="/list", takes="", explanation="List the models", read=_alone(ListModels())),
    Row(
        words="/clear", takes="", explanation="Forget the conversation, keep the settings",
        read=_alone(Clear()),
    ),
    Row(words="/bye", takes="", explanation="Leave", read=_alone(Leave()), aliases=("/exit",)),
    Row(words="/?", takes="[topic]", explanation="This list", read=_help, aliases=("/help",)),
)  # fmt: skip
# `/set format` without its word is told what it takes.
_BY_LENGTH: Final = (
    *sorted(ROWS, key=lambda row: -len(row.words.split())),
    Row(words="/set format", takes="json", explanation="", read=_format),
)
PARAMETER_NAMES: Final = tuple(
    name for name, parameter in PARAMETERS.items() if parameter.target is not Target.NOTHING
)
