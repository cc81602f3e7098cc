"""What the kernel lets a process do with memory, as far as streaming experts needs it.

Knows: the files under /proc/sys/vm, /proc/meminfo, and the limits of a process.
Does not know: what follows from them.
"""

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.machine.description import KernelSettings
from moerun.machine.mounts import read_text
from moerun.units import KIB

_STRICT: Final = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """The limits of this process and the release of its kernel; None is no limit."""

    release: str = ""
    address_limit_bytes: int | None = None
    private_limit_bytes: int | None = None
    locked_limit_bytes: int | None = None


def current_limits() -> ProcessLimits:
    """Return the limits of this process; of other systems only the release."""
    if sys.platform == "win32":
        return ProcessLimits(release=platform.release())
    import resource  # Windows has none

    def limit(kind: int) -> int | None:
        soft, _ = resource.getrlimit(kind)
        return None if soft == resource.RLIM_INFINITY else soft

    return ProcessLimits(
        release=platform.release(),
        address_limit_bytes=limit(resource.RLIMIT_AS),
        private_limit_bytes=limit(resource.RLIMIT_DATA),
        locked_limit_bytes=limit(resource.RLIMIT_MEMLOCK),
    )


def read_kernel_settings(root: Path, limits: ProcessLimits) -> KernelSettings:
    """Return the settings of the kernel below a root folder, and those limits."""
    return KernelSettings(
        version=_version(limits.release),
        map_count_limit=_number(read_text(root / "proc/sys/vm/max_map_count")),
        commit_left_bytes=_commit_left_bytes(root),
        address_limit_bytes=limits.address_limit_bytes,
        private_limit_bytes=limits.private_limit_bytes,
        locked_limit_bytes=limits.locked_limit_bytes,
        huge_pages=_chosen(root / "sys/kernel/mm/transparent_hugepage/enabled"),
    )


def _version(release: str) -> tuple[int, int] | None:
    """Return the first two numbers of a release such as `6.18.44-generic`."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else None


def _commit_left_bytes(root: Path) -> int | None:
    """Return what may still be promised; None where more may be promised than there is."""
    if read_text(root / "proc/sys/vm/overcommit_memory") != _STRICT:
        return None
    found: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name in ("CommitLimit", "Committed_AS") and words and words[0].isdigit():
            found[name] = int(words[0]) * KIB
    return max(0, found.get("CommitLimit", 0) - found.get("Committed_AS", 0))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _chosen(path: Path) -> str:
    """Return the word in brackets of `always [madvise] never`; empty without the file."""
    match = re.search(r"\[(\w+)\]", read_text(path) or "")
    return match[1] if match else ""
