"""Signs of life from workers while a model runs on them.

Neither the engine's protocol nor its client knows a time-out: a worker that freezes, or whose
packets are dropped, would hold a native call for ever. So each worker is asked for a sign of life
every second over its side channel; one that gives none for some seconds, or comes back as another
instance, is lost, and whoever watches ends the process that waits for it. A worker without that
channel is watched by way of its connection instead (`connections.py`), and asked afterwards.

Knows: how often is asked, and when a worker counts as lost.
Does not know: what is done then.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moerun.engine.workers import greet_worker
from moerun.errors import EngineRefused
from moerun.machine.workers import WorkerAddress, parse_worker
from moerun.worker.side_client import NoSideChannel, ask_beat, open_side_channel
from moerun.worker.side_lines import SideChannelError, SideConnection

BEAT_S: Final = 1.0
SILENCE_S: Final = 5.0
_GREETING_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A worker that is lost, and how it was noticed."""

    address: str
    why: str


class WorkerWatch:
    """One thread for each worker that has a side channel, until `stop`."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        on_loss: Callable[[Loss], None],
        *,
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._on_loss = on_loss
        self._beat_s = beat_s
        self._silence_s = silence_s
        self._has_stopped = threading.Event()
        self._decided = threading.Event()
        self._lock = threading.Lock()
        self._sides: list[SideConnection] = []
        self._loss: Loss | None = None
        self._plain: list[WorkerAddress] = []
        self._threads = [
            threading.Thread(target=self._watch, args=(parse_worker(address),), daemon=True)
            for address in addresses
        ]

    def start(self) -> None:
        """Watch from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Watch no more; nothing is told after this."""
        with self._lock:
            self._has_stopped.set()
            for side in self._sides:
                side.interrupt()

    def loss(self, *, within_s: float = 0.0, is_broken: bool = False) -> Loss | None:
        """Return which worker was lost; wait for the watch to notice when it has not yet.

        `is_broken` says that whoever used them ended for a connection that broke or was silent.
        Workers without a side channel are then asked; one was lost even if all answer again.
        """
        if len(self._plain) < len(self._threads):
            self._decided.wait(within_s)
        if self._loss is not None or not is_broken:
            return self._loss
        for address in self._plain:
            try:
                greet_worker(address.endpoint, timeout_s=_GREETING_S)
            except EngineRefused:
                return Loss(address=address.endpoint, why="it does not answer any more")
        if self._plain:
            names = " or ".join(address.endpoint for address in self._plain)
            return Loss(address=names, why="its connection broke")
        return None

    def _watch(self, address: WorkerAddress) -> None:
        try:
            self._ask_again_and_again(address)
        except NoSideChannel:
            self._plain.append(address)  # nobody can ask such a worker while it is busy
        except SideChannelError as error:
            self._tell(Loss(address=address.endpoint, why=str(error)))

    def _ask_again_and_again(self, address: WorkerAddress) -> None:
        with open_side_channel(address, within_s=self._silence_s) as side:
            with self._lock:
                if self._has_stopped.is_set():
                    return
                self._sides.append(side)
            first = ask_beat(side, within_s=self._silence_s)
            while not self._has_stopped.wait(self._beat_s):
                if ask_beat(side, within_s=self._silence_s) != first:
                    raise SideChannelError("it was started anew")

    def _tell(self, loss: Loss) -> None:
        with self._lock:
            if self._has_stopped.is_set() or self._loss is not None:
                return
            self._loss = loss
        self._decided.set()
        self._on_loss(loss)
