"""Machines that are not there, for plans made before buying, or on another computer.

Knows: how to replace the GPUs or the memory of a machine as a value.
Does not know: any probe, or what will be planned.
"""

from dataclasses import replace

from moerun.machine.description import GPU_PREFIX, DeviceId, Gpu, GpuBackend, Machine
from moerun.units import format_gib


def with_vram(machine: Machine, sizes_bytes: tuple[int, ...]) -> Machine:
    """Return the machine with one empty GPU of each size in place of its own GPUs."""
    gpus = tuple(
        Gpu(
            id=DeviceId(f"{GPU_PREFIX}hypothetical-{index}"),
            name=f"hypothetical GPU of {format_gib(size_bytes)}",
            total_bytes=size_bytes,
            free_bytes=size_bytes,
            backend=GpuBackend.CUDA,
            is_hypothetical=True,
        )
        for index, size_bytes in enumerate(sizes_bytes)
    )
    sizes = " and ".join(format_gib(size_bytes) for size_bytes in sizes_bytes)
    note = f"planned for hypothetical GPUs of {sizes}; this machine does not have them"
    return replace(machine, gpus=gpus, notes=(*machine.notes, note))


def with_ram(machine: Machine, size_bytes: int) -> Machine:
    """Return the machine with that much memory, all of it available."""
    host = replace(
        machine.host, total_bytes=size_bytes, available_bytes=size_bytes, cgroup_limit_bytes=None
    )
    note = (
        f"planned for {format_gib(size_bytes)} of RAM; "
        f"this machine has {format_gib(machine.host.total_bytes)}"
    )
    return replace(machine, host=host, notes=(*machine.notes, note))
