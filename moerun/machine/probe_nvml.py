"""What NVIDIA's management library says of its cards.

Knows: pynvml, and what each of its errors means to a person.
Does not know: the engine's list of devices, or any plan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from moerun.machine.gpus import Card

Answer = TypeVar("Answer")


class NvmlTrouble(StrEnum):
    """What an error of NVML comes down to."""

    NO_DRIVER = "no NVIDIA driver is installed"
    DRIVER_MISMATCH = (
        "NVIDIA's driver library and kernel module have different versions; "
        "restart the machine, or give the container the host's driver"
    )
    NOT_PERMITTED = "this user may not ask NVIDIA's driver; add the user to the group that may"
    CARD_LOST = "a card has stopped answering NVIDIA's driver; restart the machine"
    POWER = "a card has too little power or a fault in its cabling"
    UNKNOWN_FACT = "the card does not tell"
    DRIVER_FAULT = "NVIDIA's driver answered with an error"


TROUBLE_OF_ERROR: Final[dict[str, NvmlTrouble]] = {
    # pynvml's classes without their prefix — pynvml.py @ 13 — tests/test_probe_nvml.py
    "LibraryNotFound": NvmlTrouble.NO_DRIVER,
    "DriverNotLoaded": NvmlTrouble.NO_DRIVER,
    "LibRmVersionMismatch": NvmlTrouble.DRIVER_MISMATCH,
    "NoPermission": NvmlTrouble.NOT_PERMITTED,
    "GpuIsLost": NvmlTrouble.CARD_LOST,
    "GpuNotFound": NvmlTrouble.CARD_LOST,
    "ResetRequired": NvmlTrouble.CARD_LOST,
    "InsufficientPower": NvmlTrouble.POWER,
    "IrqIssue": NvmlTrouble.POWER,
    "NotSupported": NvmlTrouble.UNKNOWN_FACT,
    "NotFound": NvmlTrouble.UNKNOWN_FACT,
    "NoData": NvmlTrouble.UNKNOWN_FACT,
    "NotReady": NvmlTrouble.UNKNOWN_FACT,
    "Deprecated": NvmlTrouble.UNKNOWN_FACT,
    "FunctionNotFound": NvmlTrouble.UNKNOWN_FACT,
    "ArgumentVersionMismatch": NvmlTrouble.UNKNOWN_FACT,
    "FreqNotSupported": NvmlTrouble.UNKNOWN_FACT,
    "VgpuEccNotSupported": NvmlTrouble.UNKNOWN_FACT,
    "ResetTypeNotSupported": NvmlTrouble.UNKNOWN_FACT,
    "CorruptedInforom": NvmlTrouble.UNKNOWN_FACT,
    "InvalidArgument": NvmlTrouble.DRIVER_FAULT,
    "InvalidState": NvmlTrouble.DRIVER_FAULT,
    "InsufficientSize": NvmlTrouble.DRIVER_FAULT,
    "InsufficientResources": NvmlTrouble.DRIVER_FAULT,
    "InUse": NvmlTrouble.DRIVER_FAULT,
    "Memory": NvmlTrouble.DRIVER_FAULT,
    "OperatingSystem": NvmlTrouble.DRIVER_FAULT,
    "Timeout": NvmlTrouble.DRIVER_FAULT,
    "Uninitialized": NvmlTrouble.DRIVER_FAULT,
    "AlreadyInitialized": NvmlTrouble.DRIVER_FAULT,
    "Unknown": NvmlTrouble.DRIVER_FAULT,
}


# Of PCIe generations 1 to 6, line coding taken off.
_LANE_BYTES_PER_S: Final = (0.25e9, 0.5e9, 0.985e9, 1.969e9, 3.938e9, 7.563e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlReading:
    """The cards the driver lists, or why it lists none; `notes` name cards that did not answer."""

    cards: tuple[Card, ...] = ()
    trouble: NvmlTrouble | None = None
    driver: str | None = None
    notes: tuple[str, ...] = ()


def trouble_of(error: Exception) -> NvmlTrouble:
    """Return what an error of NVML comes down to; a code without a class is a driver's fault."""
    name = type(error).__name__.removeprefix("NVMLError_")
    return TROUBLE_OF_ERROR.get(name, NvmlTrouble.DRIVER_FAULT)


def read_nvml() -> NvmlReading:
    """Ask the driver for its cards. Never raises for what the driver says; that is a value."""
    try:
        import pynvml
    except ImportError:
        return NvmlReading(notes=("the package nvidia-ml-py is not installed: no card is asked",))
    return read_cards(pynvml)


def read_cards(nvml: Any) -> NvmlReading:
    """Ask through a module like pynvml for all cards, each fact on its own."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NvmlReading(trouble=trouble_of(error))
    cards: list[Card] = []
    notes: list[str] = []
    try:
        driver = _fact(nvml, nvml.nvmlSystemGetDriverVersion)
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                cards.append(_read_card(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
            except nvml.NVMLError as error:
                notes.append(f"card {index} of NVIDIA's driver is left out: {trouble_of(error)}")
    except nvml.NVMLError as error:
        return NvmlReading(trouble=trouble_of(error), notes=tuple(notes))
    finally:
        _shut_down(nvml)
    return NvmlReading(cards=tuple(cards), driver=_text(driver), notes=tuple(notes))


def _shut_down(nvml: Any) -> None:
    """Let the library go; that it refuses changes nothing that was read."""
    import contextlib

    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()


def _read_card(nvml: Any, handle: Any) -> Card:
    """Read one card; its address and name must be known, the rest may be absent."""
    memory = _fact(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _fact(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Card(
        pci_address=short_address(_text(nvml.nvmlDeviceGetPciInfo(handle).busId) or ""),
        name=_text(nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU",
        total_bytes=int(memory.total) if memory is not None else None,
        free_bytes=int(memory.free) if memory is not None else None,
        compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
        memory_bandwidth_bytes_per_s=_memory_bandwidth(nvml, handle),
        link_bytes_per_s=_link(nvml, handle),
    )


def short_address(address: str) -> str:
    """Return a PCI address as ggml writes it: lower case, a domain of four digits."""
    domain, separator, rest = address.strip().lower().partition(":")
    return f"{domain.lstrip('0').rjust(4, '0')}{separator}{rest}"


def _memory_bandwidth(nvml: Any, handle: Any) -> float | None:
    """Return the peak rate: two transfers for each cycle of the memory clock NVML reports."""
    clock_mhz = _fact(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM)
    width_bits = _fact(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle)
    if not clock_mhz or not width_bits:
        return None
    return 2 * float(clock_mhz) * 1e6 * float(width_bits) / 8


def _link(nvml: Any, handle: Any) -> float | None:
    """Return the peak rate of the PCIe link at the generation and width card and slot share."""
    generation = _fact(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
    width = _fact(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
    if not generation or not width:
        return None
    lane_bytes_per_s = _LANE_BYTES_PER_S[min(int(generation), len(_LANE_BYTES_PER_S)) - 1]
    return lane_bytes_per_s * int(width)


def _fact(nvml: Any, ask: Callable[..., Answer], *arguments: Any) -> Answer | None:
    """Ask for one fact; a fact the card or driver does not know is None, other errors pass."""
    try:
        return ask(*arguments)
    except nvml.NVMLError as error:
        if trouble_of(error) is NvmlTrouble.UNKNOWN_FACT:
            return None
        raise


def _text(answer: Any) -> str | None:
    """Return what older bindings give as bytes and newer ones as text."""
    if isinstance(answer, bytes):
        return answer.decode("utf-8", errors="replace")
    return None if answer is None else str(answer)
