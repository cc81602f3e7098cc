"""Which memory is worth what, and to whom it is given first: the one key of every comparison.

A byte is worth most where it is read fastest: in a device of this machine, then in one that a
worker lends, then in RAM, last on SSD. Dense weights and the KV cache are read whole for every
token and one expert in many is, so the former are served first. A worker whose memory was measured,
journeys over the network included, to be clearly slower than this machine's RAM ranks behind it.

Knows: the order of tiers and of what lies in them.
Does not know: how bytes are placed, or how much memory there is.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from moerun.machine.description import Gpu, Host

# What a token reads of a worker that is worth asking, and how often it is waited for meanwhile.
_TOKEN_BYTES: Final = 256 << 20
_JOURNEYS: Final = 2
# A machine that does other things meanwhile measures little more than half of its rate.
_CLEARLY_FRACTION: Final = 0.5

Cost = tuple[int, int, int, int, int]
"""What lies too low: dense off the devices, experts off them, on SSD, dense and experts remote."""


class Standing(IntEnum):
    """How fast a device's memory is; less is better. RAM stands between REMOTE and SLOW."""

    LOCAL = 0
    REMOTE = 1
    SLOW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one device, or all of one standing, holds; dense bytes include KV cache and state."""

    standing: Standing
    dense_bytes: int
    expert_bytes: int


def standing(gpu: Gpu, host: Host) -> Standing:
    """Return where a device ranks: below RAM only where both were measured and it is slower."""
    if not gpu.is_remote:
        return Standing.LOCAL
    rate, host_rate = reached_bytes_per_s(gpu), host.memory_bandwidth_bytes_per_s
    if rate is None or host_rate is None:
        return Standing.REMOTE
    return Standing.SLOW if rate < _CLEARLY_FRACTION * host_rate else Standing.REMOTE


def reached_bytes_per_s(gpu: Gpu) -> float | None:
    """Return how fast a token's share of a device is read, with the way there and back."""
    rate = gpu.memory_bandwidth_bytes_per_s
    if rate is None or gpu.link_latency_s is None:
        return rate
    return _TOKEN_BYTES / (_TOKEN_BYTES / rate + _JOURNEYS * gpu.link_latency_s)


def worker_rates(gpus: tuple[Gpu, ...], host: Host) -> str:
    """Return what was measured of workers and of RAM in words; nothing where little was."""
    rates = [(gpu, reached_bytes_per_s(gpu)) for gpu in gpus]
    if host.memory_bandwidth_bytes_per_s is None or any(rate is None for _, rate in rates):
        return ""
    told = [
        f"{(rate or 0.0) / 1e9:,.1f} GB/s"
        + (f" with {gpu.link_latency_s * 1e3:,.1f} ms to answer" if gpu.link_latency_s else "")
        for gpu, rate in rates
    ]
    host_rate = f"{host.memory_bandwidth_bytes_per_s / 1e9:,.1f} GB/s"
    return f" (measured: {', '.join(told)}; RAM {host_rate})"


def cost_key(
    held: tuple[Held, ...], *, host_dense_bytes: int, host_expert_bytes: int, ssd_bytes: int
) -> Cost:
    """Return what a placement leaves in slower memory, the dearest first: less is better.

    `host_expert_bytes` are all experts off the devices, `ssd_bytes` those of them on SSD.
    """
    slow = [each for each in held if each.standing is Standing.SLOW]
    remote = [each for each in held if each.standing is Standing.REMOTE]
    return (
        host_dense_bytes + sum(each.dense_bytes for each in slow),
        host_expert_bytes + sum(each.expert_bytes for each in slow),
        ssd_bytes,
        sum(each.dense_bytes for each in remote),
        sum(each.expert_bytes for each in remote),
    )
