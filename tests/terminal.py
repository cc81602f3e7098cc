"""A process on a pseudo-terminal, for tests that type and look.

Knows: how a terminal is made, and how to wait for what it shows.
Does not know: what runs on it.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_S = 60
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>()][AB0]?)")
_ASKED_WHERE = "\x1b[6n"  # prompt_toolkit asks a terminal where its cursor is
_PROMPT = "Send a message"
_HERE = b"\x1b[1;1R"


class Terminal:
    """The side on which somebody sits. A context manager; the exit ends the process."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._main, child_side = pty.openpty()
        fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(
            arguments,
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(child_side)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    def type(self, text: str) -> None:
        """Press keys; Enter is a carriage return."""
        os.write(self._main, text.encode())

    def send(self, line: str, *, end: str = "\r") -> None:
        """Wait for the prompt, type a line, wait until it stands there, and end it."""
        self.expect(_PROMPT)
        self.type(line)
        self.expect(line[-10:])
        self.type(end)

    def expect(self, text: str) -> str:
        """Read until `text` was shown after what was expected before; return what came before."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen!r}"
            if select.select([self._main], [], [], 1.0)[0]:
                try:
                    self._read()
                except OSError:  # the other side was closed
                    assert text in self.seen, self.seen
        before, _, self.seen = self.seen.partition(text)
        return before

    def wait(self) -> int:
        """Read to the end, and return the exit code."""
        while select.select([self._main], [], [], LIMIT_S)[0]:
            try:
                self._read()
            except OSError:
                break
        return self.process.wait(timeout=LIMIT_S)

    def await_more(self) -> None:
        """Read until something else was shown than white space."""
        deadline = time.monotonic() + LIMIT_S
        while not self.seen.strip():
            assert time.monotonic() < deadline, "nothing more came"
            if select.select([self._main], [], [], 1.0)[0]:
                self._read()

    @property
    def is_echoing(self) -> bool:
        """Whether the terminal shows what is typed, as it does before a program takes it."""
        return bool(termios.tcgetattr(self._main)[3] & termios.ECHO)

    def _read(self) -> None:
        raw = os.read(self._main, 65536)
        if not raw:
            raise OSError("the other side was closed")
        text = raw.decode("utf-8", "replace")
        if _ASKED_WHERE in text:
            os.write(self._main, _HERE)
        self.seen += _SEQUENCE.sub("", text)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
