"""Workers as values: their addresses, what they lend, and how fast they are reached.

Beliefs: a client splits an address at its first colon and looks the host up by an IPv4 function, so
that an IPv6 address cannot be reached; the device's own index among those of its worker names its
buffers — ggml/src/ggml-rpc/{ggml-rpc,transport}.cpp @ 0.3.36 — checked by
tests/engine/test_workers_cache.py.

Knows: how an address with a limit is written, and how a worker becomes devices of the machine.
Does not know: sockets, or what will be placed.
"""

from dataclasses import dataclass, replace
from typing import Final

from moerun.errors import UsageError
from moerun.machine.description import GPU_PREFIX, DeviceId, Gpu, GpuBackend, Machine
from moerun.units import format_gib, parse_bytes

DEFAULT_PORT: Final = 50052
_FORM: Final = "write it as host:port, or host:port=8G to use no more than that of it"
_LARGEST_PORT: Final = 65534  # the side channel listens on the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker listens, and the most that is used of each of its devices."""

    host: str
    port: int
    limit_bytes: int | None = None

    @property
    def endpoint(self) -> str:
        """Return `host:port`, as the engine takes it."""
        return f"{self.host}:{self.port}"

    @property
    def side_port(self) -> int:
        """Return the port of the side channel, the next one."""
        return self.port + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LentDevice:
    """One device of a worker, as the worker describes it.

    `memory_bandwidth_bytes_per_s` was measured of a processor, and is the driver's for a card.
    `threads` are those that a processor computes with, None for a card.
    """

    name: str
    free_bytes: int
    total_bytes: int
    memory_bandwidth_bytes_per_s: float | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOffer:
    """What a worker says of itself over its side channel.

    `instance` is another one after each start; `threads` belong to the arithmetic of a processor.
    """

    instance: str
    moerun_version: str
    engine_version: str
    system: str
    processor: str
    threads: int
    devices: tuple[LentDevice, ...]
    is_busy: bool
    has_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """How fast a worker was reached; `measured_at_s` is the clock's time since 1970."""

    latency_s: float
    send_bytes_per_s: float
    measured_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRate:
    """How fast so many threads of this machine read its memory."""

    threads: int
    read_bytes_per_s: float
    measured_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker that answered; without `offer` it has no side channel."""

    address: WorkerAddress
    devices: tuple[LentDevice, ...]
    offer: WorkerOffer | None = None
    link: LinkRate | None = None


def parse_worker(text: str) -> WorkerAddress:
    """Read `host:port` or `host:port=8G`; UsageError otherwise."""
    endpoint, has_limit, size = text.strip().partition("=")
    host, separator, port = endpoint.strip().rpartition(":")
    is_number = port.isascii() and port.isdecimal()
    if not separator or not host or not is_number or not 0 < int(port) <= _LARGEST_PORT:
        raise UsageError(f"'{text}' is not the address of a worker; {_FORM}.")
    if ":" in host:
        raise UsageError(
            f"'{text}' is an IPv6 address, and the engine reaches workers by IPv4 only.",
            hint="a name that stands for an IPv4 address, or an SSH tunnel from 127.0.0.1, will do",
        )
    limit_bytes = None
    if has_limit:
        try:
            limit_bytes = parse_bytes(size.strip())
        except ValueError as error:
            raise UsageError(f"'{text}': {error}; {_FORM}.") from error
        if limit_bytes <= 0:
            raise UsageError(f"'{text}': a worker of which nothing is used is no use; {_FORM}.")
    return WorkerAddress(host=host, port=int(port), limit_bytes=limit_bytes)


def with_workers(machine: Machine, workers: tuple[Worker, ...]) -> Machine:
    """Return the machine with the devices of its workers, after its own, within their limits."""
    lent = tuple(gpu for worker in workers for gpu in gpus_of(worker))
    notes = tuple(note for worker in workers for note in notes_of(worker))
    return replace(machine, gpus=(*machine.gpus, *lent), notes=(*machine.notes, *notes))


def gpus_of(worker: Worker) -> tuple[Gpu, ...]:
    """Return the devices of a worker as devices of this machine."""
    endpoint, limit_bytes = worker.address.endpoint, worker.address.limit_bytes
    return tuple(
        Gpu(
            id=DeviceId(f"{GPU_PREFIX}RPC{index}[{endpoint}]"),
            name=f"{device.name} of the worker {endpoint}",
            total_bytes=_limited(device.total_bytes, limit_bytes),
            free_bytes=_limited(device.free_bytes, limit_bytes),
            backend=GpuBackend.RPC,
            engine_name=f"RPC{index}",
            memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s,
            link_bytes_per_s=worker.link.send_bytes_per_s if worker.link else None,
            link_latency_s=worker.link.latency_s if worker.link else None,
            compute_threads=device.threads,
        )
        for index, device in enumerate(worker.devices)
        if device.total_bytes > 0
    )


def notes_of(worker: Worker) -> tuple[str, ...]:
    """Return what somebody should know of a worker that answered."""
    where = f"the worker at {worker.address.endpoint}"
    if worker.offer is None:
        return (
            f"{where} has no side channel of moerun: that it freezes is noticed after minutes "
            "only, and its engine's version is not known; start it with `moerun worker`",
        )
    limit_bytes = worker.address.limit_bytes or 0
    return tuple(
        f"{where} lends {format_gib(device.total_bytes)} of {device.name}, less than the "
        f"{format_gib(limit_bytes)} that may be used"
        for device in worker.devices
        if limit_bytes > device.total_bytes
    )


def _limited(size_bytes: int, limit_bytes: int | None) -> int:
    return size_bytes if limit_bytes is None else min(size_bytes, limit_bytes)
