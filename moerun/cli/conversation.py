"""A conversation on a terminal: a line, an answer, a line.

Knows: the prompt, the commands that begin with a slash, Ctrl-C and Ctrl-D.
Does not know: how a model was loaded, or how a terminal edits lines.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from moerun.engine.interface import GenerationRequest, GenerationResult, Message, Sampling
from moerun.runner.carried import Carried

if TYPE_CHECKING:
    from moerun.cli.open_model import OpenedModel

PROMPT: Final = ">>> "
CONTINUED: Final = "... "
_QUOTES: Final = '"""'
_LEAVE_HINT: Final = "Use Ctrl + d or /bye to exit."
_HELP: Final = (
    "/set system TEXT   replace the system message",
    "/show info         the model and how it is placed",
    "/show system       the system message",
    "/show parameters   how tokens are chosen",
    "/clear             forget the conversation, keep the system message",
    "/bye               leave",
    "/?                 this list",
    '"""                begins and ends a text of several lines',
    "Ctrl-C ends an answer, Ctrl-D leaves.",
)


class Answering(Protocol):
    """What a conversation needs of a loaded model."""

    def answer(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> GenerationResult:
        """Answer; Ctrl-C ends the answer early, with a result."""
        ...

    def describe(self) -> tuple[str, ...]:
        """Return lines about the model and its placement."""
        ...

    def parameters(self) -> tuple[str, ...]:
        """Return lines about how tokens are chosen."""
        ...


class LoadedAnswering:
    """A model in its runner, as a conversation sees it."""

    def __init__(self, opened: "OpenedModel", sampling: Sampling, *, is_verbose: bool) -> None:
        self._opened = opened
        self._sampling = sampling
        self._is_verbose = is_verbose

    def answer(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> GenerationResult:
        """Answer, and write down what memory it took."""
        from moerun.cli.run import print_figures
        from moerun.runner.interruption import interrupts

        if not self._opened.runner.is_alive:  # a worker was lost, and the runner with it
            self._opened.load_again()
        started_s = time.monotonic()
        with interrupts(self._opened.runner.cancel):
            result = self._opened.runner.generate(request, on_text=on_text)
        if self._is_verbose:
            sys.stdout.flush()
            total_s = time.monotonic() - started_s
            print_figures(self._opened, result, load_s=0.0, total_s=total_s)
        self._opened.refresh_record()
        return result

    def describe(self) -> tuple[str, ...]:
        """Return lines about the model and its placement."""
        model = self._opened.model
        return (
            f"model           {model.name}",
            f"architecture    {model.architecture}",
            f"quantization    {model.quantization}",
            f"context         {self._opened.loaded.report.context_tokens:,} tokens",
            f"placement       {self._opened.mode}",
        )

    def parameters(self) -> tuple[str, ...]:
        """Return what the flags set, and what the model's file does."""
        from dataclasses import asdict

        chosen = {
            name: value for name, value in asdict(self._sampling).items() if value not in (None, ())
        }
        of_model = self._opened.runner.model_defaults
        lines = [f"{name} {value} (as asked for)" for name, value in chosen.items()]
        lines += [
            f"{name} {value:g} (from the model)"
            for name, value in of_model.items()
            if name not in chosen
        ]
        return tuple(lines) or ("nothing is set; llama.cpp's defaults hold",)


class Conversation:
    """The turns so far, and what a line does to them. `read_line` raises EOFError at Ctrl-D."""

    def __init__(
        self,
        answering: Answering,
        *,
        read_line: Callable[[str], str],
        output: TextIO,
        notices: TextIO,
        carried: Carried | None = None,
        system: str | None = None,
    ) -> None:
        self._answering = answering
        self._read_line = read_line
        self._output = output
        self._notices = notices
        self._carried = carried or Carried()
        self._system = self._carried.system if system is None else system
        self._turns: tuple[Message, ...] = ()
        self._told: set[str] = set()

    def hold(self) -> None:
        """Read lines and answer them until the end; what kills the runner is raised."""
        while True:
            try:
                line = self._read()
            except EOFError:
                self._output.write("\n")
                return
            except KeyboardInterrupt:
                self._output.write(f"\n{_LEAVE_HINT}\n")
                continue
            if line.startswith("/"):
                if self._obey(line.strip()):
                    return
            elif line.strip():
                self._answer(line)

    def _read(self) -> str:
        """Return what was typed; a text in triple quotes may take several lines."""
        line = self._read_line(PROMPT)
        head, quotes, text = line.partition(_QUOTES)
        if not quotes or head.strip() not in ("", "/set system"):
            return line
        while _QUOTES not in text:
            text += "\n" + self._read_line(CONTINUED)
        return head + text.partition(_QUOTES)[0]

    def _answer(self, text: str) -> None:
        from moerun.errors import EngineCrashed, MoerunError, UsageError, WorkerLost
        from moerun.report.answer_view import AnswerWriter
        from moerun.report.plain import error_lines

        question = Message(role="user", content=text)
        request = self._carried.request(self._system, (*self._turns, question))
        writer = AnswerWriter(self._output, is_terminal=True)
        try:
            result = self._answering.answer(request, writer.write)
        except WorkerLost as error:
            writer.finish()
            self._output.write("\n")
            self._say(*error_lines(error))
            return
        except EngineCrashed:
            raise
        except MoerunError as error:
            # Too long for the context, say: the turn is dropped and the conversation goes on.
            writer.finish()
            self._say(*error_lines(error))
            if self._turns and isinstance(error, UsageError):
                self._say("Type /clear to begin anew.")
            return
        writer.finish()
        self._output.write("\n")
        self._say(*(f"Note: {note}" for note in result.notes if note not in self._told))
        self._told |= set(result.notes)
        self._turns += (question, Message(role="assistant", content=writer.text))

    def _obey(self, line: str) -> bool:
        """Do what a command says; whether it ends the conversation."""
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        match verb, rest.partition(" ")[0]:
            case (("/bye" | "/exit"), ""):
                return True
            case "/clear", "":
                self._turns = ()
                self._say("Cleared session context")
            case (("/?" | "/help"), _):
                self._say(*_HELP)
            case "/set", "system":
                self._system = rest.removeprefix("system").strip() or None
                self._say("Set system message." if self._system else "Removed system message.")
            case "/show", "info":
                self._say(*self._answering.describe())
            case "/show", "system":
                self._say(self._system or "No system message is set.")
            case "/show", "parameters":
                self._say(*self._answering.parameters())
            case (("/set" | "/show"), _):
                self._say(f"'{line}' is not known here. Type /? for help")
            case _:
                self._say(f"Unknown command '{verb}'. Type /? for help")
        return False

    def _say(self, *lines: str) -> None:
        from moerun.report.answer_view import visible

        self._notices.write("".join(f"{visible(line)}\n" for line in lines))
        self._notices.flush()


def hold_conversation(opened: "OpenedModel", carried: Carried, *, is_verbose: bool) -> None:
    """Hold a conversation on this terminal."""
    from moerun.cli.line_history import line_history

    conversation = Conversation(
        LoadedAnswering(opened, carried.sampling, is_verbose=is_verbose),
        read_line=input,
        output=sys.stdout,
        notices=sys.stderr,
        carried=carried,
    )
    with line_history():
        conversation.hold()
