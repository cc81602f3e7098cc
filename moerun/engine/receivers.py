"""Whoever asks for one answer and waits for it.

Knows: how parts become calls, and an outcome a value or an exception.
Does not know: the engine.
"""

from collections.abc import Callable

from moerun.engine.interface import AnswerPart, GenerationResult
from moerun.errors import EngineRefused


class LoneReceiver:
    """Hands the content on, and keeps the outcome."""

    def __init__(self, *, on_text: Callable[[str], None], asks: Callable[[], bool]) -> None:
        self._on_text = on_text
        self._asks = asks
        self._result: GenerationResult | None = None
        self._error: Exception | None = None

    def receive(self, part: AnswerPart) -> None:
        """Hand on the content of a part."""
        if part.text:
            self._on_text(part.text)

    def finish(self, result: GenerationResult) -> None:
        """Keep the result."""
        self._result = result

    def fail(self, error: Exception) -> None:
        """Keep the failure."""
        self._error = error

    def is_cancelled(self) -> bool:
        """Ask whether the rest is wanted."""
        return self._asks()

    def outcome(self) -> GenerationResult:
        """Return the result; raises what the answer failed of."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise EngineRefused("The answer was given up before it ended.")
        return self._result
