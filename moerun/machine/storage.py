"""The storage that a model lies on: its kind, its file system, what is free.

Knows: mounts and block devices of Linux; other systems say only what is free.
Does not know: how fast it reads; that is measured elsewhere.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from moerun.errors import ProbeFailed
from moerun.machine.description import LINUX, Storage, StorageKind, system_name
from moerun.machine.mounts import Mount, read_mounts, read_text

_NETWORK_FILESYSTEMS: Final = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre",
        "beegfs", "gpfs", "orangefs", "ocfs2", "gfs2", "afs", "coda", "ncpfs", "fuse", "vboxsf",
        "prl_fs", "vmhgfs",
    )
)  # fmt: skip
_MEMORY_FILESYSTEMS: Final = frozenset(("tmpfs", "ramfs", "devtmpfs"))
_NETWORK_BLOCK_DEVICES: Final = ("nbd", "rbd", "drbd")
_VIRTUAL_BLOCK_DEVICES: Final = ("vd", "xvd")
_MAXIMUM_NESTING: Final = 8  # loop devices on volumes on arrays: deeper than this is a cycle
_SLOWEST_FIRST: Final = (
    StorageKind.NETWORK,
    StorageKind.UNKNOWN,
    StorageKind.DISK,
    StorageKind.SSD,
    StorageKind.NVME,
)


def probe_storage(path: Path, *, root: Path, system: str) -> tuple[Storage, tuple[str, ...]]:
    """Return the storage that `path`, or its nearest existing folder, lies on, and notes."""
    folder = _nearest_folder(path)
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise ProbeFailed(
            f"the free space of {folder} could not be read: {error.strerror or error}"
        ) from error
    if system != LINUX:
        note = f"{system_name(system)} does not tell the kind of the storage under {folder}"
        return _unknown_storage(folder, free_bytes), (note,)
    mount = mount_of(path if path.exists() else folder, read_mounts(root))
    if mount is None:
        note = f"the storage under {folder} is unknown: no mount of it is listed"
        return _unknown_storage(folder, free_bytes), (note,)
    kind, about = _kind_of_mount(mount, root, depth=0)
    storage = Storage(
        path=str(folder), kind=kind, free_bytes=free_bytes, filesystem=mount.filesystem
    )
    return storage, (about,) if about else ()


def mount_of(path: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount that `path` lies on, links followed; of equal ones the last is on top."""
    resolved = os.path.realpath(path)
    best: Mount | None = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        inside = resolved == point or resolved.startswith(point + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _nearest_folder(path: Path) -> Path:
    """Return the folder of an existing file, or the first existing folder above."""
    current = Path(os.path.abspath(path))
    while not current.is_dir() and current != current.parent:
        current = current.parent
    return current


def _unknown_storage(folder: Path, free_bytes: int) -> Storage:
    return Storage(path=str(folder), kind=StorageKind.UNKNOWN, free_bytes=free_bytes)


def _kind_of_mount(mount: Mount, root: Path, *, depth: int) -> tuple[StorageKind, str | None]:
    """Return what a file system lies on, and a note when that is not a plain device."""
    filesystem = mount.filesystem
    if filesystem in _NETWORK_FILESYSTEMS or filesystem.startswith("fuse."):
        return StorageKind.NETWORK, (
            f"{mount.point} is reached over a network or another process ({filesystem}); "
            "streaming experts from it is slow, a local copy is better"
        )
    if filesystem in _MEMORY_FILESYSTEMS:
        return StorageKind.UNKNOWN, (
            f"{mount.point} is a file system in memory ({filesystem}): "
            "a model there takes RAM twice once it is loaded"
        )
    device = _block_device(mount, root)
    if device is None:
        return StorageKind.UNKNOWN, (
            f"the device under {mount.point} is not visible here ({filesystem} on {mount.source})"
        )
    return _kind_of_device(device, root, depth=depth)


def _block_device(mount: Mount, root: Path) -> Path | None:
    """Return the folder in /sys of the mounted device.

    Some file systems (btrfs) mount under a number that is no device; then the source says which.
    """
    by_number = root / "sys/dev/block" / mount.device
    if by_number.exists():
        return by_number.resolve()
    if mount.source.startswith("/dev/"):
        name = Path(os.path.realpath(root / mount.source.lstrip("/"))).name
        by_name = root / "sys/class/block" / name
        if by_name.exists():
            return by_name.resolve()
    return None


def _kind_of_device(device: Path, root: Path, *, depth: int) -> tuple[StorageKind, str | None]:
    """Return the kind of a block device; one made of others is as slow as its slowest part."""
    if depth > _MAXIMUM_NESTING:
        return StorageKind.UNKNOWN, f"{device.name} is nested too deeply to tell its kind"
    if (device / "partition").exists():
        device = device.parent
    parts = sorted((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    if parts:
        kinds = [_kind_of_device(part.resolve(), root, depth=depth + 1) for part in parts]
        return min(kinds, key=lambda answer: _SLOWEST_FIRST.index(answer[0]))
    backing = read_text(device / "loop/backing_file")
    if backing:
        mount = mount_of(Path(backing), read_mounts(root))
        if mount is not None and mount.device != read_text(device / "dev"):
            return _kind_of_mount(mount, root, depth=depth + 1)
    return _kind_of_disk(device)


def _kind_of_disk(device: Path) -> tuple[StorageKind, str | None]:
    """Return the kind of a whole disk by its name and what it says of itself."""
    if device.name.startswith("nvme"):
        return StorageKind.NVME, None
    if device.name.startswith(_NETWORK_BLOCK_DEVICES):
        return StorageKind.NETWORK, f"{device.name} is a block device over a network"
    rotational = read_text(device / "queue/rotational")
    if rotational == "0":
        return StorageKind.SSD, None
    if device.name.startswith(_VIRTUAL_BLOCK_DEVICES):
        # virtio disks say "rotational" unless the host was told otherwise, whatever is below
        return StorageKind.UNKNOWN, (
            f"{device.name} is a virtual disk: what it lies on is not known here"
        )
    if rotational == "1":
        return StorageKind.DISK, None
    return StorageKind.UNKNOWN, f"{device.name} does not say what kind of device it is"
