from moerun.machine.description import EngineDeviceKind, GpuBackend
from moerun.machine.gpus import Adapter, Card, find_gpus
from tests.machine_builders import a_card, an_engine_device, surroundings


def test_driver_and_engine_are_matched_by_address_not_by_position():
    devices = (
        an_engine_device("CUDA0", device_id="0000:41:00.0", total=200, free=150),
        an_engine_device("CUDA1", device_id="0000:01:00.0", total=100, free=50),
    )
    cards = (
        a_card("0000:01:00.0", name="Small", total=102, free=95),
        a_card("0000:41:00.0", name="Large", total=204, free=180),
    )
    gpus, notes = find_gpus(devices, cards, (), surroundings())
    assert [(gpu.id, gpu.name, gpu.engine_name) for gpu in gpus] == [
        ("gpu:0000:41:00.0", "Large", "CUDA0"),
        ("gpu:0000:01:00.0", "Small", "CUDA1"),
    ]
    assert [(gpu.total_bytes, gpu.free_bytes) for gpu in gpus] == [(200, 180), (100, 95)]
    assert gpus[0].compute_capability == (8, 9)
    assert notes == ()


def test_a_slice_of_a_card_keeps_the_engines_own_figures():
    device = an_engine_device(total=20, free=18)
    gpus, _ = find_gpus((device,), (a_card(total=102, free=95),), (), surroundings())
    assert (gpus[0].total_bytes, gpus[0].free_bytes) == (20, 18)


def test_virtual_devices_of_one_card_have_ids_of_their_own_and_its_address():
    devices = (
        an_engine_device("CUDA0", device_id="0000:01:00.0", total=50, free=40),
        an_engine_device("CUDA1", device_id="0000:01:00.0-v1", total=50, free=40),
    )
    gpus, notes = find_gpus(devices, (a_card(),), (), surroundings())
    assert [gpu.id for gpu in gpus] == ["gpu:0000:01:00.0", "gpu:0000:01:00.0-v1"]
    assert {gpu.pci_address for gpu in gpus} == {"0000:01:00.0"}
    assert notes == ()


def test_an_engine_without_cuda_beside_a_card_names_the_rebuild_command():
    cpu = an_engine_device("CPU", registry="CPU", device_id=None, kind=EngineDeviceKind.CPU)
    gpus, notes = find_gpus((cpu,), (a_card(name="GeForce"),), (), surroundings())
    assert gpus == ()
    assert "GeForce" in notes[0]
    assert notes[0].endswith("make run BACKEND=cuda")


def test_an_engine_with_cuda_that_lists_no_card_need_not_be_rebuilt():
    around = surroundings(engine_backends=frozenset(("cpu", "cuda")))
    _, (note,) = find_gpus((), (a_card(name="GeForce"),), (), around)
    assert "GeForce" in note
    assert "driver may be older" in note


def test_hidden_cards_are_not_a_reason_to_rebuild():
    cards = (a_card("0000:01:00.0"), a_card("0000:02:00.0", name="Hidden"))
    gpus, notes = find_gpus((an_engine_device(),), cards, (), surroundings(visible_devices="0"))
    assert len(gpus) == 1
    assert notes == ("Hidden (0000:02:00.0) is hidden from the engine (CUDA_VISIBLE_DEVICES)",)
    gpus, notes = find_gpus((), cards, (), surroundings(visible_devices=""))
    assert gpus == ()
    assert "hidden" in notes[0]


def test_the_second_backend_on_a_card_is_left_out():
    devices = (an_engine_device("CUDA0"), an_engine_device("Vulkan0", registry="Vulkan"))
    gpus, notes = find_gpus(devices, (), (), surroundings())
    assert [gpu.engine_name for gpu in gpus] == ["CUDA0"]
    assert "same card as CUDA0" in notes[0]


def test_integrated_graphics_share_host_memory_up_to_the_drivers_limit():
    device = an_engine_device(
        "Vulkan0", registry="Vulkan", kind=EngineDeviceKind.INTEGRATED_GPU, total=700, free=600
    )
    gpus, _ = find_gpus((device,), (), (), surroundings(host_available=500))
    assert gpus[0].shares_host_memory
    assert gpus[0].working_set_limit_bytes == 700
    assert gpus[0].free_bytes == 500


def test_integrated_graphics_are_left_out_beside_a_card():
    integrated = an_engine_device(
        "Vulkan1",
        registry="Vulkan",
        device_id="0000:00:02.0",
        kind=EngineDeviceKind.INTEGRATED_GPU,
    )
    gpus, notes = find_gpus((integrated, an_engine_device()), (), (), surroundings())
    assert [gpu.engine_name for gpu in gpus] == ["CUDA0"]
    assert "Vulkan1" in notes[0]


def test_integrated_graphics_of_two_backends_are_one_device():
    devices = tuple(
        an_engine_device(
            name, registry=name[:-1], device_id=None, kind=EngineDeviceKind.INTEGRATED_GPU
        )
        for name in ("SYCL0", "Vulkan0")
    )
    gpus, _ = find_gpus(devices, (), (), surroundings())
    assert [gpu.engine_name for gpu in gpus] == ["SYCL0"]


def test_metal_shares_memory_on_apples_chips_only():
    device = an_engine_device("MTL0", registry="MTL", device_id=None)
    (apple,), _ = find_gpus((device,), (), (), surroundings(system="Darwin", machine="arm64"))
    (intel,), _ = find_gpus((device,), (), (), surroundings(system="Darwin", machine="x86_64"))
    assert apple.id == "gpu:MTL0"
    assert apple.backend is GpuBackend.METAL
    assert apple.shares_host_memory
    assert not intel.shares_host_memory
    assert intel.working_set_limit_bytes is None


def test_workers_come_last_and_are_known_by_their_address():
    worker = an_engine_device("RPC0", registry="RPC", device_id=None, description="10.0.0.2:50052")
    gpus, _ = find_gpus((worker, an_engine_device()), (), (), surroundings())
    assert [gpu.engine_name for gpu in gpus] == ["CUDA0", "RPC0"]
    assert gpus[1].id == "gpu:RPC0[10.0.0.2:50052]"
    assert gpus[1].is_remote
    assert not gpus[0].is_remote


def test_a_device_without_memory_is_left_out_and_said():
    gpus, notes = find_gpus((an_engine_device(total=0, free=0),), (), (), surroundings())
    assert gpus == ()
    assert "reports no memory" in notes[0]


def test_without_an_engine_the_driver_stands_for_it():
    mute = Card(pci_address="0000:02:00.0", name="Mute")
    gpus, notes = find_gpus(None, (a_card(), mute), (), surroundings())
    assert [gpu.id for gpu in gpus] == ["gpu:0000:01:00.0"]
    assert gpus[0].engine_name is None
    assert "no engine was asked" in notes[0]
    assert "Mute" in notes[1]


def test_without_an_engine_hidden_cards_stay_hidden():
    gpus, notes = find_gpus(None, (a_card(),), (), surroundings(visible_devices="-1"))
    assert gpus == ()
    assert "hidden" in notes[-1]
    gpus, notes = find_gpus(None, (a_card(),), (), surroundings(visible_devices="1"))
    assert len(gpus) == 1
    assert "CUDA_VISIBLE_DEVICES" in notes[-1]


def test_adapters_that_nothing_serves_are_named():
    adapters = (
        Adapter(pci_address="0000:01:00.0", vendor="NVIDIA"),
        Adapter(pci_address="0000:03:00.0", vendor="AMD", memory_bytes=16 << 30),
    )
    _, notes = find_gpus((), (), adapters, surroundings())
    assert "0000:01:00.0 is not served by a driver" in notes[0]
    assert "16.0 GiB" in notes[1]
    assert notes[1].endswith("make run BACKEND=vulkan")
    served = an_engine_device("Vulkan0", registry="Vulkan", device_id="0000:03:00.0")
    _, notes = find_gpus((served,), (), adapters[1:], surroundings())
    assert notes == ()
    around = surroundings(engine_backends=frozenset(("cpu", "vulkan")))
    _, (note,) = find_gpus((), (), adapters[1:], around)
    assert note.endswith("it is hidden or lacks a driver")


def test_a_card_that_vulkan_drives_without_nvidias_driver_is_no_idle_one():
    adapter = Adapter(pci_address="0000:01:00.0", vendor="NVIDIA")
    device = an_engine_device("Vulkan0", registry="Vulkan")
    gpus, notes = find_gpus((device,), (), (adapter,), surroundings())
    assert [gpu.backend for gpu in gpus] == [GpuBackend.VULKAN]
    assert notes == ()
