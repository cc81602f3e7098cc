"""Flags of `run` that say how to answer, as they were typed, and as values.

Knows: how `--format`, `--think`, `--keepalive` and `--truncate` are written.
Does not know: what an answer is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from moerun.errors import UsageError

if TYPE_CHECKING:
    from moerun.engine.interface import AnswerFormat, Thinking

# Flags whose value is attached with `=` or left out, and what a bare one means.
_BARE: Final = {"--think": "true", "--truncate": "true", "--hidethinking": "true"}
_SWITCHES: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def attach_values(arguments: Sequence[str]) -> list[str]:
    """Give the bare flags of `run` their value, so that none of them takes the next word for it.

    `--think hi` asks `hi` with thinking; without this the parser would take `hi` for a level.
    """
    if not arguments or arguments[0] != "run":
        return list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    attached = [f"{word}={_BARE[word]}" if word in _BARE else word for word in arguments[:end]]
    return [*attached, *arguments[end:]]


def read_switch(text: str, *, flag: str) -> bool:
    """Return what a switch was set to."""
    value = _SWITCHES.get(text.strip().lower())
    if value is None:
        raise UsageError(f"{flag} takes true or false, not '{text[:80]}'")
    return value


def read_keep_alive(text: str) -> str | float:
    """Return how long a model stays as the server takes it: a duration, or bare seconds."""
    from moerun.server.durations import parse_keep_alive

    try:
        parse_keep_alive(text)
    except ValueError as error:
        message = str(error).replace("keep_alive", "--keepalive")
        raise UsageError(message, hint="-1 is for ever, 0 unloads at once") from None
    try:
        return float(text)
    except ValueError:
        return text


def read_format(text: str) -> "AnswerFormat":
    """Return the form that a flag names: json, or a JSON schema; UsageError for another text."""
    import json

    from moerun.engine.interface import AnswerFormat, FormatKind

    if text == "json":
        return AnswerFormat(kind=FormatKind.JSON)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise UsageError(
            f"--format takes json or a JSON schema, not '{text[:80]}'",
            hint='a schema is an object, such as \'{"type": "object"}\'',
        )
    return AnswerFormat(kind=FormatKind.SCHEMA, source=text)


def read_thinking(text: str) -> "Thinking":
    """Return how much to think, as a flag says it."""
    from moerun.engine.interface import Thinking

    words = {"true": Thinking.ON, "false": Thinking.OFF}
    words |= {level.value: level for level in Thinking if level not in words.values()}
    if text.lower() not in words:
        raise UsageError(f"--think takes {', '.join(words)}, not '{text[:80]}'")
    return words[text.lower()]
