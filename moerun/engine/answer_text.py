"""From the pieces of an answer to its parts: characters made whole, thinking, tool calls, stops.

Knows: in which order an answer is taken apart.
Does not know: tokens, the engine, or what the marks of a model are.
"""

from moerun.engine.interface import AnswerPart, TokenLogprob, ToolCall
from moerun.engine.pieces import PieceDecoder, StopMatcher
from moerun.engine.thinking import Splitter, TextKind
from moerun.engine.tool_calls import ToolReader


class AnswerText:
    """Takes an answer apart as it comes; what could still become a mark is held back."""

    def __init__(
        self,
        *,
        stop: tuple[str, ...] = (),
        splitter: Splitter | None = None,
        tools: ToolReader | None = None,
    ) -> None:
        """Prepare; without a splitter all is content, without a reader nothing is a call."""
        self._pieces = PieceDecoder()
        self._stops = StopMatcher(stop)
        self._splitter = splitter
        self._tools = tools
        self._logprobs: list[TokenLogprob] = []
        self.tool_calls: list[ToolCall] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.is_hit

    @property
    def stop_string(self) -> str | None:
        """The stop string that was met."""
        return self._stops.hit

    @property
    def is_content(self) -> bool:
        """Whether what comes next is certain to be content."""
        return self._splitter is None or self._splitter.is_content

    def may_open(self, piece: bytes) -> bool:
        """Whether a piece may belong to what stands before the content, such as its marks."""
        if self._splitter is None:
            return False
        return self._splitter.may_open(piece.decode("utf-8", "replace"))

    def note_logprob(self, logprob: TokenLogprob) -> None:
        """Keep a token's figures for the part that comes next."""
        self._logprobs.append(logprob)

    def feed(self, piece: bytes) -> AnswerPart | None:
        """Return what can be shown now, None for nothing."""
        return self._take(self._pieces.feed(piece), is_end=False)

    def finish(self) -> AnswerPart | None:
        """Return what was held back."""
        return self._take(self._pieces.finish(), is_end=True)

    def _take(self, text: str, *, is_end: bool) -> AnswerPart | None:
        thinking, content = self._split(text, is_end=is_end)
        content = self._stops.feed(content)
        if is_end:
            content += self._stops.finish()
        calls: tuple[ToolCall, ...] = ()
        if self._tools is not None:
            content, calls = self._tools.feed(content)
            if is_end:
                rest, late = self._tools.finish()
                content, calls = content + rest, (*calls, *late)
        self.tool_calls += calls
        if not (thinking or content or calls or (self._logprobs and is_end)):
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        return AnswerPart(text=content, thinking=thinking, tool_calls=calls, logprobs=logprobs)

    def _split(self, text: str, *, is_end: bool) -> tuple[str, str]:
        if self._splitter is None:
            return "", text
        parts = self._splitter.feed(text)
        if is_end:
            parts = (*parts, *self._splitter.finish())
        of_kind = {kind: "".join(t for k, t in parts if k is kind) for kind in TextKind}
        if self._tools is not None and of_kind[TextKind.CALL]:
            self._tools.call(of_kind[TextKind.CALL])
        return of_kind[TextKind.THINKING], of_kind[TextKind.CONTENT]
