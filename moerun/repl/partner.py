"""Whom a conversation is held with: a model in a runner of one's own, or one of a server.

Knows: what a conversation asks of it.
Does not know: processes or HTTP; both kinds stand in moerun.cli.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from moerun.engine.interface import AnswerPart, GenerationResult, Message
from moerun.repl.settings import ChatSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """How an answer went, and how long loading took before it, and all of it."""

    result: GenerationResult
    load_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What can be told of a model; `turns` are the messages that it carries."""

    info: tuple[str, ...]
    license: str = ""
    modelfile: str = ""
    parameters: tuple[str, ...] = ()
    system: str = ""
    template: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    can_think: bool = False


class Partner(Protocol):
    """A model that answers."""

    @property
    def name(self) -> str:
        """Its name, as it was asked for."""
        ...

    def answer(
        self,
        settings: ChatSettings,
        turns: Sequence[Message],
        on_part: Callable[[AnswerPart], None],
    ) -> Spoken:
        """Answer; Ctrl-C ends the answer early, with a result."""
        ...

    def figures(self, spoken: Spoken) -> tuple[str, ...]:
        """Return the timing block of an answer, and what else is worth telling of it."""
        ...

    def card(self) -> ModelCard:
        """Look up what can be told of the model."""
        ...

    def check_parameter(self, name: str, value: object) -> None:
        """Refuse a parameter that would have no effect here; UsageError."""
        ...

    def load(self, name: str, settings: ChatSettings) -> None:
        """Go on with another model; what is raised leaves the model of before."""
        ...

    def save(self, name: str, settings: ChatSettings, turns: Sequence[Message]) -> None:
        """Keep model, settings and turns under a name."""
        ...

    def model_names(self) -> tuple[str, ...]:
        """Return the names that `load` takes."""
        ...

    def show_memory(self) -> None:
        """Print what memory the model uses now."""
        ...
