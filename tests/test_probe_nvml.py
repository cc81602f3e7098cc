"""A module that answers like pynvml, scripted; its errors are pynvml's own classes."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from moerun.machine.probe_nvml import (
    TROUBLE_OF_ERROR,
    NvmlTrouble,
    read_cards,
    short_address,
    trouble_of,
)

GIB = 1 << 30


def error_classes() -> list[type[Exception]]:
    names = [name for name in dir(pynvml) if name.startswith("NVMLError_")]
    return [getattr(pynvml, name) for name in names]


def instance(kind: type[Exception]) -> Exception:
    codes = {pynvml.NVMLError(code).__class__: code for code in range(1, 1000)}
    error: Exception = pynvml.NVMLError(codes[kind])
    return error


class ScriptedNvml:
    """Cards as dictionaries of answers; an answer that is an error is raised."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_MEM = pynvml.NVML_CLOCK_MEM

    def __init__(self, *cards: dict[str, Any], init: Exception | None = None) -> None:
        self._cards = cards
        self._init = init
        self.is_shut_down = False

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's spelling
        if self._init is not None:
            raise self._init

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_shut_down = True

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.10"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self._cards[index]

    def __getattr__(self, name: str) -> Any:
        def ask(card: dict[str, Any], *_: Any) -> Any:
            answer = card[name.removeprefix("nvmlDeviceGet")]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def scripted_card(**changes: Any) -> dict[str, Any]:
    card = {
        "PciInfo": SimpleNamespace(busId=b"00000000:41:00.0"),
        "Name": "NVIDIA GeForce RTX 3090",
        "MemoryInfo": SimpleNamespace(total=24 * GIB, free=23 * GIB),
        "CudaComputeCapability": (8, 6),
        "MaxClockInfo": 9751,
        "MemoryBusWidth": 384,
        "MaxPcieLinkGeneration": 4,
        "MaxPcieLinkWidth": 16,
    }
    return card | changes


def test_every_error_of_the_library_is_mapped():
    names = {kind.__name__.removeprefix("NVMLError_") for kind in error_classes()}
    assert names == set(TROUBLE_OF_ERROR)


def test_an_error_code_without_a_class_is_a_drivers_fault():
    assert trouble_of(pynvml.NVMLError(9999)) is NvmlTrouble.DRIVER_FAULT


def test_a_card_is_read_with_its_rates():
    nvml = ScriptedNvml(scripted_card())
    reading = read_cards(nvml)
    (card,) = reading.cards
    assert card.pci_address == "0000:41:00.0"
    assert card.name == "NVIDIA GeForce RTX 3090"
    assert (card.total_bytes, card.free_bytes) == (24 * GIB, 23 * GIB)
    assert card.compute_capability == (8, 6)
    assert card.memory_bandwidth_bytes_per_s == pytest.approx(936.1e9, rel=0.001)
    assert card.link_bytes_per_s == pytest.approx(31.5e9, rel=0.001)
    assert reading.driver == "580.10"
    assert reading.trouble is None
    assert nvml.is_shut_down


def test_facts_a_card_does_not_tell_are_absent():
    unknown = instance(pynvml.NVMLError_NotSupported)
    facts = ("MemoryInfo", "CudaComputeCapability", "MaxClockInfo", "MaxPcieLinkWidth")
    (card,) = read_cards(ScriptedNvml(scripted_card(**dict.fromkeys(facts, unknown)))).cards
    assert card.total_bytes is None
    assert card.compute_capability is None
    assert card.memory_bandwidth_bytes_per_s is None
    assert card.link_bytes_per_s is None


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_no_error_at_the_start_escapes(kind: type[Exception]):
    reading = read_cards(ScriptedNvml(init=instance(kind)))
    assert reading.cards == ()
    assert reading.trouble is trouble_of(instance(kind))


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_a_card_that_fails_leaves_the_others(kind: type[Exception]):
    failing = scripted_card(MemoryInfo=instance(kind), Name="Failing")
    reading = read_cards(ScriptedNvml(failing, scripted_card()))
    assert reading.cards[-1].name == "NVIDIA GeForce RTX 3090"
    if trouble_of(instance(kind)) is NvmlTrouble.UNKNOWN_FACT:
        assert reading.cards[0].total_bytes is None
    else:
        assert len(reading.cards) == 1
        assert str(trouble_of(instance(kind))) in reading.notes[0]


def test_addresses_are_written_as_ggml_does():
    assert short_address("00000000:C1:00.0") == "0000:c1:00.0"
    assert short_address("00010000:01:00.0") == "10000:01:00.0"
