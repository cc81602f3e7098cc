"""What NVIDIA's driver says that one process holds on each card.

Knows: pynvml's process lists, and that a container may hide the process ids.
Does not know: host memory, or what the bytes are used for.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

from moerun.machine.probe_nvml import short_address


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCard:
    """One card: bytes of the process (None when the driver does not tell), bytes of everyone."""

    pci_address: str
    process_bytes: int | None
    used_bytes: int


def read_process_cards(pid: int, *, nvml: Any = None) -> tuple[ProcessCard, ...]:
    """Return every card with what a process holds on it; empty without a driver.

    Within a container the driver may list ids of the host, so a process that is not listed while
    others are is told as None, not as 0.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return ()
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()  # what ails the driver is told by the probe of the machine
    try:
        cards = (_read(nvml, index, pid) for index in range(nvml.nvmlDeviceGetCount()))
        return tuple(card for card in cards if card is not None)
    except nvml.NVMLError:
        return ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read(nvml: Any, index: int, pid: int) -> ProcessCard | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        address = nvml.nvmlDeviceGetPciInfo(handle).busId
        used_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    except nvml.NVMLError:
        return None  # a lost card; the others still answer
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        processes = ()
    mine = [process.usedGpuMemory for process in processes if process.pid == pid]
    process_bytes = mine[0] if mine else (None if processes else 0)
    return ProcessCard(
        pci_address=short_address(address.decode() if isinstance(address, bytes) else address),
        process_bytes=int(process_bytes) if process_bytes is not None else None,
        used_bytes=used_bytes,
    )
