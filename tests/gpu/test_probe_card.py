"""The probe on a machine with a card: the driver's list and the engine's meet by address."""

import pytest

from moerun.engine.look import look_at_machine
from moerun.machine.probe_nvml import read_nvml

pytestmark = [pytest.mark.gpu, pytest.mark.engine]


def test_the_engines_cards_are_those_of_the_driver():
    cards = {card.pci_address: card for card in read_nvml().cards}
    gpus = look_at_machine().gpus
    assert gpus
    for gpu in gpus:
        assert gpu.pci_address in cards
        card = cards[gpu.pci_address]
        assert gpu.name == card.name
        assert gpu.compute_capability == card.compute_capability
        assert 0 < gpu.free_bytes <= gpu.total_bytes
        assert gpu.engine_name is not None


def test_a_card_tells_its_rates():
    for card in read_nvml().cards:
        assert card.memory_bandwidth_bytes_per_s is None or card.memory_bandwidth_bytes_per_s > 1e9
        assert card.link_bytes_per_s is None or card.link_bytes_per_s > 1e8
        assert card.total_bytes is None or card.total_bytes > 1 << 28
