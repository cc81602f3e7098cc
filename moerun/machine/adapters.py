"""Display adapters on the PCI bus of Linux, seen without any driver's library.

Knows: vendor and class codes, and where the amdgpu driver writes a card's memory.
Does not know: whether anything can compute on an adapter.
"""

from pathlib import Path
from typing import Final

from moerun.machine.gpus import Adapter
from moerun.machine.mounts import read_text

_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_DISPLAY_CLASSES: Final = ("0x0300", "0x0302", "0x0380", "0x1200")  # the last: accelerators
_SMALLEST_CARD_BYTES: Final = 2 << 30  # graphics within a processor reserve less


def read_adapters(root: Path) -> tuple[Adapter, ...]:
    """Return the cards of NVIDIA and AMD that could hold weights.

    Graphics within an AMD processor are left out by their small memory. Intel's are not listed:
    the bus does not tell a card from graphics within the processor.
    """
    folder = root / "sys/bus/pci/devices"
    if not folder.is_dir():
        return ()
    found = (_read_adapter(device) for device in sorted(folder.iterdir()))
    return tuple(adapter for adapter in found if adapter is not None)


def _read_adapter(device: Path) -> Adapter | None:
    vendor = _VENDORS.get(read_text(device / "vendor") or "")
    if vendor is None or not (read_text(device / "class") or "").startswith(_DISPLAY_CLASSES):
        return None
    memory = read_text(device / "mem_info_vram_total")
    memory_bytes = int(memory) if memory is not None and memory.isdigit() else None
    if vendor == "AMD" and (memory_bytes or 0) < _SMALLEST_CARD_BYTES:
        return None
    return Adapter(pci_address=device.name, vendor=vendor, memory_bytes=memory_bytes)
