"""A machine as values: GPUs, host memory, storage, and what could not be found out.

Knows: the nouns and how to look a device up.
Does not know: how anything is probed, or what will be placed.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

DeviceId = NewType("DeviceId", str)
"""`gpu:<id ggml reports>`, `host` or `ssd`; never an index."""

HOST: Final = DeviceId("host")
SSD: Final = DeviceId("ssd")
GPU_PREFIX: Final = "gpu:"

# The values of `Host.system`, as Python's platform module spells them.
LINUX: Final = "Linux"
DARWIN: Final = "Darwin"
WINDOWS: Final = "Windows"


def system_name(system: str) -> str:
    """Return what people call a system: macOS where Python says Darwin."""
    return "macOS" if system == DARWIN else system


def is_gpu(device: DeviceId) -> bool:
    """Whether the id names a device of its own, local or remote."""
    return device.startswith(GPU_PREFIX)


class GpuBackend(StrEnum):
    """The ggml backend that drives a device."""

    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    METAL = "metal"
    SYCL = "sycl"
    RPC = "rpc"
    OTHER = "other"


class StorageKind(StrEnum):
    """What the model's file lies on."""

    NVME = "nvme"
    SSD = "ssd"
    DISK = "disk"
    NETWORK = "network"
    UNKNOWN = "unknown"


class EngineDeviceKind(StrEnum):
    """What ggml says a device is.

    `enum ggml_backend_dev_type` — ggml/include/ggml-backend.h @ 0.3.36 — checked by
    tests/engine/test_devices.py.
    """

    CPU = "cpu"
    GPU = "gpu"
    INTEGRATED_GPU = "igpu"
    ACCELERATOR = "accel"
    META = "meta"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDevice:
    """One entry of ggml's own device list, in the engine's words.

    `name` is `CUDA0`, `MTL0` or `RPC0`; `registry` the backend that drives it (`CUDA`, `ROCm`,
    `Vulkan`, `MTL`, `SYCL`, `RPC`, `CPU`). `device_id` is the lower-case PCI address where the
    backend knows it (CUDA, ROCm, Vulkan), None elsewhere. `description` is the card's name, or
    the address of an RPC worker.
    """

    name: str
    description: str
    registry: str
    kind: EngineDeviceKind
    free_bytes: int
    total_bytes: int
    device_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device with memory of its own, or a share of the host's.

    `id` is `gpu:` and the PCI address where ggml knows one (`gpu:0000:01:00.0`), the name and the
    address of a worker (`gpu:RPC0[127.0.0.1:50052]`), or ggml's name (`gpu:MTL0`).
    `engine_name` is what ggml calls it (`CUDA0`, `RPC0`), None when no engine was asked.
    `working_set_limit_bytes` is the driver's limit for devices that share host memory.
    `compute_threads` are those of a worker whose device is a processor, None for every card.
    """

    id: DeviceId
    name: str
    total_bytes: int
    free_bytes: int
    backend: GpuBackend
    engine_name: str | None = None
    pci_address: str | None = None
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None
    compute_threads: int | None = None
    shares_host_memory: bool = False
    working_set_limit_bytes: int | None = None
    is_hypothetical: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over the network (an RPC worker)."""
        return self.backend is GpuBackend.RPC


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The memory and cores a process here may use; limits of control groups are applied."""

    total_bytes: int
    available_bytes: int
    swap_free_bytes: int
    physical_cores: int
    cgroup_limit_bytes: int | None = None
    processor: str = ""
    system: str = "Linux"
    memory_bandwidth_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The storage that one folder lies on."""

    path: str
    kind: StorageKind
    free_bytes: int
    filesystem: str = ""
    read_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """What Linux lets this process do with memory; None where there is no bound or none is told.

    `version` is the first two numbers of the kernel's release. `commit_left_bytes` is what may
    still be promised where memory is promised strictly (vm.overcommit_memory 2). `huge_pages` is
    `always`, `madvise` or `never`.
    """

    version: tuple[int, int] | None = None
    map_count_limit: int | None = None
    commit_left_bytes: int | None = None
    address_limit_bytes: int | None = None
    private_limit_bytes: int | None = None
    locked_limit_bytes: int | None = None
    huge_pages: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything a plan needs to know; `notes` say what could not be probed, and why.

    `kernel` is None on other systems than Linux, and where nobody asked.
    """

    gpus: tuple[Gpu, ...]
    host: Host
    storage: Storage
    notes: tuple[str, ...] = ()
    kernel: KernelSettings | None = None

    def gpu(self, device: DeviceId) -> Gpu:
        """Return the GPU of that id; KeyError when there is none."""
        for gpu in self.gpus:
            if gpu.id == device:
                return gpu
        raise KeyError(device)

    def label(self, device: DeviceId) -> str:
        """Return what people write: `gpu0`, `gpu1` (by position), `cpu` or `ssd`."""
        if device == HOST:
            return "cpu"
        if device == SSD:
            return "ssd"
        for index, gpu in enumerate(self.gpus):
            if gpu.id == device:
                return f"gpu{index}"
        return device

    def resolve(self, label: str) -> DeviceId | None:
        """Return the id that `gpu0`, `cpu`, `ssd` or an id itself names; None when unknown."""
        if label in ("cpu", HOST):
            return HOST
        if label == SSD:
            return SSD
        for index, gpu in enumerate(self.gpus):
            if label in (f"gpu{index}", gpu.id):
                return gpu.id
        return None

    @property
    def fingerprint(self) -> str:
        """Return a text that is equal for machines of the same devices and memory sizes."""
        gpus = ",".join(f"{gpu.id}={gpu.total_bytes}" for gpu in self.gpus)
        return f"{self.host.system}/{self.host.processor}/{self.host.total_bytes}/{gpus}"
