"""Asking a worker over its side channel: what it offers, how fast it is reached, whether it lives.

Knows: the questions, and how long an answer may take.
Does not know: the engine's protocol, or what follows from an answer.
"""

import math
import socket
import statistics
import time
from typing import Final

from moerun.codec import from_plain
from moerun.machine.workers import LinkRate, WorkerAddress, WorkerOffer
from moerun.worker.side_lines import SideChannelError, SideConnection
from moerun.worker.side_service import SCHEMA

_BEATS: Final = 5
_FIRST_PIECE_BYTES: Final = 256 << 10
_LARGER_PIECE_BYTES: Final = 32 << 20
_ENOUGH_S: Final = 0.02  # a transfer that takes longer is timed well enough
_TRANSFER_S: Final = 3.0


class NoSideChannel(SideChannelError):
    """Nothing listens on the port of the side channel."""


def open_side_channel(address: WorkerAddress, *, within_s: float) -> SideConnection:
    """Connect; NoSideChannel when nothing listens there, SideChannelError when nobody answers."""
    try:
        connection = socket.create_connection((address.host, address.side_port), timeout=within_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except ConnectionRefusedError as error:
        raise NoSideChannel("nothing listens there") from error
    except TimeoutError as error:
        raise SideChannelError(f"it cannot be reached within {within_s:g} s") from error
    except OSError as error:
        raise SideChannelError(f"it cannot be reached: {error.strerror or error}") from error
    return SideConnection(connection)


def ask_offer(side: SideConnection, *, within_s: float) -> WorkerOffer:
    """Return what the worker offers."""
    side.send({"ask": "describe"}, within_s=within_s)
    answer = side.receive(within_s=within_s)
    if answer.get("schema") != SCHEMA:
        raise SideChannelError("it speaks another version of the side channel")
    try:
        offer = from_plain(WorkerOffer, answer["offer"])
    except (KeyError, TypeError, ValueError) as error:
        raise SideChannelError("it describes itself in another way than is known") from error
    rates = (device.memory_bandwidth_bytes_per_s for device in offer.devices)
    if not all(rate is None or 0 < rate < math.inf for rate in rates):
        raise SideChannelError("it tells rates that no memory has")
    return offer


def ask_beat(side: SideConnection, *, within_s: float) -> str:
    """Ask for a sign of life; return the instance that gave it."""
    side.send({"ask": "beat"}, within_s=within_s)
    beat = side.receive(within_s=within_s).get("beat")
    if not isinstance(beat, str):
        raise SideChannelError("it gave something else for a sign of life")
    return beat


def measure_link(side: SideConnection) -> LinkRate:
    """Time some signs of life and a transfer: a small one, and a larger one where it was quick."""
    latencies = []
    for _ in range(_BEATS):
        started_s = time.perf_counter()
        ask_beat(side, within_s=_TRANSFER_S)
        latencies.append(time.perf_counter() - started_s)
    latency_s = statistics.median(latencies)
    took_s = _transfer(side, _FIRST_PIECE_BYTES)
    size_bytes = _FIRST_PIECE_BYTES
    if took_s < _ENOUGH_S:
        size_bytes, took_s = _LARGER_PIECE_BYTES, _transfer(side, _LARGER_PIECE_BYTES)
    net_s = max(took_s - latency_s, took_s / 10)
    return LinkRate(
        latency_s=latency_s, send_bytes_per_s=size_bytes / net_s, measured_at_s=time.time()
    )


def _transfer(side: SideConnection, size_bytes: int) -> float:
    started_s = time.perf_counter()
    side.send({"ask": "take", "size_bytes": size_bytes}, within_s=_TRANSFER_S)
    side.send_bytes(bytes(size_bytes), _TRANSFER_S)
    if side.receive(within_s=_TRANSFER_S).get("took_bytes") != size_bytes:
        raise SideChannelError("it took another number of bytes than was sent")
    return time.perf_counter() - started_s
