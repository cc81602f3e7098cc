"""Which idle models must leave so that another fits: by bytes, the least recently used first.

Knows: the rule; pure.
Does not know: how bytes are measured, or how a model leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moerun.machine.description import DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model as eviction sees it: what leaves each device with it."""

    name: str
    last_used_s: float
    is_idle: bool
    frees_bytes: tuple[tuple[DeviceId, int], ...]


def choose_evictions(
    needs: Mapping[DeviceId, int],
    room: Mapping[DeviceId, int],
    residents: Sequence[Resident],
) -> tuple[str, ...] | None:
    """Return the names to evict, in their order; None when even all idle ones are too few.

    The least recently used idle model goes first, but one that frees nothing where room is
    lacking stays: evicting it would cost a reload and help nobody.
    """
    missing = {
        device: size_bytes - room.get(device, 0)
        for device, size_bytes in needs.items()
        if size_bytes > room.get(device, 0)
    }
    leaving: list[str] = []
    idle = sorted((each for each in residents if each.is_idle), key=lambda each: each.last_used_s)
    for resident in idle:
        if not missing:
            break
        frees = dict(resident.frees_bytes)
        if not any(frees.get(device, 0) > 0 for device in missing):
            continue
        leaving.append(resident.name)
        missing = {
            device: lack_bytes - frees.get(device, 0)
            for device, lack_bytes in missing.items()
            if lack_bytes > frees.get(device, 0)
        }
    return None if missing else tuple(leaving)


def room_beside(
    room: Mapping[DeviceId, int], reclaimable: Sequence[tuple[DeviceId, int]]
) -> dict[DeviceId, int]:
    """Return the free bytes without those that loaded models hold as pages of their files."""
    beside = dict(room)
    for device, size_bytes in reclaimable:
        if device in beside:
            beside[device] = max(0, beside[device] - size_bytes)
    return beside


def room_without(
    room: Mapping[DeviceId, int], residents: Sequence[Resident]
) -> dict[DeviceId, int]:
    """Return the free bytes there would be if these models had left."""
    freed = dict(room)
    for resident in residents:
        for device, size_bytes in resident.frees_bytes:
            if device in freed:
                freed[device] += size_bytes
    return freed
