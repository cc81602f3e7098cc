"""Look at the machine: GPUs, host memory, storage, and what could not be found out.

Knows: which probe answers what, and how their answers make one `Machine`.
Does not know: the engine (its device list arrives as values), or what will be planned.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moerun.machine.adapters import read_adapters
from moerun.machine.description import DARWIN, LINUX, EngineDevice, Host, Machine
from moerun.machine.gpus import Surroundings, find_gpus
from moerun.machine.probe_host import current_affinity, probe_host
from moerun.machine.probe_kernel import ProcessLimits, current_limits, read_kernel_settings
from moerun.machine.probe_nvml import NvmlReading, read_nvml
from moerun.machine.storage import probe_storage
from moerun.places import working_folder


def probe_machine(
    *,
    model_path: Path | None = None,
    engine_devices: Sequence[EngineDevice] | None = None,
    engine_backends: frozenset[str] = frozenset(),
    nvml: Callable[[], NvmlReading] = read_nvml,
    root: Path = Path("/"),
    environment: Mapping[str, str] | None = None,
    system: str | None = None,
    affinity: frozenset[int] | None = None,
    limits: ProcessLimits | None = None,
) -> Machine:
    """Return the machine as a process here may use it.

    `model_path` says whose storage matters, the working folder without one. `engine_devices` is
    ggml's own list, None when there is no engine to ask, and `engine_backends` what it was built
    with. The rest are seams for tests. Raises ProbeFailed when the host's memory or the storage
    cannot be read; no GPU is no error.
    """
    system = system or platform.system()
    environment = os.environ if environment is None else environment
    affinity = current_affinity() if affinity is None else affinity
    host, host_notes = probe_host(root=root, system=system, affinity=affinity)
    storage, storage_notes = probe_storage(model_path or working_folder(), root=root, system=system)
    reading = NvmlReading() if system == DARWIN else nvml()
    gpus, gpu_notes = find_gpus(
        tuple(engine_devices) if engine_devices is not None else None,
        reading.cards,
        read_adapters(root) if system == LINUX else (),
        Surroundings(
            system=system,
            machine=platform.machine(),
            host_available_bytes=host.available_bytes,
            visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
            engine_backends=engine_backends,
        ),
    )
    trouble = (str(reading.trouble),) if reading.trouble is not None else ()
    notes = (*trouble, *reading.notes, *gpu_notes, *host_notes, *storage_notes)
    kernel = read_kernel_settings(root, limits or current_limits()) if system == LINUX else None
    return Machine(gpus=gpus, host=host, storage=storage, notes=notes, kernel=kernel)


def this_host() -> Host:
    """Return the memory and cores of this machine alone, as a process here may use them."""
    host, _ = probe_host(root=Path("/"), system=platform.system(), affinity=current_affinity())
    return host
