"""How far a download is: a bar for each file with its rate and the time left, or plain lines.

Knows: terminals, and what there is to say where nobody looks at one.
Does not know: hosts, or how files arrive.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from moerun.report.notices import tell
from moerun.report.plain import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LONGEST_NAME: Final = 40  # characters beside a bar
_LINE_EVERY_S: Final = 30.0


class ShownFile(Protocol):
    """What is shown of a file."""

    @property
    def name(self) -> str:
        """What people know it by."""

    @property
    def size_bytes(self) -> int:
        """Its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRow:
    """One file of a pull that is only planned."""

    name: str
    size_bytes: int
    missing_bytes: int
    path: str


class PullView:
    """Shows one pull on standard error: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO, *, is_shown: bool = True) -> None:
        self._stream = stream
        self._is_shown = is_shown
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told_at_s = 0.0

    def __enter__(self) -> "PullView":
        if self._is_shown and self._stream.isatty():
            self._progress = _bars(self._stream)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def tell(self, message: str) -> None:
        """Show a sentence above the bars."""
        if not self._is_shown:
            return
        if self._progress is not None:
            self._progress.console.print(printable(message))
        else:
            tell(printable(message))

    def begin_file(self, file: ShownFile, *, kept_bytes: int) -> None:
        """Show a bar, or say what is fetched."""
        if self._progress is not None:
            name = _short(printable(file.name))
            task = self._progress.add_task(name, total=file.size_bytes, completed=kept_bytes)
            self._tasks[file.name] = task
            return
        kept = f", {decimal(kept_bytes)} of it are here already" if kept_bytes else ""
        self.tell(f"pulling {file.name}: {decimal(file.size_bytes)}{kept}")
        self._told_at_s = time.monotonic()

    def update_file(self, file: ShownFile, there_bytes: int) -> None:
        """Move the bar; say a line twice a minute where there is none."""
        if self._progress is not None:
            self._progress.update(self._tasks[file.name], completed=there_bytes)
        elif time.monotonic() - self._told_at_s >= _LINE_EVERY_S:
            percent = there_bytes * 100 // max(1, file.size_bytes)
            self.tell(f"pulling {file.name}: {percent}% of {decimal(file.size_bytes)}")
            self._told_at_s = time.monotonic()

    def finish_file(self, file: ShownFile) -> None:
        """Show that a file is whole."""
        if self._progress is not None:
            self._progress.update(self._tasks[file.name], completed=file.size_bytes)


def decimal(size_bytes: int) -> str:
    """Return a size in decimal units, as lists of models show it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def order_lines(
    name: str, rows: tuple[PullRow, ...], *, folder: str, free_bytes: int
) -> tuple[str, ...]:
    """Return what a pull would do, as lines of text."""
    width = max(len(printable(row.name)) for row in rows)
    lines = [
        f"{printable(row.name).ljust(width)}  {decimal(row.size_bytes):>9}  {_state(row)}"
        for row in rows
    ]
    total, missing = sum(r.size_bytes for r in rows), sum(r.missing_bytes for r in rows)
    count = f"{len(rows)} file{'' if len(rows) == 1 else 's'}"
    ending = (
        f"{printable(name)}: {count}, {decimal(total)}; {decimal(missing)} would be fetched to "
        f"{printable(folder)}, where {decimal(free_bytes)} are free"
    )
    return (*lines, ending)


def order_document(
    name: str, rows: tuple[PullRow, ...], *, folder: str, free_bytes: int
) -> dict[str, Any]:
    """Return what a pull would do as one document, without its schema number."""
    return {
        "name": name,
        "dry_run": True,
        "folder": folder,
        "free_bytes": free_bytes,
        "size_bytes": sum(row.size_bytes for row in rows),
        "missing_bytes": sum(row.missing_bytes for row in rows),
        "files": [
            {
                "name": row.name,
                "size_bytes": row.size_bytes,
                "missing_bytes": row.missing_bytes,
                "path": row.path,
            }
            for row in rows
        ],
    }


def _state(row: PullRow) -> str:
    if row.missing_bytes == 0:
        return "is here"
    if row.missing_bytes < row.size_bytes:
        return f"{decimal(row.missing_bytes)} are missing"
    return "is not here"


def _bars(stream: TextIO) -> "Progress":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from moerun.report.console import open_console

    return Progress(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.percentage:>3.0f}%"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=open_console(stream),
        refresh_per_second=5,
    )


def _short(name: str) -> str:
    """Return the end of a long name: there it says which quantization and part it is."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
