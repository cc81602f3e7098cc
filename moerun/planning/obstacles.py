"""Whether experts of a file can be streamed at all, from where the file lies and the system.

Streaming keeps promises about single pages: exactly the routed slices are read, nothing stays in
memory that was not wanted, a change of the file is noticed. Where a file system or a system does
not keep its part, the file is mapped as stock does, which is slower and never wrong.

Some settings of the kernel stand in the way of one mechanism and not of the other.

Knows: file systems by name, systems, and what each mechanism asks of the kernel.
Does not know: how anything was probed, what a plan wants, or how a mechanism works.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moerun.machine.description import (
    LINUX,
    KernelSettings,
    Machine,
    Storage,
    StorageKind,
    system_name,
)
from moerun.planning.strategy import StreamingMode
from moerun.units import GIB, format_gib

# Local file systems that read past the page cache when asked, and whose files keep their inode
# and time of change. ZFS before 2.3 takes the request and reads through its own cache.
_SUITABLE: Final = frozenset(
    (
        "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "jfs", "nilfs2", "zfs",
        "ntfs3", "exfat", "vfat", "overlay",
    )
)  # fmt: skip
_MECHANISMS: Final = (StreamingMode.CACHE, StreamingMode.PAGING)
# Mappings that the ranges of one streamed matrix may be split into, and those of anything else.
_MAPPINGS_PER_MATRIX: Final = 4
_OTHER_MAPPINGS: Final = 2000
_MOST_MATRICES: Final = 400  # of the models that are known: 100 layers or fewer
_OTHER_ADDRESSES_BYTES: Final = 4 * GIB  # libraries, stacks of threads, KV cache, buffers
_PAGEOUT_SINCE: Final = (5, 4)  # MADV_PAGEOUT, by which paging keeps its limit
_IN_MEMORY: Final = frozenset(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs"))


def streaming_obstacle(storage: Storage, system: str, *, has_ssd_cache: bool = False) -> str | None:
    """Return in one sentence why experts cannot be streamed from a storage, None when they can.

    `system` is spelled as `Host.system`. What follows is always the same: the file is mapped.
    From a network they are streamed where an SSD cache keeps what was read.
    """
    if system != LINUX:
        return (
            f"experts are streamed on Linux only: on {system_name(system)} the file is mapped, "
            "and the system pages it"
        )
    filesystem = storage.filesystem
    if storage.kind is StorageKind.NETWORK and has_ssd_cache:
        return None
    if storage.kind is StorageKind.NETWORK:
        named = f" ({filesystem})" if filesystem else ""
        return (
            f"{storage.path} is reached over a network or another process{named}, where experts "
            "are not streamed: the file is mapped; a copy on a local disk streams, and so does "
            "the file itself with --ssd-cache on one"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingNeeds:
    """What a model asks of the kernel; sizes of 0, of no model, are exceeded by no limit."""

    expert_bytes: int = 0
    model_bytes: int = 0
    matrices: int = _MOST_MATRICES
    has_ssd_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingAbility:
    """The mechanisms that can work, and why others cannot, with what would help."""

    mechanisms: tuple[StreamingMode, ...]
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hindrance:
    hinders: tuple[StreamingMode, ...]
    because: str


def streaming_ability(machine: Machine, needs: StreamingNeeds | None = None) -> StreamingAbility:
    """Return which mechanisms can work on a machine, for a model of those needs."""
    needs = needs or StreamingNeeds()
    obstacle = streaming_obstacle(
        machine.storage, machine.host.system, has_ssd_cache=needs.has_ssd_cache
    )
    if obstacle is not None:
        return StreamingAbility(mechanisms=(), because=(obstacle,))
    if machine.kernel is None:
        return StreamingAbility(mechanisms=_MECHANISMS)
    found = tuple(_hindrances(machine.kernel, needs))
    hindered = {mechanism for hindrance in found for mechanism in hindrance.hinders}
    return StreamingAbility(
        mechanisms=tuple(mechanism for mechanism in _MECHANISMS if mechanism not in hindered),
        because=tuple(hindrance.because for hindrance in found),
    )


def _hindrances(kernel: KernelSettings, needs: StreamingNeeds) -> Iterator[_Hindrance]:
    """Yield what of the kernel's settings is too little for the needs."""
    mappings = needs.matrices * _MAPPINGS_PER_MATRIX + _OTHER_MAPPINGS
    if kernel.map_count_limit is not None and kernel.map_count_limit < mappings:
        yield _Hindrance(
            hinders=_MECHANISMS,
            because=(
                f"vm.max_map_count is {kernel.map_count_limit:,} and streaming may need "
                f"{mappings:,}; set it: sysctl vm.max_map_count=65530"
            ),
        )
    left_bytes = kernel.commit_left_bytes
    # The region of the cache is as large as all experts, and counts as a promise at once: the
    # kernel ignores MAP_NORESERVE where promises are strict.
    if left_bytes is not None and not 0 < needs.expert_bytes <= left_bytes:
        yield _Hindrance(
            hinders=(StreamingMode.CACHE,) if needs.expert_bytes else (),
            because=(
                f"vm.overcommit_memory is 2, and {format_gib(left_bytes)} may still be promised, "
                "where the cache needs a region as large as all experts; set it: "
                "sysctl vm.overcommit_memory=0"
            ),
        )
    yield from _limits(kernel, needs)
    if kernel.version is not None and kernel.version < _PAGEOUT_SINCE:
        yield _Hindrance(
            hinders=(StreamingMode.PAGING,),
            because=(
                "Linux {}.{} cannot take pages back on request, which paging needs; "
                "5.4 and later can".format(*kernel.version)
            ),
        )


def _limits(kernel: KernelSettings, needs: StreamingNeeds) -> Iterator[_Hindrance]:
    """Yield what limits on this process are too little for the needs."""
    limit_bytes = kernel.address_limit_bytes
    if limit_bytes is not None and not _holds(limit_bytes, needs.model_bytes):
        yield _Hindrance(
            hinders=_MECHANISMS if needs.model_bytes else (),
            because=(
                f"a process may address only {format_gib(limit_bytes)}, and a model is mapped "
                "whole; lift the limit: ulimit -v unlimited"
            ),
        )
    limit_bytes = kernel.private_limit_bytes
    if limit_bytes is not None and not _holds(limit_bytes, needs.expert_bytes):
        yield _Hindrance(
            hinders=(StreamingMode.CACHE,) if needs.expert_bytes else (),
            because=(
                f"a process may have only {format_gib(limit_bytes)} of private memory, where the "
                "cache needs a region as large as all experts; lift the limit: ulimit -d unlimited"
            ),
        )


def _holds(limit_bytes: int, size_bytes: int) -> bool:
    """Whether a limit leaves room for a known size, and all else a process takes."""
    return 0 < size_bytes <= limit_bytes - _OTHER_ADDRESSES_BYTES
