"""The files of the model that a runner has: how long they were, and what became of them.

Knows: sizes at two times.
Does not know: processes, or what a file holds.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFile:
    """A file and its length when the model was loaded; None where it could not be asked."""

    path: str
    size_bytes: int | None


def remember(paths: Sequence[str]) -> tuple[KnownFile, ...]:
    """Return the files with their present sizes."""
    return tuple(KnownFile(path=path, size_bytes=_size_bytes(path)) for path in paths)


def change_since(files: Sequence[KnownFile]) -> str | None:
    """Say in words how the first changed file differs from what was remembered; None when none."""
    for file in files:
        size_bytes = _size_bytes(file.path)
        if size_bytes == file.size_bytes:
            continue
        if size_bytes is None:
            return f"{file.path} cannot be found any more"
        if file.size_bytes is None:
            continue  # nothing is known of before
        verb = "was cut" if size_bytes < file.size_bytes else "grew"
        return f"{file.path} {verb} from {file.size_bytes:,} to {size_bytes:,} bytes meanwhile"
    return None


def _size_bytes(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
