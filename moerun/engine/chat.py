"""A conversation as one prompt, through the model's own template.

A template is a program in a file from the network: it runs in `template_sandbox`, and whatever
it does ends in a prompt or in one sentence.

Knows: what templates of published models expect to find, and how to do without one.
Does not know: the engine, tokens, or clocks other than those it is given.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jinja2 import Template, TemplateError

from moerun.engine.interface import Message, Thinking, Tool
from moerun.engine.template_sandbox import TemplateEnvironment, TemplateRefusal, render
from moerun.engine.thinking import (
    CHANNEL_MARKS,
    ChannelSplitter,
    Splitter,
    TagSplitter,
    has_channels,
    tags_of,
)
from moerun.engine.tool_calls import TOOL_MARKS, ToolReader, tool_form
from moerun.errors import UnsupportedModel, UsageError

MAXIMUM_TEMPLATE_CHARACTERS: Final = 1_000_000

# What most models without a template were trained on; the roles stand in plain sight.
FALLBACK_TEMPLATE: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FALLBACK_STOP: Final = "<|im_end|>"
FALLBACK_NOTE: Final = "the model's file has no chat template; the ChatML form is used instead"
MERGED_SYSTEM_NOTE: Final = (
    "the model's template takes no system message; it stands before the first question instead"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A rendered conversation, and how its answer is to be read.

    `stop` is what the form itself ends answers with, `marks` the control tokens that the splitter
    and the reader of tool calls look for, `grammar` what the content is held to.
    """

    text: str
    stop: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
    splitter: Splitter | None = None
    tools: ToolReader | None = None
    grammar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWishes:
    """What goes into a template beside the conversation."""

    tools: tuple[Tool, ...] = ()
    think: Thinking | None = None


class ChatTemplate:
    """A model's template, compiled once."""

    def __init__(
        self,
        source: str | None,
        *,
        begin_text: str,
        end_text: str,
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
    ) -> None:
        """Compile the source, or the fallback for None; UnsupportedModel when it is no template.

        `begin_text` and `end_text` are how the model's control tokens are written; an empty one
        stays undefined, since templates ask.
        """
        self.is_fallback = source is None
        self._begin_text = begin_text
        self._end_text = end_text
        environment = TemplateEnvironment(now=now, monotonic_s=monotonic_s)
        self._source = FALLBACK_TEMPLATE if source is None else source
        self._tags = tags_of(self._source)
        self._has_channels = has_channels(self._source)
        self._template = _compile(environment, self._source)

    @property
    def can_think(self) -> bool:
        """Whether the template knows of thinking."""
        return self._tags is not None or self._has_channels

    @property
    def can_call(self) -> bool:
        """Whether the template knows of tools."""
        return "tools" in self._source or "tool_call" in self._source

    def render(self, messages: tuple[Message, ...], wishes: ChatWishes | None = None) -> ChatPrompt:
        """Return the prompt that asks for the next answer.

        Raises UsageError when the template refuses the conversation in its own words,
        UnsupportedModel when it fails or wants too much.
        """
        wishes = ChatWishes() if wishes is None else wishes
        if not messages:
            raise UsageError("The conversation is empty.")
        self._check(wishes)
        stop = (FALLBACK_STOP,) if self.is_fallback else ()
        notes = (FALLBACK_NOTE,) if self.is_fallback else ()
        try:
            return self._read_for(self._render(messages, wishes), wishes, stop=stop, notes=notes)
        except TemplateRefusal as refusal:
            merged = merge_system(messages)
            if merged == messages:
                raise _refused(refusal) from refusal
        try:
            text = self._render(merged, wishes)
        except TemplateRefusal as refusal:
            raise _refused(refusal) from refusal
        return self._read_for(text, wishes, stop=stop, notes=(*notes, MERGED_SYSTEM_NOTE))

    def read_written(self, text: str) -> ChatPrompt:
        """Return a prompt that another template wrote, whose answer is read as of this one."""
        return self._read_for(text, ChatWishes(), stop=(), notes=())

    def _check(self, wishes: ChatWishes) -> None:
        if wishes.think not in (None, Thinking.OFF) and not self.can_think:
            raise UsageError("This model does not support thinking.")
        if wishes.tools and not self.can_call:
            raise UsageError("This model does not support tools.")

    def _read_for(
        self,
        text: str,
        wishes: ChatWishes,
        *,
        stop: tuple[str, ...],
        notes: tuple[str, ...],
    ) -> ChatPrompt:
        """Return the prompt with what reads its answer."""
        splitter: Splitter | None = None
        marks: set[str] = set()
        if self._has_channels:
            splitter = ChannelSplitter()
            marks.update(CHANNEL_MARKS)
        elif self._tags is not None:
            splitter = TagSplitter(self._tags, prompt=text)
            marks.update((self._tags.opening, self._tags.closing))
        reader = None
        if wishes.tools:
            form = tool_form(self._source)
            reader = ToolReader(form, wishes.tools, new_id=new_call_id)
            marks.update(TOOL_MARKS)
        return ChatPrompt(
            text=text,
            stop=stop,
            notes=notes,
            marks=frozenset(marks),
            splitter=splitter,
            tools=reader,
        )

    def _render(self, messages: tuple[Message, ...], wishes: ChatWishes) -> str:
        variables: dict[str, Any] = {
            "messages": [_plain_message(message) for message in messages],
            "add_generation_prompt": True,
        }
        if wishes.tools:
            variables["tools"] = [_plain_tool(tool) for tool in wishes.tools]
        if self.can_think:
            is_on = wishes.think is not Thinking.OFF
            variables["enable_thinking"] = variables["thinking"] = is_on
            if wishes.think in _EFFORTS:
                variables["reasoning_effort"] = _EFFORTS[wishes.think]
        if self._begin_text:
            variables["bos_token"] = self._begin_text
        if self._end_text:
            variables["eos_token"] = self._end_text
        try:
            return render(self._template, variables)
        except TemplateRefusal:
            raise
        # The template is a stranger's program: any exception is one that it caused.
        except Exception as error:
            raise UnsupportedModel(
                f"The model's chat template fails: {_in_short(error)}.",
                hint="The model still answers a raw prompt.",
            ) from error


# What gpt-oss and others call the levels.
_EFFORTS: Final[dict[Thinking | None, str]] = {
    Thinking.LOW: "low",
    Thinking.MEDIUM: "medium",
    Thinking.HIGH: "high",
    Thinking.MAX: "high",
}


def new_call_id() -> str:
    """Return an id for a call; nine letters and digits, which Mistral's templates insist on."""
    return secrets.token_hex(5)[:9]


def _plain_message(message: Message) -> dict[str, Any]:
    """Return a message as templates find it; arguments of calls are objects there."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        plain["thinking"] = plain["reasoning_content"] = message.thinking
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _object(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        plain["name"] = plain["tool_name"] = message.tool_name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _plain_tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": _object(tool.parameters),
        },
    }


def _object(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("The arguments of a tool are no JSON object.") from error
    if not isinstance(value, dict):
        raise UsageError("The arguments of a tool are no JSON object.")
    return value


def without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation without its oldest turn; system messages and the last turn stay.

    What a tool answered goes with the turn that asked it.
    """
    old = [i for i, message in enumerate(messages[:-1]) if message.role != "system"]
    if not old:
        return messages
    end = old[0] + 1
    while end < len(messages) - 1 and messages[end].role == "tool":
        end += 1
    return (*messages[: old[0]], *messages[end:])


def merge_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation with its system messages at the head of the first user turn."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    rest = [m for m in messages if m.role != "system"]
    first = next((index for index, m in enumerate(rest) if m.role == "user"), None)
    if not system or first is None:
        return messages
    merged = Message(role="user", content=f"{system}\n\n{rest[first].content}")
    return (*rest[:first], merged, *rest[first + 1 :])


def _compile(environment: TemplateEnvironment, source: str) -> Template:
    if len(source) > MAXIMUM_TEMPLATE_CHARACTERS:
        raise UnsupportedModel(
            f"The model's chat template has {len(source):,} characters; "
            f"{MAXIMUM_TEMPLATE_CHARACTERS:,} are allowed."
        )
    try:
        return environment.from_string(source)
    # Hostile sources reach every corner of jinja2's and Python's own compilers.
    except Exception as error:
        raise UnsupportedModel(
            f"The model's chat template cannot be read: {_in_short(error)}.",
            hint="The model still answers a raw prompt.",
        ) from error


def _refused(refusal: TemplateRefusal) -> UsageError:
    return UsageError(
        f"The model's chat template does not take this conversation: {_in_short(refusal)}."
    )


def _in_short(error: Exception) -> str:
    text = (error.message if isinstance(error, TemplateError) else str(error)) or ""
    first = " ".join(text.split())[:200].rstrip(".")
    return first or type(error).__name__
