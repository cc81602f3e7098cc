"""The choice of an engine build: pure, from what was found."""

from pathlib import Path

import pytest

from scripts.build_engine import (
    BACKENDS,
    Found,
    choose_backend,
    cmake_options,
    compiler_flags,
    look_around,
)


def found(
    *vendors: str,
    system: str = "Linux",
    machine: str = "x86_64",
    cuda: bool = False,
    vulkan: bool = False,
) -> Found:
    return Found(
        system=system,
        machine=machine,
        gpu_vendors=frozenset(vendors),
        has_cuda_toolkit=cuda,
        has_vulkan_sdk=vulkan,
    )


@pytest.mark.parametrize(
    ("here", "backend"),
    [
        (found(), "cpu"),
        (found(cuda=True), "cpu"),  # a toolkit without a GPU is a build machine
        (found("NVIDIA", cuda=True), "cuda"),
        (found("NVIDIA"), "cpu"),
        (found("AMD", vulkan=True), "vulkan"),
        (found("Intel", vulkan=True), "vulkan"),
        (found("Intel"), "cpu"),
        (found(system="Darwin", machine="arm64"), "metal"),
        (found(system="Darwin", machine="x86_64"), "cpu"),
    ],
)
def test_auto_takes_what_is_there(here: Found, backend: str) -> None:
    choice = choose_backend("auto", here)
    assert choice is not None
    assert choice.backend == backend


def test_a_gpu_without_a_toolkit_gets_the_one_package_to_install() -> None:
    choice = choose_backend("auto", found("NVIDIA"))
    assert choice is not None
    assert choice.advice is not None
    assert "nvidia-cuda-toolkit" in choice.advice
    assert "BACKEND=cuda" in choice.advice


@pytest.mark.parametrize("backend", ["cuda", "vulkan", "metal"])
def test_what_cannot_be_built_is_refused(backend: str) -> None:
    assert choose_backend(backend, found()) is None


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "auto"])
def test_every_build_has_rpc(backend: str) -> None:
    assert "-DGGML_RPC=on" in cmake_options(backend)


def test_amx_is_off_on_x86_alone_and_only_as_far_as_the_compiler_knows_it() -> None:
    assert compiler_flags("x86_64", lambda _flag: True)[0] == "-mno-amx-tile"
    assert compiler_flags("x86_64", lambda flag: flag != "-mno-amx-bf16") == (
        "-mno-amx-tile",
        "-mno-amx-int8",
    )
    assert compiler_flags("aarch64", lambda _flag: True) == ()


def test_gpus_are_seen_on_the_pci_bus(tmp_path: Path) -> None:
    for name, (kind, vendor) in {
        "0000:01:00.0": ("0x030000", "0x10de"),
        "0000:02:00.0": ("0x030200", "0x10de"),
        "0000:03:00.0": ("0x020000", "0x8086"),  # a network card
        "0000:04:00.0": ("0x030000", "0x1234"),  # an emulated display
    }.items():
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "class").write_text(kind + "\n")
        (device / "vendor").write_text(vendor + "\n")
    here = look_around(root=tmp_path, which=lambda _name: None)
    assert here.gpu_vendors == {"NVIDIA"}
    assert not here.has_cuda_toolkit
