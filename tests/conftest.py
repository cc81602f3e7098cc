"""What holds for all tests."""

import signal
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> Iterator[None]:
    """Give children the usual signals: tests in the background of a script, or under `nohup`,
    would hand on that interrupts or hangups are ignored.
    """
    if sys.platform == "win32":
        yield
        return
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        usual = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
