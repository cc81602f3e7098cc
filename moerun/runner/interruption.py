"""Signals to whoever holds a runner: Ctrl-C ends an answer, a termination everything in order.

Knows: how the signals reach a runner, and the exit code of each.
Does not know: what is done afterwards.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_CODE_OF_SIGNALS: Final = 128  # as shells tell of one that a signal ended


class Interruption:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.has_happened = False


@contextmanager
def interrupts(cancel: Callable[[], None]) -> Iterator[Interruption]:
    """Call `cancel` at Ctrl-C instead of raising KeyboardInterrupt, which a second one does.

    Outside the main thread, where signals cannot be taken over, nothing changes.
    """
    interruption = Interruption()

    def receive(number: int, frame: FrameType | None) -> None:
        if interruption.has_happened:
            raise KeyboardInterrupt
        interruption.has_happened = True
        cancel()

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGINT, receive)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminations() -> Iterator[None]:
    """Leave by SystemExit at SIGTERM and SIGHUP, so that contexts end the runner and its record.

    A signal that is ignored, as SIGHUP after `nohup`, stays so; the second of two does nothing.
    """
    numbers = [signal.SIGTERM] + ([signal.SIGHUP] if sys.platform != "win32" else [])
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def receive(number: int, frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(_CODE_OF_SIGNALS + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in taken:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
