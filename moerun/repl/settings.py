"""What holds for a conversation whatever the model: parameters, system message, format, thinking.

Knows: which parameter becomes which field of a request.
Does not know: models, servers, or how a setting is typed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moerun.engine.interface import (
    AnswerFormat,
    GenerationRequest,
    Message,
    Overflow,
    Sampling,
    Thinking,
)
from moerun.store.parameters import PARAMETERS, Target

# More tokens than any answer gets: the engine ends one after some contexts' worth.
ENDLESS_TOKENS: Final = (1 << 31) - 1
_FILLS_THE_CONTEXT: Final = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What was set; `parameters` have the names of a Modelfile, and win over the model's own.

    `system` None is the model's own message, an empty one is none. `goes_on` has the oldest turns
    forgotten at a full context, where otherwise the answer ends or the question is refused.
    """

    parameters: tuple[tuple[str, Any], ...] = ()
    system: str | None = None
    format: AnswerFormat = field(default_factory=AnswerFormat)
    think: Thinking | None = None
    goes_on: bool = False

    def with_parameter(self, name: str, value: Any) -> "ChatSettings":
        """Return the settings with one parameter more, or another value of it."""
        return replace(self, parameters=tuple((dict(self.parameters) | {name: value}).items()))

    def of_target(self, target: Target) -> dict[str, Any]:
        """Return the parameters of one kind, by the name of what they set."""
        return {
            PARAMETERS[name].sets: value
            for name, value in self.parameters
            if PARAMETERS[name].target is target
        }

    def messages(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        """Return the turns behind the system message, where one was set."""
        if self.system is None:
            return tuple(turns)
        return (Message(role="system", content=self.system), *turns)

    def request(self, turns: Sequence[Message]) -> GenerationRequest:
        """Return what is asked of a model, before what it carries is put beside it."""
        of_answer = self.of_target(Target.ANSWER)
        limit = of_answer.get("maximum_tokens")
        shifts = self.goes_on and limit != _FILLS_THE_CONTEXT
        return GenerationRequest(
            messages=self.messages(turns),
            sampling=Sampling(**self.of_target(Target.SAMPLING)),
            maximum_tokens=ENDLESS_TOKENS if limit is not None and limit < 0 else limit,
            keep_tokens=of_answer.get("keep_tokens"),
            stop=tuple(of_answer.get("stop", ())),
            format=self.format,
            think=self.think,
            overflow=Overflow.SHIFT if shifts else Overflow.END,
            truncates=self.goes_on,
        )
