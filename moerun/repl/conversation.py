"""A conversation on a terminal: a line, an answer, a line.

Knows: what each command does to the settings and the turns, Ctrl-C and Ctrl-D.
Does not know: how a model was loaded or is reached, or how a terminal edits lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TextIO, assert_never

from moerun.engine.interface import AnswerFormat, AnswerPart, FormatKind, Message, Thinking
from moerun.errors import MoerunError, UsageError
from moerun.repl import commands
from moerun.repl.commands import LONG_QUOTES, Command, read_command, takes_long_text
from moerun.repl.help import help_lines
from moerun.repl.history import TypedLines
from moerun.repl.partner import ModelCard, Partner
from moerun.repl.settings import ChatSettings
from moerun.report.answer_view import AnswerView, terminal_answer, visible
from moerun.report.plain import error_lines

PROMPT: Final = ">>> "
CONTINUED: Final = "... "
_LEAVE_HINT: Final = "Use Ctrl + d or /bye to exit."


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where a conversation is shown, and how it reads lines.

    `read_line` takes a prompt, and raises EOFError at Ctrl-D, and KeyboardInterrupt, with what
    was typed, at Ctrl-C. `columns` tells how wide the terminal is now.
    """

    read_line: Callable[[str], str]
    output: TextIO
    notices: TextIO
    typed: TypedLines
    columns: Callable[[], int]
    is_coloured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """How answers are shown."""

    wraps: bool = True
    is_verbose: bool = False
    shows_thinking: bool = True


class Conversation:
    """The turns so far, and what a line does to them."""

    def __init__(
        self, partner: Partner, screen: Screen, settings: ChatSettings, showing: Showing
    ) -> None:
        self._partner = partner
        self._screen = screen
        self._settings = replace(settings, goes_on=True)
        self._showing = showing
        self._turns: tuple[Message, ...] = ()
        self._told: set[str] = set()

    def hold(self) -> None:
        """Read lines and answer them until the end."""
        self._show_turns(self._partner.card().turns)
        while True:
            try:
                line = self._read()
            except EOFError:
                self._screen.output.write("\n")
                return
            except KeyboardInterrupt as interruption:
                if not any(interruption.args):
                    self._screen.output.write(f"\n{_LEAVE_HINT}\n")
                continue
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line.strip():
                self._answer(line)

    def _read(self) -> str:
        """Return what was typed; a text in triple quotes may take several lines."""
        line = self._screen.read_line(PROMPT)
        head, quotes, text = line.partition(LONG_QUOTES)
        if not quotes or not takes_long_text(head):
            return line
        while LONG_QUOTES not in text:
            text += "\n" + self._screen.read_line(CONTINUED)
        return head + text.partition(LONG_QUOTES)[0]

    def _show_turns(self, turns: Sequence[tuple[str, str]]) -> None:
        """Show the messages that a model carries, as if they had been said."""
        for role, text in turns:
            view = self._view()
            view.show(AnswerPart(text=f"{PROMPT}{text}" if role == "user" else text))
            view.finish()
            self._screen.output.write("" if role == "user" else "\n")
        self._screen.output.flush()

    def _answer(self, text: str) -> None:
        question = Message(role="user", content=text)
        view = self._view()
        turns = (*self._turns, question)
        try:
            spoken = self._partner.answer(self._settings, turns, view.show)
        except MoerunError as error:
            # Too long for the context, or the runner died: the turn is dropped, and what it takes
            # to answer the next one is loaded then.
            view.finish()
            self._say(*error_lines(error))
            if self._turns and isinstance(error, UsageError):
                self._say("Type /clear to begin anew.")
            return
        view.finish()
        self._screen.output.write("\n")
        self._screen.output.flush()
        notes = spoken.result.notes
        self._say(*(f"Note: {note}" for note in notes if note not in self._told))
        self._told |= set(notes)
        if self._showing.is_verbose:
            self._say(*self._partner.figures(spoken))
        answer = Message(role="assistant", content=view.text, thinking=view.thinking)
        self._turns += (question, answer)

    def _view(self) -> AnswerView:
        return terminal_answer(
            self._screen.output,
            columns=self._screen.columns() if self._showing.wraps else None,
            shows_thinking=self._showing.shows_thinking,
            is_coloured=self._screen.is_coloured,
        )

    def _obey(self, line: str) -> bool:
        """Do what a command says; whether the conversation goes on."""
        try:
            command = read_command(line)
            if isinstance(command, commands.Leave):
                return False
            self._do(command)
        except MoerunError as error:
            hint = () if error.hint is None else (f"Hint: {error.hint}",)
            self._say(error.message, *hint)
        return True

    def _do(self, command: Command) -> None:
        match command:
            case commands.Clear():
                self._turns = ()
                self._say("Cleared session context")
            case commands.Help(topic=topic):
                self._say(*help_lines(topic))
            case commands.Show(part=part):
                self._show(part)
            case commands.ShowMemory():
                self._partner.show_memory()
            case commands.ListModels():
                self._say(*self._partner.model_names())
            case commands.Load(name=name):
                self._load(name)
            case commands.Save(name=name):
                self._partner.save(name, self._settings, self._turns)
                self._say(f"Created new model '{name}'")
            case commands.Leave():
                return
            case _:
                self._set(command)

    def _set(
        self,
        command: commands.SetParameter
        | commands.SetSystem
        | commands.SetFormat
        | commands.SetThinking
        | commands.SetHistory
        | commands.SetVerbose
        | commands.SetWordwrap,
    ) -> None:
        match command:
            case commands.SetParameter(name=name, value=value):
                self._partner.check_parameter(name, value)
                kept = list(value) if isinstance(value, tuple) else value
                self._settings = self._settings.with_parameter(name, kept)
                said = ", ".join(value) if isinstance(value, tuple) else str(value)
                self._say(f"Set parameter '{name}' to '{said}'")
            case commands.SetSystem(text=text):
                self._settings = replace(self._settings, system=text)
                self._say("Set system message." if text else "Removed system message.")
            case commands.SetFormat(is_json=is_json):
                kind = FormatKind.JSON if is_json else FormatKind.TEXT
                self._settings = replace(self._settings, format=AnswerFormat(kind=kind))
                self._say("Set format to 'json' mode." if is_json else "Disabled format.")
            case commands.SetThinking(level=level):
                self._set_thinking(level)
            case commands.SetHistory(is_kept=is_kept):
                self._screen.typed.is_kept = is_kept
                self._say("History is kept." if is_kept else "Nothing more is kept.")
            case commands.SetVerbose(is_verbose=is_verbose):
                self._showing = replace(self._showing, is_verbose=is_verbose)
                self._say(f"Set '{'verbose' if is_verbose else 'quiet'}' mode.")
            case commands.SetWordwrap(wraps=wraps):
                self._showing = replace(self._showing, wraps=wraps)
                self._say(f"Set '{'wordwrap' if wraps else 'nowordwrap'}' mode.")
            case _:
                assert_never(command)

    def _set_thinking(self, level: Thinking) -> None:
        if level is not Thinking.OFF and not self._partner.card().can_think:
            raise UsageError(f"{self._partner.name} does not think, so nothing was set.")
        self._settings = replace(self._settings, think=level)
        match level:
            case Thinking.OFF:
                self._say("Set 'nothink' mode.")
            case Thinking.ON:
                self._say("Set 'think' mode.")
            case _:
                self._say(f"Set 'think' mode to '{level}'.")

    def _load(self, name: str) -> None:
        """Go on with another model: a new conversation under the same settings."""
        self._say(f"Loading model '{name}'")
        self._partner.load(name, self._settings)
        self._turns = ()
        card = self._partner.card()
        if self._settings.think not in (None, Thinking.OFF) and not card.can_think:
            self._settings = replace(self._settings, think=None)
        self._show_turns(card.turns)

    def _show(self, part: str) -> None:
        card = self._partner.card()
        texts = {
            "info": card.info,
            "license": _lines(card.license) or ("No license is told of this model.",),
            "modelfile": _lines(card.modelfile),
            "parameters": self._parameter_lines(card),
            "system": _lines(
                card.system if self._settings.system is None else self._settings.system
            )
            or ("No system message is set.",),
            "template": _lines(card.template) or ("No prompt template is told of this model.",),
        }
        self._say(*texts[part])

    def _parameter_lines(self, card: ModelCard) -> tuple[str, ...]:
        of_model = card.parameters or ("The model sets none; llama.cpp's defaults hold.",)
        lines = ["Model defined parameters:", *(f"  {line}" for line in of_model)]
        if self._settings.parameters:
            lines += ["", "User defined parameters:"]
            lines += [f"  {name:<30} {value}" for name, value in self._settings.parameters]
        return tuple(lines)

    def _say(self, *lines: str) -> None:
        self._screen.notices.write("".join(f"{visible(line)}\n" for line in lines))
        self._screen.notices.flush()


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.splitlines())
