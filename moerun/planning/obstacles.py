"""Whether experts of a file can be streamed at all, from where the file lies and the system.

Streaming keeps promises about single pages: exactly the routed slices are read, nothing stays in
memory that was not wanted, a change of the file is noticed. Where a file system or a system does
not keep its part, the file is mapped as stock does, which is slower and never wrong.

Knows: file systems by name, and systems.
Does not know: how a storage was probed, what a plan wants, or any mechanism.
"""

from typing import Final

from moerun.machine.description import LINUX, Storage, StorageKind, system_name

# Local file systems that read past the page cache when asked, and whose files keep their inode
# and time of change. ZFS before 2.3 takes the request and reads through its own cache.
_SUITABLE: Final = frozenset(
    (
        "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "jfs", "nilfs2", "zfs",
        "ntfs3", "exfat", "vfat", "overlay",
    )
)  # fmt: skip
_IN_MEMORY: Final = frozenset(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs"))


def streaming_obstacle(storage: Storage, system: str) -> str | None:
    """Return in one sentence why experts cannot be streamed from a storage, None when they can.

    `system` is spelled as `Host.system`. What follows is always the same: the file is mapped.
    """
    if system != LINUX:
        return (
            f"experts are streamed on Linux only: on {system_name(system)} the file is mapped, "
            "and the system pages it"
        )
    filesystem = storage.filesystem
    if storage.kind is StorageKind.NETWORK:
        named = f" ({filesystem})" if filesystem else ""
        return (
            f"{storage.path} is reached over a network or another process{named}, where experts "
            "are not streamed: the file is mapped; a copy on a local disk streams"
        )
    if filesystem in _IN_MEMORY:
        return (
            f"{storage.path} lies in memory ({filesystem}), where nothing is won by streaming "
            "experts: the file is mapped; a copy on a local disk streams"
        )
    if filesystem not in _SUITABLE and not _is_local_disk(storage):
        named = f"the file system {filesystem}" if filesystem else "an unknown file system"
        return (
            f"{storage.path} lies on {named}, where streaming was never tried: the file is "
            "mapped; a copy on ext4, xfs or btrfs streams"
        )
    return None


def _is_local_disk(storage: Storage) -> bool:
    """Whether a description without the name of its file system speaks of a disk in the machine."""
    disks = (StorageKind.NVME, StorageKind.SSD, StorageKind.DISK)
    return not storage.filesystem and storage.kind in disks
