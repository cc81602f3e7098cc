from pathlib import Path

import pytest

from moerun.machine.description import StorageKind
from moerun.machine.mounts import read_mounts
from moerun.machine.storage import mount_of, probe_storage
from tests.machine_builders import write_tree


def a_device(root: Path, number: str, folder: str, *, rotational: str | None = "0") -> Path:
    """Lay out /sys/dev/block/<number> -> /sys/devices/<folder> as the kernel does."""
    device = root / "sys/devices" / folder
    device.mkdir(parents=True, exist_ok=True)
    (device / "dev").write_text(number)
    if rotational is not None:
        write_tree(device, {"queue/rotational": rotational})
    link = root / "sys/dev/block" / number
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(device)
    return device


def a_mount(point: Path, *, device: str = "8:1", filesystem: str = "ext4", source: str = "/dev/x"):
    escaped = str(point).replace(" ", "\\040")
    return f"40 1 {device} / {escaped} rw,relatime shared:1 - {filesystem} {source} rw\n"


def probe(root: Path, path: Path, mounts: str):
    write_tree(root, {"proc/self/mountinfo": mounts})
    return probe_storage(path, root=root, system="Linux")


def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "rotational", "kind"),
    [
        ("nvme0n1", "0", StorageKind.NVME),
        ("sda", "0", StorageKind.SSD),
        ("sda", "1", StorageKind.DISK),
        ("vda", "0", StorageKind.SSD),
        ("vda", "1", StorageKind.UNKNOWN),
        ("nbd0", "0", StorageKind.NETWORK),
        ("sdz", None, StorageKind.UNKNOWN),
    ],
)
def test_kinds_of_whole_disks(tmp_path: Path, name: str, rotational: str | None, kind: StorageKind):
    folder = models(tmp_path)
    a_device(tmp_path, "8:1", f"pci/{name}", rotational=rotational)
    storage, _ = probe(tmp_path, folder, a_mount(folder))
    assert storage.kind is kind
    assert storage.filesystem == "ext4"
    assert storage.path == str(folder)
    assert storage.free_bytes > 0


def test_a_partition_is_what_its_disk_is(tmp_path: Path):
    folder = models(tmp_path)
    a_device(tmp_path, "259:0", "pci/nvme0n1")
    partition = a_device(tmp_path, "259:1", "pci/nvme0n1/nvme0n1p1", rotational=None)
    (partition / "partition").write_text("1")
    storage, _ = probe(tmp_path, folder, a_mount(folder, device="259:1"))
    assert storage.kind is StorageKind.NVME


def test_a_volume_is_as_slow_as_its_slowest_part(tmp_path: Path):
    folder = models(tmp_path)
    fast = a_device(tmp_path, "259:0", "pci/nvme0n1")
    slow = a_device(tmp_path, "8:0", "pci/sda", rotational="1")
    volume = a_device(tmp_path, "253:0", "virtual/dm-0")
    (volume / "slaves").mkdir()
    (volume / "slaves/nvme0n1").symlink_to(fast)
    (volume / "slaves/sda").symlink_to(slow)
    storage, _ = probe(tmp_path, folder, a_mount(folder, device="253:0"))
    assert storage.kind is StorageKind.DISK


def test_a_loop_device_is_what_its_file_lies_on(tmp_path: Path):
    folder = models(tmp_path)
    a_device(tmp_path, "259:0", "pci/nvme0n1")
    loop = a_device(tmp_path, "7:0", "virtual/loop0", rotational="1")
    write_tree(loop, {"loop/backing_file": str(tmp_path / "disk.img")})
    mounts = a_mount(tmp_path, device="259:0") + a_mount(folder, device="7:0")
    storage, _ = probe(tmp_path, folder, mounts)
    assert storage.kind is StorageKind.NVME


def test_btrfs_is_found_by_its_source(tmp_path: Path):
    folder = models(tmp_path)
    device = a_device(tmp_path, "259:0", "pci/nvme0n1")
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "sys/class/block/nvme0n1").symlink_to(device)
    mounts = a_mount(folder, device="0:31", filesystem="btrfs", source="/dev/nvme0n1")
    assert probe(tmp_path, folder, mounts)[0].kind is StorageKind.NVME


@pytest.mark.parametrize("filesystem", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs"])
def test_file_systems_of_others_are_network_and_said(tmp_path: Path, filesystem: str):
    folder = models(tmp_path)
    storage, notes = probe(tmp_path, folder, a_mount(folder, filesystem=filesystem))
    assert storage.kind is StorageKind.NETWORK
    assert filesystem in notes[0]


def test_memory_and_overlay_file_systems_are_unknown_and_said(tmp_path: Path):
    folder = models(tmp_path)
    storage, notes = probe(tmp_path, folder, a_mount(folder, device="0:5", filesystem="tmpfs"))
    assert storage.kind is StorageKind.UNKNOWN
    assert "RAM" in notes[0]
    overlay = a_mount(folder, device="0:6", filesystem="overlay", source="overlay")
    storage, notes = probe(tmp_path, folder, overlay)
    assert storage.kind is StorageKind.UNKNOWN
    assert "not visible" in notes[0]


def test_the_longest_mount_wins_and_of_equal_ones_the_last(tmp_path: Path):
    inner = tmp_path / "with space"
    inner.mkdir()
    write_tree(
        tmp_path,
        {
            "proc/self/mountinfo": a_mount(Path("/"), device="1:1")
            + a_mount(inner, device="2:2")
            + a_mount(inner, device="3:3")
            + a_mount(tmp_path / "with", device="4:4")
        },
    )
    mounts = read_mounts(tmp_path)
    found = mount_of(inner / "model.gguf", mounts)
    assert found is not None
    assert found.device == "3:3"
    outside = mount_of(Path("/nowhere"), mounts)
    assert outside is not None
    assert outside.device == "1:1"


def test_a_model_that_is_not_there_yet_counts_for_its_nearest_folder(tmp_path: Path):
    a_device(tmp_path, "8:1", "pci/nvme0n1")
    storage, _ = probe(tmp_path, tmp_path / "a/b/model.gguf", a_mount(tmp_path))
    assert storage.path == str(tmp_path)
    assert storage.kind is StorageKind.NVME


@pytest.mark.parametrize(("system", "name"), [("Darwin", "macOS"), ("Windows", "Windows")])
def test_other_systems_tell_only_what_is_free(tmp_path: Path, system: str, name: str):
    storage, notes = probe_storage(tmp_path, root=tmp_path, system=system)
    assert storage.kind is StorageKind.UNKNOWN
    assert storage.free_bytes > 0
    assert name in notes[0]
