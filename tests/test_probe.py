from pathlib import Path

import pytest

from moerun.machine.description import EngineDevice, EngineDeviceKind
from moerun.machine.probe import probe_machine
from moerun.machine.probe_nvml import NvmlReading, NvmlTrouble
from tests.machine_builders import a_card, a_host_tree, an_engine_device, write_tree


def probe(
    tmp_path: Path,
    reading: NvmlReading,
    devices: tuple[EngineDevice, ...] | None = (),
    **environment: str,
):
    return probe_machine(
        model_path=tmp_path,
        engine_devices=devices,
        nvml=lambda: reading,
        root=a_host_tree(tmp_path),
        environment=environment,
        system="Linux",
        affinity=frozenset((0, 1)),
    )


def test_no_driver_is_a_note_and_no_error(tmp_path: Path):
    machine = probe(tmp_path, NvmlReading(trouble=NvmlTrouble.NO_DRIVER))
    assert machine.gpus == ()
    assert "no NVIDIA driver is installed" in machine.notes
    assert machine.host.physical_cores == 2


def test_gpus_host_and_storage_make_one_machine(tmp_path: Path):
    machine = probe(tmp_path, NvmlReading(cards=(a_card(),)), (an_engine_device(),))
    assert [gpu.engine_name for gpu in machine.gpus] == ["CUDA0"]
    assert machine.host.total_bytes == 1000 * 1024
    assert machine.storage.path == str(tmp_path)
    assert machine.resolve("gpu0") == "gpu:0000:01:00.0"


def test_hidden_devices_are_read_from_the_environment(tmp_path: Path):
    reading = NvmlReading(cards=(a_card(name="Hidden"),))
    machine = probe(tmp_path, reading, (), CUDA_VISIBLE_DEVICES="")
    assert any("hidden from the engine" in note for note in machine.notes)
    machine = probe(tmp_path, reading, ())
    assert any("BACKEND=cuda" in note for note in machine.notes)


def test_adapters_on_the_bus_are_found_without_a_driver(tmp_path: Path):
    bus = "sys/bus/pci/devices"
    write_tree(
        tmp_path,
        {
            f"{bus}/0000:00:02.0/vendor": "0x8086",
            f"{bus}/0000:00:02.0/class": "0x030000",
            f"{bus}/0000:01:00.0/vendor": "0x10de",
            f"{bus}/0000:01:00.0/class": "0x030200",
            f"{bus}/0000:01:00.1/vendor": "0x10de",
            f"{bus}/0000:01:00.1/class": "0x040300",
            f"{bus}/0000:03:00.0/vendor": "0x1002",
            f"{bus}/0000:03:00.0/class": "0x030000",
            f"{bus}/0000:03:00.0/mem_info_vram_total": str(16 << 30),
            f"{bus}/0000:05:00.0/vendor": "0x1002",
            f"{bus}/0000:05:00.0/class": "0x030000",
            f"{bus}/0000:05:00.0/mem_info_vram_total": str(512 << 20),
        },
    )
    notes = probe(tmp_path, NvmlReading()).notes
    assert len([note for note in notes if "0000:01:00" in note]) == 1
    assert len([note for note in notes if "0000:03:00.0" in note]) == 1
    assert not any("0000:05:00.0" in note or "0000:00:02.0" in note for note in notes)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_can_be_probed(tmp_path: Path, system: str):
    device = EngineDevice(
        name="MTL0",
        description="Apple M2 Max",
        registry="MTL",
        kind=EngineDeviceKind.GPU,
        free_bytes=90,
        total_bytes=100,
    )
    machine = probe_machine(
        model_path=tmp_path,
        engine_devices=(device,),
        nvml=NvmlReading,
        root=tmp_path,
        environment={},
        system=system,
    )
    assert machine.host.system == system
    assert machine.gpus[0].id == "gpu:MTL0"


def test_this_machine_can_be_probed_as_it_is():
    machine = probe_machine()
    assert 0 < machine.host.available_bytes <= machine.host.total_bytes
    assert machine.storage.free_bytes > 0
