"""The conversation of `run` on this terminal.

Knows: what of the terminal a conversation needs. Without a terminal it is never imported.
Does not know: what is typed or answered.
"""

import sys
from typing import TYPE_CHECKING

from moerun.cli.open_model import warn
from moerun.repl.commands import completions
from moerun.repl.conversation import Conversation, Screen, Showing
from moerun.repl.history import typed_lines
from moerun.repl.terminal import LineEditor, keys_kept
from moerun.report.terminal import answer_columns, has_colours

if TYPE_CHECKING:
    from moerun.cli.run import RunWishes
    from moerun.repl.partner import Partner
    from moerun.repl.settings import ChatSettings


def hold_conversation(partner: "Partner", settings: "ChatSettings", wishes: "RunWishes") -> None:
    """Hold a conversation until the end of it."""
    typed = typed_lines(warn)
    editor = LineEditor(typed, lambda line: completions(line, partner.model_names))
    screen = Screen(
        read_line=editor.read,
        output=sys.stdout,
        notices=sys.stderr,
        typed=typed,
        columns=answer_columns,
        is_coloured=has_colours(),
    )
    showing = Showing(
        wraps=wishes.wraps,
        is_verbose=wishes.is_verbose,
        shows_thinking=not wishes.hides_thinking,
    )
    # From the first line to the last: between lines the terminal never shows keys by itself.
    with keys_kept():
        Conversation(partner, screen, settings, showing).hold()
