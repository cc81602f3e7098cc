"""The machine and the engine's self-check as lines for a terminal.

Knows: order, wording and colours of `moerun doctor`.
Does not know: how anything was probed or checked, or what follows from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from moerun.machine.description import Gpu, Host, Machine, Storage, StorageKind, system_name
from moerun.planning.obstacles import StreamingAbility
from moerun.report.plain import printable
from moerun.units import format_gib

_LABEL_COLUMNS = 11
_STORAGE_NAMES = {
    StorageKind.NVME: "NVMe",
    StorageKind.SSD: "SSD",
    StorageKind.DISK: "disk (rotating)",
    StorageKind.NETWORK: "network",
    StorageKind.UNKNOWN: "storage of unknown kind",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One step of the self-check as it is shown."""

    name: str
    is_ok: bool
    detail: str


def doctor_lines(
    machine: Machine,
    *,
    engine_version: str | None,
    checks: tuple[CheckLine, ...],
    streaming: StreamingAbility,
) -> tuple[Text, ...]:
    """Return all lines of the answer; each is whole, a narrow terminal wraps it."""
    return (
        *_engine_lines(engine_version, checks),
        Text(),
        *_gpu_lines(machine),
        *_host_lines(machine.host),
        _labelled("Storage", _storage_text(machine.storage)),
        *_streaming_lines(streaming),
        *_note_lines(machine.notes),
    )


def _engine_lines(version: str | None, checks: tuple[CheckLine, ...]) -> Iterator[Text]:
    name = f"llama-cpp-python {version}" if version else "not installed"
    yield _labelled("Engine", name)
    for check in checks:
        mark, style = ("ok", "green") if check.is_ok else ("FAILED", "bold red")
        line = Text("  ")
        line.append(mark.ljust(_LABEL_COLUMNS - 2), style=style)
        line.append(f"{check.name.ljust(_LABEL_COLUMNS)}{printable(check.detail)}")
        yield line


def _gpu_lines(machine: Machine) -> Iterator[Text]:
    if not machine.gpus:
        yield _labelled("GPU", "none that the engine can use")
    for gpu in machine.gpus:
        memory = f"{format_gib(gpu.free_bytes)} free of {format_gib(gpu.total_bytes)}"
        yield _labelled(machine.label(gpu.id), f"{gpu.name} · {memory}")
        yield _labelled("", " · ".join(_gpu_facts(gpu)))


def _gpu_facts(gpu: Gpu) -> Iterator[str]:
    yield gpu.engine_name or "not asked of the engine"
    yield gpu.id
    if gpu.shares_host_memory:
        yield "shares the host's memory"
    if gpu.is_remote:
        yield "over the network"
    if gpu.compute_capability is not None:
        yield "compute {}.{}".format(*gpu.compute_capability)
    if gpu.memory_bandwidth_bytes_per_s is not None:
        yield f"memory {_rate(gpu.memory_bandwidth_bytes_per_s)}"
    if gpu.link_bytes_per_s is not None:
        yield f"link {_rate(gpu.link_bytes_per_s)}"
    if gpu.link_latency_s is not None:
        yield f"answers in {gpu.link_latency_s * 1e3:,.1f} ms"


def _host_lines(host: Host) -> Iterator[Text]:
    memory = f"{format_gib(host.available_bytes)} available of {format_gib(host.total_bytes)}"
    if host.cgroup_limit_bytes is not None:
        memory += " (limit of a control group)"
    memory += f" · swap {format_gib(host.swap_free_bytes)} free"
    if host.memory_bandwidth_bytes_per_s is not None:
        memory += f" · reads {_rate(host.memory_bandwidth_bytes_per_s)}"
    yield _labelled("Memory", memory)
    cores = (
        "1 physical core" if host.physical_cores == 1 else f"{host.physical_cores} physical cores"
    )
    yield _labelled(
        "Processor", f"{host.processor or 'unknown'} · {cores} · {system_name(host.system)}"
    )


def _storage_text(storage: Storage) -> str:
    kind = _STORAGE_NAMES[storage.kind]
    on = f"{storage.filesystem} on {kind}" if storage.filesystem else kind
    rate = f" · reads {_rate(storage.read_bytes_per_s)}" if storage.read_bytes_per_s else ""
    return f"{storage.path} · {on} · {format_gib(storage.free_bytes)} free{rate}"


def _streaming_lines(streaming: StreamingAbility) -> Iterator[Text]:
    """Say what experts can be streamed by from this storage, and what stands in the way."""
    names = " and ".join(mechanism.value for mechanism in streaming.mechanisms)
    yield _labelled("Streaming", f"by {names}" if names else "not possible here")
    for because in streaming.because:
        yield _labelled("", because)


def _note_lines(notes: tuple[str, ...]) -> Iterator[Text]:
    if notes:
        yield Text()
        yield Text("Notes", style="bold")
    for note in notes:
        yield Text(f"  - {printable(note)}")


def _labelled(label: str, text: str) -> Text:
    line = Text(label.ljust(_LABEL_COLUMNS), style="bold")
    line.append(printable(text), style="not bold")
    return line


def _rate(bytes_per_s: float) -> str:
    """Return a rate in decimal gigabytes, as makers of devices state it."""
    return f"{bytes_per_s / 1e9:,.1f} GB/s"
