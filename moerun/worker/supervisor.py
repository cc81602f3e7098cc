"""Keeping a worker up: its process is started, watched until it answers, and started again.

A client that sends nonsense can end the engine's server, which is written to abort; the next one
must not suffer for it. One that ends again and again at once is given up.

Knows: how the process is started, when it is ready, and when it is worth starting again.
Does not know: what it serves, or how anything is shown.
"""

import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.errors import EngineCrashed, EngineRefused
from moerun.machine.workers import WorkerAddress, WorkerOffer
from moerun.worker.side_client import ask_offer, open_side_channel
from moerun.worker.side_lines import SideChannelError

_START_S: Final = 60.0
_ASK_S: Final = 2.0
_POLL_S: Final = 0.1
_SHORT_S: Final = 10.0
_MOST_SHORT_LIVES: Final = 3  # in a row; then it is not started again
_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerWishes:
    """What is to be lent. `limits_bytes` are one for all devices or one for each, None: all."""

    address: WorkerAddress
    devices: tuple[str, ...] = ()
    limits_bytes: tuple[int | None, ...] = (None,)
    threads: int
    cache_folder: str | None = None
    cache_bytes: int = 0


class WorkerProcess:
    """One process that serves. A context manager; the exit ends it."""

    def __init__(self, wishes: WorkerWishes, log_path: Path) -> None:
        self._wishes = wishes
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._instance = ""
        self.started_s = 0.0

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.end()

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self._process is not None, "the worker is not started"
        return self._process.pid

    def start(self) -> None:
        """Start the process; what it prints goes to the log."""
        self.started_s = time.monotonic()
        self._instance = secrets.token_hex(8)
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                module_command("moerun.worker.process", *_arguments(self._wishes, self._instance)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=child_environment(),
                start_new_session=sys.platform != "win32",  # Ctrl-C is for its parent
            )

    def wait_until_ready(self, *, within_s: float = _START_S) -> WorkerOffer:
        """Return what it offers once it answers; EngineError when it ends or never does.

        Another worker may be what listens there, so only this very instance counts.
        """
        assert self._process is not None, "the worker is not started"
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            if self._process.poll() is not None:
                raise self._ended(self._process.returncode)
            try:
                with open_side_channel(self._wishes.address, within_s=_ASK_S) as side:
                    offer = ask_offer(side, within_s=_ASK_S)
            except SideChannelError:
                offer = None  # it does not answer yet
            if offer is not None and offer.instance == self._instance:
                return offer
            time.sleep(_POLL_S)
        raise EngineCrashed(
            f"The worker at {self._wishes.address.endpoint} did not answer within {within_s:g} s.",
            log_tail=self.log_tail(),
        )

    def wait(self) -> int:
        """Wait until the process ends; return its code."""
        assert self._process is not None, "the worker is not started"
        return self._process.wait()

    def end(self) -> None:
        """End the process for sure."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ended(self, returncode: int) -> EngineRefused:
        tail = self.log_tail()
        said = next((line for line in tail.splitlines() if line.startswith("Error: ")), None)
        if said is not None:  # it told in a sentence why it cannot serve
            return EngineRefused(said.removeprefix("Error: "))
        return EngineCrashed(
            f"The worker ended before it answered ({describe_exit(returncode)}).",
            log_tail=tail,
            hint=f"the whole log is {self._log_path}",
        )

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        try:
            text = self._log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


def keep_up(
    worker: WorkerProcess,
    *,
    on_ready: Callable[[WorkerOffer], None],
    on_end: Callable[[str], None],
) -> None:
    """Tell when the worker answers, and start it again whenever it ends; returns never.

    EngineError when it cannot be started, or ends soon each time.
    """
    short_lives = 0
    while True:
        on_ready(worker.wait_until_ready())
        returncode = worker.wait()
        is_short = time.monotonic() - worker.started_s < _SHORT_S
        short_lives = short_lives + 1 if is_short else 0
        if short_lives == _MOST_SHORT_LIVES:
            raise EngineCrashed(
                f"The worker ended within {_SHORT_S:g} s {short_lives} times in a row, at last by "
                f"{describe_exit(returncode)}.",
                log_tail=worker.log_tail(),
            )
        on_end(describe_exit(returncode))
        worker.start()


def _arguments(wishes: WorkerWishes, instance: str) -> tuple[str, ...]:
    arguments = [wishes.address.endpoint, f"--threads={wishes.threads}", f"--instance={instance}"]
    arguments += [f"--device={name}" for name in wishes.devices]
    arguments += [f"--limit={limit or 0}" for limit in wishes.limits_bytes]
    if wishes.cache_folder is not None:
        arguments += [f"--cache={wishes.cache_folder}", f"--cache-bytes={wishes.cache_bytes}"]
    return tuple(arguments)
