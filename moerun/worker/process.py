"""The process that serves devices: the engine's own server, and the side channel beside it.

The engine's loop never returns and may abort the process when a client sends nonsense, so it has
a process of its own, which `supervisor` starts again. Both channels live in it, so that a process
that is frozen gives no sign of life.

Belief: the server prints `Accepted client connection` and `Client connection closed`, flushed, as
clients come and go — ggml_backend_rpc_start_server, ggml/src/ggml-rpc/ggml-rpc.cpp @ 0.3.36 —
checked by tests/engine/test_workers_cache.py.

Knows: what is served, and when a client comes and goes.
Does not know: who asks, or why this process ends.
"""

import argparse
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import moerun
from moerun.engine import abi
from moerun.engine.memory_rate import measure_memory_rate
from moerun.engine.rpc_worker import (
    ServedDevice,
    choose_devices,
    end_with_the_parent,
    limit_devices,
    serve,
)
from moerun.errors import EngineRefused, MoerunError, UsageError
from moerun.machine.probe import this_host
from moerun.machine.probe_nvml import read_nvml
from moerun.machine.workers import LentDevice, WorkerOffer
from moerun.units import GIB, format_gib
from moerun.worker.side_service import SideService
from moerun.worker.weight_cache import NO_CACHE, WeightCache

SPARE_BYTES: Final = 2 * GIB  # for a tensor that arrives, as large as any output layer
_LENT_FRACTION: Final = 0.9  # of the free memory, where no limit is given
_ACCEPTED: Final = b"Accepted client connection"
_CLOSED: Final = b"Client connection closed"
_LOOK_S: Final = 0.25


class Comings:
    """Whether a client is there, told by what the server prints; the cache is settled between."""

    def __init__(self, cache: WeightCache | None) -> None:
        self.is_busy = False
        self._cache = cache
        self._was_roomy = True

    def listen(self, lines: int) -> None:
        """Read the server's output from a file descriptor until the process ends."""
        with os.fdopen(lines, "rb") as stream:
            for line in stream:
                sys.stderr.write(line.decode("utf-8", "replace"))
                if line.startswith(_ACCEPTED):
                    self._was_roomy, self.is_busy = True, True
                elif line.startswith(_CLOSED):
                    self.is_busy = False
                    self._settle()

    def watch_the_disk(self) -> None:
        """Look again and again, while a client is there, whether the cache has room."""
        while self._cache is not None:
            time.sleep(_LOOK_S)
            if self.is_busy and not self._has_room(self._cache):
                self._was_roomy = False

    def _settle(self) -> None:
        if self._cache is None:
            return
        try:
            self._cache.settle(was_roomy=self._was_roomy and self._cache.has_room())
        except OSError as error:
            sys.stderr.write(f"The cache of weights could not be settled: {error}.\n")

    @staticmethod
    def _has_room(cache: WeightCache) -> bool:
        try:
            return cache.has_room()
        except OSError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What does not change while the process runs."""

    instance: str
    devices: tuple[ServedDevice, ...]
    threads: int
    has_cache: bool


def describe(served: Served, comings: Comings) -> WorkerOffer:
    """Return what a client is told."""
    return WorkerOffer(
        instance=served.instance,
        moerun_version=moerun.__version__,
        engine_version=abi.installed_version() or "",
        system=platform.system(),
        processor=platform.machine(),
        threads=served.threads,
        devices=tuple(_lent(device, served.threads) for device in served.devices),
        is_busy=comings.is_busy,
        has_cache=served.has_cache,
    )


def _lent(device: ServedDevice, threads: int) -> LentDevice:
    free_bytes, total_bytes = device.memory()
    return LentDevice(
        name=device.description or device.name,
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s,
        threads=threads if device.is_processor else None,
    )


def _with_rate(device: ServedDevice, threads: int) -> ServedDevice:
    """Return the device with its memory's rate: measured of a processor, the driver's for a card.

    It is the same memory whoever asks, so each start measures once, before any limit is set.
    """
    if device.is_processor:
        return replace(device, memory_bandwidth_bytes_per_s=measure_memory_rate(threads))
    address = device.pci_address()
    cards = {card.pci_address: card for card in read_nvml().cards}
    if address is None or address not in cards:
        return device
    return replace(device, memory_bandwidth_bytes_per_s=cards[address].memory_bandwidth_bytes_per_s)


def _within_the_host(device: ServedDevice) -> ServedDevice:
    """Return a processor that lends no more than is free now; its engine would lend all there is.

    Belief: the processor's own figure is all memory that is installed, as free and as total —
    ggml/src/ggml-cpu/ggml-cpu.cpp @ 0.3.36 — checked by tests/engine/test_workers_cache.py.
    """
    if not device.is_processor:
        return device
    host = this_host()
    free_bytes = int(host.available_bytes * _LENT_FRACTION)
    limit_bytes = free_bytes if device.limit_bytes is None else device.limit_bytes
    if limit_bytes > host.available_bytes:
        raise UsageError(
            f"{format_gib(limit_bytes)} are to be lent and {format_gib(host.available_bytes)} of "
            "this machine's memory are free; lend less."
        )
    return replace(device, limit_bytes=limit_bytes)


def _open_cache(folder: str | None, most_bytes: int) -> WeightCache | None:
    """Return the cache, None where there is to be none or its disk is nearly full."""
    if folder is None:
        return None
    cache = WeightCache(Path(folder), most_bytes=most_bytes)
    try:
        cache.prepare()
        if cache.has_room():
            return cache
        sys.stderr.write(f"{NO_CACHE}the disk of {folder} is nearly full.\n")
    except OSError as error:
        sys.stderr.write(f"{NO_CACHE}{folder}: {error.strerror or error}.\n")
    return None


def _take_output() -> int:
    """Send this process's standard output into a pipe; return the end to read from."""
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    return reading


def _require_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened at with the reason, which the engine does not tell."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise EngineRefused(
            f"The worker could not listen at {host}:{port}: {why}.",
            hint="another program may have that port for a moment; try again, or take another one",
        ) from error


def serve_with_side_channel(options: argparse.Namespace) -> None:
    """Serve both channels until the process is ended; raises MoerunError when that cannot be."""
    host, _, port = options.address.rpartition(":")
    limits = tuple(int(each) or None for each in options.limit or ("0",))
    devices = tuple(
        _with_rate(_within_the_host(device), options.threads)
        for device in choose_devices(tuple(options.device or ()), limits)
    )
    kept = limit_devices(devices, spare_bytes=SPARE_BYTES)  # as long as the server runs
    cache = _open_cache(options.cache, options.cache_bytes)
    comings = Comings(cache)
    served = Served(
        instance=options.instance or secrets.token_hex(8),
        devices=devices,
        threads=options.threads,
        has_cache=cache is not None,
    )
    try:
        side = SideService(
            host,
            int(port) + 1,
            instance=served.instance,
            offer=lambda: describe(served, comings),
        )
    except OSError as error:
        raise EngineRefused(
            f"The worker could not listen at {host}:{int(port) + 1}, where its side channel "
            f"belongs: {os.strerror(error.errno) if error.errno else error}.",
            hint="both the port of --listen and the next one must be free",
        ) from error
    _require_port(host, int(port))
    output = _take_output()
    threading.Thread(target=comings.listen, args=(output,), daemon=True).start()
    threading.Thread(target=comings.watch_the_disk, daemon=True).start()
    side.start()
    try:
        serve(
            options.address,
            devices,
            threads=options.threads,
            cache_folder=str(cache.folder) if cache is not None else None,
        )
    finally:
        side.close()
        del kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; returns only with an error."""
    parser = argparse.ArgumentParser(prog="python -m moerun.worker.process")
    parser.add_argument("address", help="host:port to listen on")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--instance", default="", help="the name of this life, else a new one")
    parser.add_argument("--device", action="append")
    parser.add_argument("--limit", action="append", help="bytes, 0 for none; one, or one each")
    parser.add_argument("--cache", default=None)
    parser.add_argument("--cache-bytes", type=int, default=0)
    options = parser.parse_args(arguments)
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    try:
        serve_with_side_channel(options)
    except MoerunError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # threads that wait in reads have nothing left to do but harm
