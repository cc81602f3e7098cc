"""What /? says, made from the table of commands.

Knows: columns, and the keys of the line that is edited.
Does not know: what a command does.
"""

from collections.abc import Iterable
from typing import Final

from moerun.repl.commands import PARAMETER_NAMES, ROWS
from moerun.store.parameters import PARAMETERS, Target

_KEYS: Final = (
    ("Ctrl-A, Ctrl-E", "To the beginning, the end of the line"),
    ("Alt-B, Alt-F", "A word back, forward"),
    ("Ctrl-K, Ctrl-U, Ctrl-W", "Delete what follows, what precedes, a word"),
    ("Up, Down, Ctrl-R", "What was typed before; search in it"),
    ("Tab", "Complete a command, a model, a parameter"),
    ("Ctrl-J", "A new line in the message; Enter sends it"),
    ("Ctrl-G", "Write the message in $VISUAL or $EDITOR"),
    ("Ctrl-L", "Clear the screen"),
    ("Ctrl-Z", "Suspend; fg goes on"),
    ("Ctrl-C", "Stop the answer; at the prompt, drop the line"),
    ("Ctrl-D", "Leave"),
)
_GROUPS: Final = ("/set", "/show")


def help_lines(topic: str) -> tuple[str, ...]:
    """Return the list of a topic; the empty one names the others."""
    match topic:
        case "set" | "show":
            head = f"/{topic} "
            rows = [(row.usage, row.explanation) for row in ROWS if row.words.startswith(head)]
            return ("Available Commands:", *_columns(rows))
        case "shortcuts":
            return ("Available keyboard shortcuts:", *_columns(_KEYS))
        case "parameters":
            return ("Available Parameters:", *_columns(_parameter_rows()))
        case _:
            return (
                "Available Commands:",
                *_columns(_first_rows()),
                "",
                'Use """ to begin and to end a message of several lines.',
            )


def _first_rows() -> list[tuple[str, str]]:
    rows = [
        ("/set", "Set what holds for the conversation; /? set lists it"),
        ("/show", "Show what is known of the model; /? show lists it"),
    ]
    rows += [
        (", ".join((row.usage, *row.aliases)), row.explanation)
        for row in ROWS
        if not row.words.startswith(_GROUPS)
    ]
    return [*rows, ("/? shortcuts", "Keys of the line that is edited")]


def _parameter_rows() -> list[tuple[str, str]]:
    order = (Target.SAMPLING, Target.ANSWER, Target.SETTING)
    named = [(PARAMETERS[name], name) for name in PARAMETER_NAMES]
    named.sort(key=lambda pair: order.index(pair[0].target))
    return [(f"/set parameter {name}", parameter.kind.value) for parameter, name in named]


def _columns(rows: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    rows = tuple(rows)
    width = max(len(first) for first, _ in rows)
    return tuple(f"  {first.ljust(width)}  {second}".rstrip() for first, second in rows)
