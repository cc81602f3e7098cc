"""What is mounted where, and small files of the kernel.

Knows: the lines of /proc/self/mountinfo.
Does not know: what the mounts mean to anyone.

All files are read below a root folder, so that a test can lay out its own /proc and /sys.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    device: str
    root: str
    point: str
    filesystem: str
    source: str
    options: frozenset[str]


def read_mounts(root: Path) -> tuple[Mount, ...]:
    """Return the mounts of this process in their order; empty where there is no mountinfo."""
    lines = (read_text(root / "proc/self/mountinfo") or "").splitlines()
    mounts = (_parse_mount(line) for line in lines)
    return tuple(mount for mount in mounts if mount is not None)


def read_text(path: Path) -> str | None:
    """Return what a small kernel file says, None when it is absent or not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _parse_mount(line: str) -> Mount | None:
    """Read `id parent major:minor root point options [tags] - filesystem source options`."""
    left, separator, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if not separator or len(fields) < 6 or len(tail) < 2:
        return None
    return Mount(
        device=fields[2],
        root=_unescape(fields[3]),
        point=_unescape(fields[4]),
        filesystem=tail[0],
        source=_unescape(tail[1]),
        options=frozenset((tail[2] if len(tail) > 2 else "").split(",")),
    )


def _unescape(text: str) -> str:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
