"""Whether a model's files are still those that were opened.

What is streamed is read while an answer is made, so a file that somebody replaces, cuts, fills or
downloads again meanwhile would be mixed into it. Each file is held open and remembered by device,
inode, size and time of change; before tokens leave, both the path and what is held open are asked
again, which takes some 6 microseconds for a file.

Knows: what identifies a file, and how it can cease to.
Does not know: what is read from the files, or by whom.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final, NamedTuple

from moerun.errors import MissingShard, ModelError
from moerun.model.description import ModelFile


class FileIdentity(NamedTuple):
    """What tells one state of a file from every other; a plain tuple, since each token asks."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


class FileGuard:
    """A guard of a streamer: an answer ends when a file is no more what it was."""

    def __init__(self, files: Sequence[ModelFile]) -> None:
        """Open and remember the files.

        Raises MissingShard when one is gone, ModelError when it has another size than the header
        told, which the plan was made from.
        """
        self._watched: list[tuple[str, int, FileIdentity]] = []
        with ExitStack() as opening:
            for file in files:
                descriptor = _open(file.path)
                opening.callback(os.close, descriptor)
                identity = _identity(os.fstat(descriptor))
                if identity.size_bytes != file.size_bytes:
                    raise ModelError(
                        f"{file.path} has {identity.size_bytes:,} bytes and had "
                        f"{file.size_bytes:,} when its header was read",
                        hint=_AGAIN,
                    )
                self._watched.append((file.path, descriptor, identity))
            self._files = opening.pop_all()

    def attach(self, watched: object) -> None:
        """Begin: the files were remembered when they were opened, and may have changed since."""
        self.check()

    def check(self) -> None:
        """Raise ModelError when a file is not what it was."""
        for path, descriptor, known in self._watched:
            try:
                at_path = _identity(os.stat(path))
            except OSError as error:
                raise ModelError(
                    f"{path} was removed or renamed while the model ran, or its storage is gone "
                    f"({error.strerror}); what was computed meanwhile cannot be trusted",
                    hint=_AGAIN,
                ) from error
            held = _identity(os.fstat(descriptor))
            if at_path != known or held != known:
                raise ModelError(
                    f"{path} {_change(known, at_path, held)} while the model ran; what was "
                    "computed meanwhile cannot be trusted",
                    hint=_AGAIN,
                )

    def notes(self) -> tuple[str, ...]:
        """Return nothing: a change is an error, not a note."""
        return ()

    def close(self) -> None:
        """Close the files."""
        self._watched.clear()
        self._files.close()


_AGAIN: Final = "let the file come to rest, and start again"


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise MissingShard(
            f"{path} cannot be opened: {error.strerror or error}", hint=_AGAIN
        ) from error


def _identity(found: os.stat_result) -> FileIdentity:
    return FileIdentity(
        device=found.st_dev,
        inode=found.st_ino,
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
    )


def _change(known: FileIdentity, at_path: FileIdentity, held: FileIdentity) -> str:
    """Say what happened to a file."""
    if held == known:
        return "was replaced by another file"
    now = held if (at_path.device, at_path.inode) != (known.device, known.inode) else at_path
    if now.size_bytes < known.size_bytes:
        return f"was cut from {known.size_bytes:,} to {now.size_bytes:,} bytes"
    if now.size_bytes > known.size_bytes:
        return f"grew from {known.size_bytes:,} to {now.size_bytes:,} bytes"
    changed_at = datetime.fromtimestamp(now.modified_ns / 1e9, tz=UTC)
    return f"was written to (at {changed_at:%Y-%m-%d %H:%M:%S} UTC)"
