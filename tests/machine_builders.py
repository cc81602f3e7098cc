"""Small machines, and file trees that look like /proc and /sys to a probe."""

from pathlib import Path

from moerun.machine.description import EngineDevice, EngineDeviceKind
from moerun.machine.gpus import Card, Surroundings

GIB = 1 << 30


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def a_host_tree(root: Path, *, memory_kib: int = 1000, available_kib: int = 800) -> Path:
    return write_tree(
        root,
        {
            "proc/meminfo": f"MemTotal: {memory_kib} kB\nMemFree: 1 kB\n"
            f"MemAvailable: {available_kib} kB\nSwapFree: 50 kB\n",
            "proc/cpuinfo": "processor : 0\nmodel name : Test CPU 9000\n",
        },
    )


def a_cgroup2_mount(root: str = "/") -> str:
    return f"30 20 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def a_cgroup1_mount(controller: str, root: str = "/") -> str:
    return f"31 20 0:27 {root} /sys/fs/cgroup/{controller} rw - cgroup cgroup rw,{controller}\n"


def an_engine_device(
    name: str = "CUDA0",
    *,
    registry: str = "CUDA",
    device_id: str | None = "0000:01:00.0",
    kind: EngineDeviceKind = EngineDeviceKind.GPU,
    description: str = "Test GPU",
    free: int = 90,
    total: int = 100,
) -> EngineDevice:
    return EngineDevice(
        name=name,
        description=description,
        registry=registry,
        kind=kind,
        free_bytes=free,
        total_bytes=total,
        device_id=device_id,
    )


def a_card(
    pci: str = "0000:01:00.0", *, name: str = "Card", free: int = 95, total: int = 102
) -> Card:
    return Card(
        pci_address=pci,
        name=name,
        free_bytes=free,
        total_bytes=total,
        compute_capability=(8, 9),
    )


def surroundings(
    *,
    system: str = "Linux",
    machine: str = "x86_64",
    host_available: int = 1000,
    visible_devices: str | None = None,
    engine_backends: frozenset[str] = frozenset(),
) -> Surroundings:
    return Surroundings(
        system=system,
        machine=machine,
        host_available_bytes=host_available,
        visible_devices=visible_devices,
        engine_backends=engine_backends,
    )
