"""A conversation as one prompt, through the model's own template.

A template is a program in a file from the network: it runs in `template_sandbox`, and whatever
it does ends in a prompt or in one sentence.

Knows: what templates of published models expect to find, and how to do without one.
Does not know: the engine, tokens, or clocks other than those it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jinja2 import Template, TemplateError

from moerun.engine.interface import Message
from moerun.engine.template_sandbox import TemplateEnvironment, TemplateRefusal, render
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
    """A rendered conversation; `stop` is what the form itself ends answers with."""

    text: str
    stop: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
        self._template = _compile(environment, FALLBACK_TEMPLATE if source is None else source)

    def render(self, messages: tuple[Message, ...]) -> ChatPrompt:
        """Return the prompt that asks for the next answer.

        Raises UsageError when the template refuses the conversation in its own words,
        UnsupportedModel when it fails or wants too much.
        """
        if not messages:
            raise UsageError("The conversation is empty.")
        stop = (FALLBACK_STOP,) if self.is_fallback else ()
        notes = (FALLBACK_NOTE,) if self.is_fallback else ()
        try:
            return ChatPrompt(text=self._render(messages), stop=stop, notes=notes)
        except TemplateRefusal as refusal:
            merged = merge_system(messages)
            if merged == messages:
                raise _refused(refusal) from refusal
        try:
            return ChatPrompt(
                text=self._render(merged), stop=stop, notes=(*notes, MERGED_SYSTEM_NOTE)
            )
        except TemplateRefusal as refusal:
            raise _refused(refusal) from refusal

    def _render(self, messages: tuple[Message, ...]) -> str:
        variables: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "add_generation_prompt": True,
        }
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
