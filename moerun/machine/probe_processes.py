"""What is known of one process: whether it is still the same one, and what it holds on each card.

Knows: pynvml's process lists, that a container may hide the process ids, and how a process is told
from a later one with its number.
Does not know: host memory, or what the bytes are used for.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
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


def process_mark(pid: int, *, proc: Path = Path("/proc")) -> str | None:
    """Return a text that no other process with this number has; None when none is alive."""
    if (proc / "self" / "stat").exists():
        try:
            text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # Fields follow the name in parentheses, which may itself hold spaces: state is the 3rd
        # field of all, the start in ticks since boot the 22nd.
        after_name = text.rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else f"ticks:{after_name[19]}"
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"time:{process.create_time():.2f}"
    except psutil.Error:
        return None
