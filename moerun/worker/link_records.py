"""What was measured of the way to each worker, and of this machine's RAM, kept for a day.

Knows: the document and how long a measurement holds.
Does not know: how a link is measured.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from moerun.codec import from_plain, to_plain
from moerun.machine.workers import (
    LinkRate,
    MemoryRate,
    Worker,
    WorkerAddress,
    WorkerOffer,
)
from moerun.places import write_whole

_SCHEMA: Final = 1
_NAME: Final = "workers.json"
_HOLDS_S: Final = 24 * 3600.0
_MOST_LINKS: Final = 256


class LinkRecords:
    """The measurements of links, by address and system of the worker."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / _NAME
        self._clock = clock
        self._links: dict[str, LinkRate] = {}
        self._memory: MemoryRate | None = None
        self._read()

    def memory_rate(self, threads: int, measure: Callable[[int], float]) -> float:
        """Return how fast so many threads read RAM here; it is measured when no record holds."""
        known = self.known_memory_rate(threads)
        if known is None:
            known = measure(threads)
            self._memory = MemoryRate(
                threads=threads, read_bytes_per_s=known, measured_at_s=self._clock()
            )
            self._write()
        return known

    def known_memory_rate(self, threads: int) -> float | None:
        """Return what was measured of RAM within the last day, None when nothing was."""
        known = self._memory
        if known is None or known.threads != threads or not self._holds(known.measured_at_s):
            return None
        return known.read_bytes_per_s

    def recall(self, address: WorkerAddress, offer: WorkerOffer) -> LinkRate | None:
        """Return what was measured within the last day, None when nothing was."""
        link = self._links.get(_key(address, offer))
        return link if link is not None and self._holds(link.measured_at_s) else None

    def _holds(self, measured_at_s: float) -> bool:
        return 0 <= self._clock() - measured_at_s < _HOLDS_S

    def keep(self, workers: tuple[Worker, ...]) -> None:
        """Write down what was measured anew; a state folder that takes nothing is passed over."""
        new = {
            _key(worker.address, worker.offer): worker.link
            for worker in workers
            if worker.link is not None and worker.offer is not None
        }
        if new.items() <= self._links.items():
            return
        merged = {**self._links, **new}
        newest = sorted(merged.items(), key=lambda row: row[1].measured_at_s)[-_MOST_LINKS:]
        self._links = dict(newest)
        self._write()

    def _write(self) -> None:
        document = {
            "schema": _SCHEMA,
            "links": {key: to_plain(link) for key, link in self._links.items()},
            "memory": to_plain(self._memory),
        }
        try:
            write_whole(self._path, json.dumps(document, indent=1))
        except OSError:
            return  # it is measured again next time

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["schema"] != _SCHEMA:
                return
            links = {key: from_plain(LinkRate, link) for key, link in document["links"].items()}
            memory = document.get("memory")
            self._memory = None if memory is None else _sound(from_plain(MemoryRate, memory))
            self._links = links
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # none yet, or of another version: they are measured anew


def _sound(rate: MemoryRate) -> MemoryRate | None:
    return rate if 0 < rate.read_bytes_per_s < math.inf else None


def _key(address: WorkerAddress, offer: WorkerOffer) -> str:
    return f"{address.endpoint} {offer.system} {offer.processor}"
