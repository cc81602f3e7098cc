import pytest

from moerun.machine.description import DARWIN, LINUX, WINDOWS, Storage, StorageKind
from moerun.planning.obstacles import streaming_obstacle


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
