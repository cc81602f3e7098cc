"""One prompt and its answer.

Knows: what goes to standard output and what beside it, and the exit code of an interruption.
Does not know: who answers.
"""

import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import typer

from moerun.engine.interface import AnswerPart, Message, StopReason, Thinking
from moerun.errors import EXIT_INTERRUPTED
from moerun.report.answer_view import AnswerView, AnswerWriter, terminal_answer
from moerun.report.notices import tell

if TYPE_CHECKING:
    from moerun.cli.own_partner import OwnPartner
    from moerun.cli.run import RunWishes
    from moerun.cli.served_partner import ServedPartner
    from moerun.repl.partner import Spoken
    from moerun.repl.settings import ChatSettings

SCHEMA: Final = 1


class OneShot:
    """A prompt, put to whoever answers."""

    def __init__(
        self,
        partner: "OwnPartner | ServedPartner",
        settings: "ChatSettings",
        wishes: "RunWishes",
        *,
        started_s: float,
    ) -> None:
        self._partner = partner
        self._settings = settings
        self._wishes = wishes
        self._started_s = started_s

    def answer(self, text: str) -> None:
        """Answer and tell how it went; exits with 130 when it was interrupted."""
        from moerun.cli.open_model import say

        wishes = self._wishes
        if not text:
            self._load()
            return
        view = _SilentView() if wishes.as_json else self._view()
        question = Message(role="user", content=text)
        spoken = self._partner.answer(self._settings, (question,), view.show)
        spoken = replace(spoken, total_s=self._total_s)
        view.finish()
        if wishes.as_json:
            self._print_json(view.text, view.thinking, spoken)
        for note in () if wishes.is_quiet else spoken.result.notes:
            say(f"Note: {note}")
        if wishes.is_verbose:
            tell(*self._partner.figures(spoken))
        if spoken.result.stop_reason is StopReason.CANCELLED:
            raise typer.Exit(EXIT_INTERRUPTED)

    @property
    def _total_s(self) -> float:
        return time.monotonic() - self._started_s

    def _load(self) -> None:
        """Load and ask nothing, as to have the model at hand later."""
        from moerun.cli.open_model import say

        self._partner.warm_up(self._settings)
        if self._wishes.as_json:
            self._print_json("", "", None)
        elif not self._wishes.is_quiet:
            say(f"{self._partner.name} was loaded; nothing was asked")

    def _view(self) -> AnswerView:
        """Return how the answer is shown; in a pipe standard output holds the content alone."""
        wishes = self._wishes
        if sys.stdout.isatty():
            from moerun.report.terminal import answer_columns, has_colours

            return terminal_answer(
                sys.stdout,
                columns=answer_columns() if wishes.wraps else None,
                shows_thinking=not wishes.hides_thinking,
                is_coloured=has_colours(),
            )
        content = AnswerWriter(sys.stdout, is_terminal=False)
        if self._settings.think in (None, Thinking.OFF) or wishes.hides_thinking:
            return AnswerView(content, thinking=None)
        aside = AnswerWriter(sys.stderr, is_terminal=sys.stderr.isatty())
        return AnswerView(content, thinking=aside, marks=sys.stderr)

    def _print_json(self, answer: str, thinking: str, spoken: "Spoken | None") -> None:
        facts: dict[str, Any] = self._partner.document(answer, spoken, total_s=self._total_s)
        document = {"schema": SCHEMA, **facts, "thinking": thinking}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=not _speaks_unicode()))


class _SilentView(AnswerView):
    """An answer that is printed when it is whole."""

    def __init__(self) -> None:
        self._parts: list[AnswerPart] = []

    def show(self, part: AnswerPart) -> None:
        """Keep what came."""
        self._parts.append(part)

    def finish(self) -> None:
        """Nothing is open."""

    @property
    def text(self) -> str:
        """Return the content so far."""
        return "".join(part.text for part in self._parts)

    @property
    def thinking(self) -> str:
        """Return what the model thought so far."""
        return "".join(part.thinking for part in self._parts)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
