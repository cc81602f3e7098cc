"""How much memory one runner uses now, as the system and the driver tell it.

Host memory is told twice, private and file-backed: the weights of a mapped model are pages of the
file, which the system may drop and which several processes share, so one sum would count them
double. On Linux all figures come from one walk over `/proc/PID/smaps`, elsewhere from psutil.

Knows: where each figure is read, and which are absent where.
Does not know: plans, buffers, or what the figures should be.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.machine.description import DeviceId

_PROC: Final = Path("/proc")
_KIB: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU: what this process holds (None when the driver does not tell), what all hold."""

    device: DeviceId
    process_bytes: int | None
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """One look at a process. `at_s` is of the machine's monotonic clock; None is not known.

    `resident_bytes` is `private_bytes` (anonymous) plus `file_backed_bytes`; of the latter
    `model_resident_bytes` are pages of the model's files. `proportional_bytes` counts shared
    pages by the share of this process.
    """

    at_s: float
    resident_bytes: int
    private_bytes: int | None = None
    file_backed_bytes: int | None = None
    model_resident_bytes: int | None = None
    proportional_bytes: int | None = None
    swapped_bytes: int | None = None
    host_available_bytes: int | None = None
    gpus: tuple[GpuSample, ...] = ()

    def gpu(self, device: DeviceId) -> GpuSample | None:
        """Return what was seen of a GPU, None when it was not asked."""
        return next((sample for sample in self.gpus if sample.device == device), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingSums:
    """Sums over the mappings of a process."""

    resident_bytes: int
    proportional_bytes: int
    anonymous_bytes: int
    swapped_bytes: int
    model_resident_bytes: int


def sample_process(
    pid: int | None = None,
    *,
    model_paths: tuple[str, ...] = (),
    with_gpus: bool = True,
    proc: Path = _PROC,
) -> MemorySample | None:
    """Look at a process, this one without `pid`; None when it is gone or not ours to see."""
    pid = os.getpid() if pid is None else pid
    gpus = _sample_gpus(pid) if with_gpus else ()
    if (proc / str(pid) / "smaps").exists():
        return _sample_linux(pid, model_paths, gpus, proc)
    return _sample_elsewhere(pid, gpus)


def sum_mappings(smaps: str, *, model_paths: tuple[str, ...] = ()) -> MappingSums:
    """Add up the text of a `smaps` file; `model_paths` are the files whose pages count apart."""
    sums = dict.fromkeys(("Rss", "Pss", "Anonymous", "Swap", "model"), 0)
    models = {os.path.realpath(path) for path in model_paths}
    in_model = False
    for line in smaps.splitlines():
        name, separator, rest = line.partition(":")
        if not separator or not name.isidentifier():
            # The head of a mapping: addresses, rights, offset, device, inode, path.
            head = line.split(maxsplit=5)
            in_model = len(head) == 6 and head[5].removesuffix(" (deleted)") in models
        elif name in sums:
            size_bytes = int(rest.split()[0]) * _KIB
            sums[name] += size_bytes
            if in_model and name == "Rss":
                sums["model"] += size_bytes
            elif in_model and name == "Anonymous":
                sums["model"] -= size_bytes  # written to, so a copy of ours
    return MappingSums(
        resident_bytes=sums["Rss"],
        proportional_bytes=sums["Pss"],
        anonymous_bytes=sums["Anonymous"],
        swapped_bytes=sums["Swap"],
        model_resident_bytes=sums["model"],
    )


def _sample_linux(
    pid: int, model_paths: tuple[str, ...], gpus: tuple[GpuSample, ...], proc: Path
) -> MemorySample | None:
    try:
        smaps = (proc / str(pid) / "smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return None
    sums = sum_mappings(smaps, model_paths=model_paths)
    return MemorySample(
        at_s=time.monotonic(),
        resident_bytes=sums.resident_bytes,
        private_bytes=sums.anonymous_bytes,
        file_backed_bytes=sums.resident_bytes - sums.anonymous_bytes,
        model_resident_bytes=sums.model_resident_bytes if model_paths else None,
        proportional_bytes=sums.proportional_bytes,
        swapped_bytes=sums.swapped_bytes,
        host_available_bytes=_available_bytes(proc),
        gpus=gpus,
    )


def _sample_elsewhere(pid: int, gpus: tuple[GpuSample, ...]) -> MemorySample | None:
    """Ask psutil: macOS and Windows tell the resident size, and little more."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
        return MemorySample(
            at_s=time.monotonic(),
            resident_bytes=memory.rss,
            private_bytes=getattr(memory, "private", None),  # Windows alone
            host_available_bytes=psutil.virtual_memory().available,
            gpus=gpus,
        )
    except psutil.Error:
        return None


def _sample_gpus(pid: int) -> tuple[GpuSample, ...]:
    from moerun.machine.probe_processes import read_process_cards

    return tuple(
        GpuSample(
            device=DeviceId(f"gpu:{card.pci_address}"),
            process_bytes=card.process_bytes,
            used_bytes=card.used_bytes,
        )
        for card in read_process_cards(pid)
    )


def _available_bytes(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * _KIB
    return None
