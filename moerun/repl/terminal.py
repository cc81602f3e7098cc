"""The line that is edited on a terminal, by prompt_toolkit.

Knows: keys, the placeholder, how completions and history are offered, and what becomes of keys
that are pressed while no line is read.
Does not know: what a line means.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from moerun.repl.history import TypedLines

PROMPT: Final = ">>> "
CONTINUED: Final = "... "
_PLACEHOLDERS: Final = {PROMPT: "Send a message (/? for help)", CONTINUED: 'End with """'}
_GREY: Final = "ansibrightblack"


class LineEditor:
    """Reads lines; EOFError at Ctrl-D on an empty one, KeyboardInterrupt with the text at Ctrl-C.

    `input` and `output` are of this terminal where none are named, which tests do.
    """

    def __init__(
        self,
        typed: TypedLines,
        complete: Callable[[str], tuple[str, ...]],
        *,
        input: Input | None = None,  # noqa: A002 - as prompt_toolkit calls it
        output: Output | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_OfferedHistory(typed),
            completer=_CommandCompleter(complete),
            complete_while_typing=False,
            key_bindings=_keys(),
            enable_suspend=True,
            prompt_continuation=CONTINUED,
            input=input,
            output=output,
        )

    def read(self, prompt: str) -> str:
        """Return the next line, which may hold line breaks that were pasted or asked for."""
        placeholder = FormattedText([(_GREY, _PLACEHOLDERS.get(prompt, ""))])
        try:
            return self._session.prompt(prompt, placeholder=placeholder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._session.default_buffer.text) from None


@contextmanager
def keys_kept() -> Iterator[None]:
    """Keep what is typed while no line is read for the next one, unseen; Ctrl-C and Ctrl-Z work.

    Otherwise the terminal would show it in the middle of the answer, and make of Enter the line
    break that Ctrl-J is. An editor restores this mode behind each line.
    """
    try:
        import termios
    except ImportError:  # Windows keeps keys so by itself
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    kept = termios.tcgetattr(descriptor)
    kept[0] &= ~termios.ICRNL
    kept[3] &= ~(termios.ECHO | termios.ICANON)
    kept[3] |= termios.NOFLSH  # Ctrl-C throws away neither what was typed nor what was printed
    termios.tcsetattr(descriptor, termios.TCSANOW, kept)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


class _OfferedHistory(History):
    """What was typed before, as prompt_toolkit asks for it."""

    def __init__(self, typed: TypedLines) -> None:
        super().__init__()
        self._typed = typed

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries, the newest first."""
        return reversed(self._typed.entries())

    def store_string(self, string: str) -> None:
        """Keep one more."""
        self._typed.add(string)


class _CommandCompleter(Completer):
    def __init__(self, complete: Callable[[str], tuple[str, ...]]) -> None:
        self._complete = complete

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Offer the words that may stand where the cursor is."""
        begun = document.text_before_cursor
        length = len(begun.rpartition(" ")[2])
        for word in self._complete(begun):
            yield Completion(word, start_position=-length)


def _keys() -> KeyBindings:
    """Return what differs from prompt_toolkit's own keys, which are those of readline."""
    keys = KeyBindings()

    @keys.add("c-j")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g")
    def open_editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
