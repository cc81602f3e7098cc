"""Ctrl-C while an answer is made: the first ends the answer, the second everything.

Knows: how the signal reaches a runner.
Does not know: what is done afterwards.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
