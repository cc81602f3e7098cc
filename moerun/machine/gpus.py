"""The GPUs a plan may use, from what the driver says and what the engine lists.

Knows: how the two lists are matched (by PCI address, never by index) and what each is right about.
Does not know: NVML, ggml, or files; both lists arrive as values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moerun.machine.description import (
    DARWIN,
    GPU_PREFIX,
    DeviceId,
    EngineDevice,
    EngineDeviceKind,
    Gpu,
    GpuBackend,
)
from moerun.units import format_gib

_BACKENDS: Final[Mapping[str, GpuBackend]] = {
    # what `ggml_backend_reg_name` gives — ggml/src/*/ggml-*.{cpp,cu} @ 0.3.36
    "CUDA": GpuBackend.CUDA,
    "ROCm": GpuBackend.ROCM,
    "Vulkan": GpuBackend.VULKAN,
    "MTL": GpuBackend.METAL,
    "SYCL": GpuBackend.SYCL,
    "RPC": GpuBackend.RPC,
}
_VULKAN_REMEDY: Final = "rebuild it with: make run BACKEND=vulkan"
# A slice of a card (MIG) or a virtual device is smaller than its card by more than this.
_SLICE_FRACTION: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What NVML says of one card; None where the driver does not know.

    `free_bytes` is read without a context of ours on the card, which ggml's own figure includes.
    """

    pci_address: str
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A display adapter on the PCI bus, whether or not a driver serves it."""

    pci_address: str
    vendor: str
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What decides how the lists are read: the system, its memory, hidden devices.

    `engine_backends` name what the engine was built with (`cuda`, `vulkan`), as far as known.
    """

    system: str
    machine: str
    host_available_bytes: int
    visible_devices: str | None = None
    engine_backends: frozenset[str] = frozenset()


def find_gpus(
    engine_devices: tuple[EngineDevice, ...] | None,
    cards: tuple[Card, ...],
    adapters: tuple[Adapter, ...],
    around: Surroundings,
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Return the GPUs a plan may use, local ones first, and notes.

    The engine's list decides, since nothing runs on a device it lacks. With no engine to ask
    (None), the driver's cards stand for it.
    """
    if engine_devices is None:
        return _gpus_without_engine(cards, adapters, around)
    by_address = {card.pci_address: card for card in cards}
    local, remote, notes = _usable(engine_devices)
    gpus = tuple(
        _gpu_from_engine(device, by_address.get(_pci_address(device) or ""), around)
        for device in (*local, *remote)
    )
    return gpus, (*notes, *_unused_notes(engine_devices, cards, adapters, around))


def backend_of(device: EngineDevice) -> GpuBackend:
    """Return the backend that drives a device; a worker's registry may carry its address."""
    return _BACKENDS.get(device.registry.split("[")[0], GpuBackend.OTHER)


def device_id_of(device: EngineDevice) -> DeviceId:
    """Return the id of one of the engine's devices, which survives a change of order."""
    if backend_of(device) is GpuBackend.RPC:
        return DeviceId(f"{GPU_PREFIX}{device.name}[{device.description}]")
    return DeviceId(GPU_PREFIX + (device.device_id or device.name))


def _usable(
    devices: tuple[EngineDevice, ...],
) -> tuple[tuple[EngineDevice, ...], tuple[EngineDevice, ...], tuple[str, ...]]:
    """Split the list into local and remote devices, leaving out doubles and idle graphics.

    As llama.cpp chooses by default: the first of two backends on one card, integrated graphics
    only without a card, and of one backend only — src/llama.cpp @ 0.3.36.
    """
    notes: list[str] = []
    cards: dict[str, EngineDevice] = {}
    integrated: list[EngineDevice] = []
    remote: list[EngineDevice] = []
    for device in devices:
        if device.kind not in (EngineDeviceKind.GPU, EngineDeviceKind.INTEGRATED_GPU):
            continue
        if device.total_bytes <= 0:
            notes.append(f"{device.name} ({device.description}) reports no memory and is left out")
        elif backend_of(device) is GpuBackend.RPC:
            remote.append(device)
        elif device.kind is EngineDeviceKind.INTEGRATED_GPU:
            if not integrated or integrated[0].registry == device.registry:
                integrated.append(device)
        elif device_id_of(device) in cards:
            first = cards[device_id_of(device)]
            notes.append(f"{device.name} is the same card as {first.name}, which is used")
        else:
            cards[device_id_of(device)] = device
    if cards and integrated:
        notes.extend(
            f"{device.name} ({device.description}) shares host memory and is left out "
            "beside a card with memory of its own"
            for device in integrated
        )
        integrated = []
    return tuple(cards.values()) + tuple(integrated), tuple(remote), tuple(notes)


def _pci_address(device: EngineDevice) -> str | None:
    """Return the address of the card; ggml's virtual devices carry a suffix such as `-v1`."""
    if device.device_id is None:
        return None
    return device.device_id.lower().partition("-")[0]


def _gpu_from_engine(device: EngineDevice, card: Card | None, around: Surroundings) -> Gpu:
    shares = _shares_host_memory(device, around)
    total_bytes, free_bytes = device.total_bytes, device.free_bytes
    if card is not None and _is_whole_card(device, card):
        assert card.free_bytes is not None
        free_bytes = min(card.free_bytes, total_bytes)
    if shares:
        free_bytes = min(free_bytes, around.host_available_bytes)
    return Gpu(
        id=device_id_of(device),
        name=card.name if card is not None else device.description,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        backend=backend_of(device),
        engine_name=device.name,
        pci_address=_pci_address(device),
        compute_capability=card.compute_capability if card else None,
        memory_bandwidth_bytes_per_s=card.memory_bandwidth_bytes_per_s if card else None,
        link_bytes_per_s=card.link_bytes_per_s if card else None,
        shares_host_memory=shares,
        working_set_limit_bytes=total_bytes if shares else None,
    )


def _is_whole_card(device: EngineDevice, card: Card) -> bool:
    """Whether the driver's figures for the card hold for the device, and not for a larger whole."""
    if card.total_bytes is None or card.free_bytes is None:
        return False
    return device.total_bytes >= card.total_bytes * _SLICE_FRACTION


def _shares_host_memory(device: EngineDevice, around: Surroundings) -> bool:
    """Whether the device takes its memory from the host's.

    Metal calls every device a GPU; those of Apple's own chips share, those of Intel Macs do not.
    Its total is the driver's recommended working set — ggml-metal-device.m @ 0.3.36.
    """
    if device.kind is EngineDeviceKind.INTEGRATED_GPU:
        return True
    return backend_of(device) is GpuBackend.METAL and around.machine == "arm64"


def _gpus_without_engine(
    cards: tuple[Card, ...], adapters: tuple[Adapter, ...], around: Surroundings
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    notes = ["no engine was asked; the GPUs are those that the driver lists"]
    if around.system == DARWIN:
        notes = ["no engine was asked, and only it lists the GPU of a Mac"]
    notes.extend(_unserved_notes(cards, adapters, listed=frozenset()))
    if around.visible_devices is not None and cards:
        if around.visible_devices.strip() in ("", "-1"):
            return (), (*notes, _hidden_note(cards))
        notes.append(
            "CUDA_VISIBLE_DEVICES is set, but only the engine can tell which cards it means"
        )
    gpus = []
    for card in cards:
        if card.total_bytes is None or card.free_bytes is None:
            notes.append(f"{card.name} does not tell its memory and is left out")
            continue
        gpus.append(
            Gpu(
                id=DeviceId(GPU_PREFIX + card.pci_address),
                name=card.name,
                total_bytes=card.total_bytes,
                free_bytes=card.free_bytes,
                backend=GpuBackend.CUDA,
                pci_address=card.pci_address,
                compute_capability=card.compute_capability,
                memory_bandwidth_bytes_per_s=card.memory_bandwidth_bytes_per_s,
                link_bytes_per_s=card.link_bytes_per_s,
            )
        )
    return tuple(gpus), tuple(notes)


def _unused_notes(
    devices: tuple[EngineDevice, ...],
    cards: tuple[Card, ...],
    adapters: tuple[Adapter, ...],
    around: Surroundings,
) -> tuple[str, ...]:
    """Say which cards lie idle beside the engine, and what would put them to use."""
    addresses = (_pci_address(device) for device in devices)
    listed = frozenset(address for address in addresses if address is not None)
    idle = tuple(card for card in cards if card.pci_address not in listed)
    notes = list(_unserved_notes(cards, adapters, listed=listed))
    has_cuda = any(backend_of(device) is GpuBackend.CUDA for device in devices)
    if idle and (has_cuda or around.visible_devices is not None):
        notes.append(_hidden_note(idle))
    elif idle and "cuda" in around.engine_backends:
        notes.append(
            f"the engine was built with CUDA and does not list {_names(idle)}; "
            "the driver may be older than the CUDA it was built with"
        )
    elif idle:
        notes.append(
            f"the engine was built without CUDA, so {_names(idle)} is not used; "
            "rebuild it with: make run BACKEND=cuda"
        )
    can_list = around.engine_backends & {"vulkan", "hip"}
    remedy = "it is hidden or lacks a driver" if can_list else _VULKAN_REMEDY
    notes.extend(
        f"the engine does not list the {adapter.vendor} GPU at {adapter.pci_address}"
        f"{_of_memory(adapter)}; {remedy}"
        for adapter in adapters
        if adapter.vendor != "NVIDIA" and adapter.pci_address not in listed
    )
    return tuple(notes)


def _unserved_notes(
    cards: tuple[Card, ...], adapters: tuple[Adapter, ...], *, listed: frozenset[str]
) -> tuple[str, ...]:
    """Say which NVIDIA adapters have no working driver; one the engine lists has some other."""
    served = {card.pci_address for card in cards} | listed
    return tuple(
        f"the NVIDIA GPU at {adapter.pci_address} is not served by a driver and is not used"
        for adapter in adapters
        if adapter.vendor == "NVIDIA" and adapter.pci_address not in served
    )


def _hidden_note(cards: tuple[Card, ...]) -> str:
    return f"{_names(cards)} is hidden from the engine (CUDA_VISIBLE_DEVICES)"


def _names(cards: tuple[Card, ...]) -> str:
    return " and ".join(f"{card.name} ({card.pci_address})" for card in cards)


def _of_memory(adapter: Adapter) -> str:
    return f" ({format_gib(adapter.memory_bytes)})" if adapter.memory_bytes else ""
