"""Where a model thinks and where it answers: the marks between the two, in a stream of text.

Knows: tags around thinking, the channels of gpt-oss, and what of a text could become a mark.
Does not know: tokens, tools, or how thinking is shown.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from moerun.engine.pieces import overlap


class TextKind(StrEnum):
    """What a text is: thoughts, the answer, or a call of a tool in a channel of its own."""

    THINKING = "thinking"
    CONTENT = "content"
    CALL = "call"


Parts = tuple[tuple[TextKind, str], ...]


class Splitter(Protocol):
    """Sorts a text as it comes."""

    @property
    def is_content(self) -> bool:
        """Whether what comes next is certain to be content."""
        ...

    def may_open(self, text: str) -> bool:
        """Whether a text that comes next may belong to what stands before the content."""
        ...

    def feed(self, text: str) -> Parts:
        """Return what is certain now."""
        ...

    def finish(self) -> Parts:
        """Return what was held back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingTags:
    """What stands before and behind the thoughts."""

    opening: str
    closing: str


# As the templates of published models write them: Qwen, DeepSeek, GLM and most; Seed-OSS;
# Magistral; Command A.
KNOWN_TAGS: Final = (
    ThinkingTags(opening="<think>", closing="</think>"),
    ThinkingTags(opening="<seed:think>", closing="</seed:think>"),
    ThinkingTags(opening="[THINK]", closing="[/THINK]"),
    ThinkingTags(opening="<|START_THINKING|>", closing="<|END_THINKING|>"),
)
CHANNEL: Final = "<|channel|>"
MESSAGE: Final = "<|message|>"
START: Final = "<|start|>"
_BODY_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>", START, CHANNEL)
CHANNEL_MARKS: Final = (CHANNEL, MESSAGE, START, "<|end|>", "<|call|>", "<|return|>")


def tags_of(template: str) -> ThinkingTags | None:
    """Return the tags that a chat template speaks of."""
    return next((tags for tags in KNOWN_TAGS if tags.closing in template), None)


def has_channels(template: str) -> bool:
    """Whether a template is of the kind of gpt-oss."""
    return CHANNEL in template and MESSAGE in template


class _State(StrEnum):
    BEFORE = "before"
    INSIDE = "inside"
    AFTER = "after"
    CONTENT = "content"


class TagSplitter:
    """Splits by tags. Blank space around the thoughts is nobody's.

    `prompt` tells where the answer begins: some templates open the tag themselves, and close it
    at once when nothing is to be thought.
    """

    def __init__(self, tags: ThinkingTags, *, prompt: str) -> None:
        self._tags = tags
        end = prompt.rstrip()
        if end.endswith(tags.opening):
            self._state = _State.INSIDE
        elif end.endswith(tags.closing):
            self._state = _State.AFTER
        else:
            self._state = _State.BEFORE
        self._held = ""
        self._has_thought = False

    @property
    def is_content(self) -> bool:
        """Whether what comes next is certain to be content."""
        return self._state in (_State.AFTER, _State.CONTENT)

    def may_open(self, text: str) -> bool:
        """Whether a text that comes next may belong to what stands before the content."""
        if self._state is _State.INSIDE:
            return True
        if self._state is not _State.BEFORE:
            return False
        ahead = (self._held + text).lstrip()
        return self._tags.opening.startswith(ahead) or ahead.startswith(self._tags.opening)

    def feed(self, text: str) -> Parts:
        """Return what is certain now."""
        self._held += text
        parts: list[tuple[TextKind, str]] = []
        while (step := self._step()) is not None:
            if step[1]:
                parts.append(step)
        return tuple(parts)

    def finish(self) -> Parts:
        """Return what was held back."""
        held, self._held = self._held, ""
        match self._state:
            case _State.INSIDE:
                held = held.rstrip() if self._has_thought else held.strip()
                return ((TextKind.THINKING, held),) if held else ()
            case _State.AFTER:
                return ()
            case _State.BEFORE | _State.CONTENT:
                return ((TextKind.CONTENT, held),) if held else ()

    def _step(self) -> tuple[TextKind, str] | None:
        """Take one step; None when more text is needed."""
        match self._state:
            case _State.BEFORE:
                return self._before()
            case _State.INSIDE:
                return self._inside()
            case _State.AFTER:
                self._held = self._held.lstrip()
                if not self._held:
                    return None
                self._state = _State.CONTENT
                return TextKind.CONTENT, ""
            case _State.CONTENT:
                held, self._held = self._held, ""
                return (TextKind.CONTENT, held) if held else None

    def _before(self) -> tuple[TextKind, str] | None:
        ahead = self._held.lstrip()
        if ahead.startswith(self._tags.opening):
            self._held = ahead[len(self._tags.opening) :]
            self._state = _State.INSIDE
            return TextKind.THINKING, ""
        if self._tags.opening.startswith(ahead):
            return None
        self._state = _State.CONTENT
        return TextKind.CONTENT, ""

    def _inside(self) -> tuple[TextKind, str] | None:
        if not self._has_thought:
            self._held = self._held.lstrip()
        thought, mark, rest = self._held.partition(self._tags.closing)
        if mark:
            self._held, self._state = rest, _State.AFTER
            return TextKind.THINKING, thought.rstrip()
        keep = overlap(thought, self._tags.closing)
        sure = thought[: len(thought) - keep].rstrip()
        if not sure:
            return None
        self._has_thought = True
        self._held = self._held[len(sure) :]
        return TextKind.THINKING, sure


class ChannelSplitter:
    """Splits by the channels of gpt-oss: analysis is thought, a recipient makes a call.

    Source of the form: the template in the model's file, and openai/harmony's description of it.
    A call leaves as the recipient's name, a newline, and the arguments.
    """

    def __init__(self) -> None:
        self._held = ""
        self._kind: TextKind | None = None
        self._call = ""

    @property
    def is_content(self) -> bool:
        """Whether what comes next is certain to be content."""
        return self._kind is TextKind.CONTENT

    def may_open(self, text: str) -> bool:
        """Whether a text that comes next may belong to what stands before the content."""
        return self._kind is not TextKind.CONTENT

    def feed(self, text: str) -> Parts:
        """Return what is certain now."""
        self._held += text
        parts: list[tuple[TextKind, str]] = []
        while (step := self._step()) is not None:
            if step[1]:
                parts.append(step)
        return tuple(parts)

    def finish(self) -> Parts:
        """Return what was held back; a call that was cut off is one all the same."""
        held, self._held = self._held, ""
        if self._kind is TextKind.CALL:
            return ((TextKind.CALL, self._call + held),)
        if self._kind is None:
            return ()  # a header without a message
        return ((self._kind, held),) if held else ()

    def _step(self) -> tuple[TextKind, str] | None:
        return self._header() if self._kind is None else self._body(self._kind)

    def _header(self) -> tuple[TextKind, str] | None:
        text = self._held.lstrip()
        may_begin = any(word.startswith(text[: len(word)]) for word in ("assistant", "to="))
        is_header = text.startswith("<") or "to=" in text or may_begin
        if text and not is_header:
            self._kind, self._held = TextKind.CONTENT, text
            return TextKind.CONTENT, ""
        header, mark, rest = self._held.partition(MESSAGE)
        if not mark:
            return None
        self._held = rest
        _, to, recipient = header.partition("to=")
        if to:
            name = recipient.split()[0].split("<")[0] if recipient.split() else ""
            self._kind = TextKind.CALL
            self._call = name.removeprefix("functions.") + "\n"
        elif header.rpartition(CHANNEL)[2].strip().startswith("analysis"):
            self._kind = TextKind.THINKING
        else:
            self._kind = TextKind.CONTENT
        return self._kind, ""

    def _body(self, kind: TextKind) -> tuple[TextKind, str] | None:
        found = [(at, end) for end in _BODY_ENDS if (at := self._held.find(end)) >= 0]
        if found:
            at, end = min(found)
            body = self._held[:at]
            self._held = self._held[at + (0 if end == CHANNEL else len(end)) :]
            self._kind = None
            if kind is TextKind.CALL:
                body, self._call = self._call + body, ""
            return kind, body
        keep = max(overlap(self._held, end) for end in _BODY_ENDS)
        sure = self._held[: len(self._held) - keep]
        if not sure:
            return None
        self._held = self._held[len(sure) :]
        if kind is TextKind.CALL:
            self._call += sure
            return kind, ""
        return kind, sure
