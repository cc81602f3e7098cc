from dataclasses import replace

import pytest

from moerun.machine.description import (
    DARWIN,
    LINUX,
    WINDOWS,
    KernelSettings,
    Storage,
    StorageKind,
)
from moerun.planning.obstacles import StreamingNeeds, streaming_ability, streaming_obstacle
from moerun.planning.strategy import StreamingMode
from moerun.units import GIB
from tests.builders import a_machine


def a_storage(kind: StorageKind = StorageKind.SSD, filesystem: str = "ext4") -> Storage:
    return Storage(path="/models", kind=kind, free_bytes=1000, filesystem=filesystem)


@pytest.mark.parametrize(
    "storage",
    [
        a_storage(),
        a_storage(StorageKind.NVME, "xfs"),
        a_storage(StorageKind.DISK, "btrfs"),
        a_storage(StorageKind.UNKNOWN, "ext4"),  # a virtual disk
        a_storage(StorageKind.UNKNOWN, "overlay"),  # a container
        a_storage(StorageKind.SSD, ""),  # a machine file that does not name it
    ],
)
def test_local_file_systems_stream(storage: Storage):
    assert streaming_obstacle(storage, LINUX) is None


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (a_storage(StorageKind.NETWORK, "nfs4"), "over a network or another process (nfs4)"),
        (a_storage(StorageKind.NETWORK, "fuse.sshfs"), "(fuse.sshfs)"),
        (a_storage(StorageKind.NETWORK, "ext4"), "over a network"),  # a block device over one
        (a_storage(StorageKind.NETWORK, ""), "over a network"),
        (a_storage(StorageKind.UNKNOWN, "tmpfs"), "lies in memory (tmpfs)"),
        (a_storage(StorageKind.SSD, "squashfs"), "the file system squashfs"),
        (a_storage(StorageKind.UNKNOWN, ""), "an unknown file system"),
    ],
)
def test_others_are_mapped_and_one_sentence_says_so(storage: Storage, words: str):
    obstacle = streaming_obstacle(storage, LINUX)
    assert obstacle is not None
    assert words in obstacle
    assert "the file is mapped" in obstacle
    assert "a copy on" in obstacle
    assert "\n" not in obstacle


@pytest.mark.parametrize(("system", "name"), [(DARWIN, "macOS"), (WINDOWS, "Windows")])
def test_other_systems_page_by_themselves(system: str, name: str):
    obstacle = streaming_obstacle(a_storage(), system)
    assert obstacle is not None
    assert name in obstacle
    assert "mapped" in obstacle


CACHE, PAGING = StreamingMode.CACHE, StreamingMode.PAGING
A_MODEL = StreamingNeeds(expert_bytes=10 * GIB, model_bytes=12 * GIB, matrices=144)


def mechanisms(needs: StreamingNeeds | None, **kernel: object) -> tuple[StreamingMode, ...]:
    machine = replace(
        a_machine(),
        storage=a_storage(),
        kernel=KernelSettings(**kernel),  # type: ignore[arg-type]
    )
    ability = streaming_ability(machine, needs)
    assert len(set(ability.mechanisms)) == 2 or ability.because
    return ability.mechanisms


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ({}, (CACHE, PAGING)),
        ({"map_count_limit": 65530}, (CACHE, PAGING)),
        ({"map_count_limit": 2000}, ()),
        ({"commit_left_bytes": 10 * GIB}, (CACHE, PAGING)),
        ({"commit_left_bytes": 10 * GIB - 1}, (PAGING,)),
        ({"address_limit_bytes": 16 * GIB}, (CACHE, PAGING)),
        ({"address_limit_bytes": 15 * GIB}, ()),
        ({"private_limit_bytes": 14 * GIB}, (CACHE, PAGING)),
        ({"private_limit_bytes": 13 * GIB}, (PAGING,)),
        ({"version": (5, 4), "huge_pages": "always", "locked_limit_bytes": 0}, (CACHE, PAGING)),
        ({"version": (4, 19)}, (CACHE,)),
        ({"version": (4, 19), "commit_left_bytes": 0}, ()),
    ],
)
def test_settings_of_the_kernel(kernel: dict[str, object], expected: tuple[StreamingMode, ...]):
    assert mechanisms(A_MODEL, **kernel) == expected


def test_without_a_model_limits_on_sizes_are_said_and_hinder_nothing_yet():
    kernel = KernelSettings(commit_left_bytes=GIB, address_limit_bytes=9 * GIB)
    machine = replace(a_machine(), storage=a_storage(), kernel=kernel)
    ability = streaming_ability(machine)
    assert ability.mechanisms == (CACHE, PAGING)
    strict, addresses = ability.because
    assert "sysctl vm.overcommit_memory=0" in strict
    assert "9.0 GiB" in addresses
    assert "ulimit -v unlimited" in addresses


def test_what_lies_elsewhere_asks_no_kernel():
    machine = replace(a_machine(), storage=a_storage(StorageKind.NETWORK, "nfs4"))
    ability = streaming_ability(machine, A_MODEL)
    assert ability.mechanisms == ()
    assert "nfs4" in ability.because[0]
    nobody_asked = replace(machine, storage=a_storage())
    assert streaming_ability(nobody_asked, A_MODEL).mechanisms == (CACHE, PAGING)
