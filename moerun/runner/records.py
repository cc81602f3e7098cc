"""What each runner leaves in the state folder while it lives, for `stat` in another terminal.

One document for each runner, `<state>/runners/<pid>.json`, for this user alone, written whole or
not at all. A number may be used again by the system, so a record also says when its process
started; one whose process is gone is removed by whoever reads it.

Knows: the document, its schema number, and how a process is told from a later namesake.
Does not know: how the figures come about, or how they are shown.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moerun.codec import from_plain, to_plain
from moerun.engine.arguments import BufferReport
from moerun.errors import MoerunError
from moerun.experts.counters import StreamingSample
from moerun.machine.description import DeviceId
from moerun.machine.probe_processes import process_mark
from moerun.places import write_whole
from moerun.planning.plan import Ledger
from moerun.runner.statistics import MemorySample

RECORD_SCHEMA: Final = 3  # 2 added `last_streaming`, 3 slots; earlier ones read as they are
_FOLDER: Final = "runners"
_MOST_DIGITS: Final = 10  # of a process id on any system


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerRecord:
    """One runner as it describes itself. `process_mark` tells it from a later process.

    `labels` are the devices with the names people use; `peak_sample` is the look with the largest
    resident size.
    """

    pid: int
    process_mark: str
    started_at_s: float
    moerun_version: str
    engine_version: str
    model_name: str
    model_paths: tuple[str, ...]
    mode: str
    context_tokens: int
    load_mode: str
    labels: tuple[tuple[DeviceId, str], ...]
    ledger: Ledger
    buffers: tuple[BufferReport, ...]
    last_sample: MemorySample | None = None
    peak_sample: MemorySample | None = None
    last_streaming: StreamingSample | None = None

    def with_sample(self, sample: MemorySample) -> "RunnerRecord":
        """Return the record with one more look at its process."""
        peak = self.peak_sample
        if peak is None or sample.resident_bytes >= peak.resident_bytes:
            peak = sample
        return replace(self, last_sample=sample, peak_sample=peak)

    def with_streaming(self, streaming: StreamingSample) -> "RunnerRecord":
        """Return the record with a later look at its experts."""
        return replace(self, last_streaming=streaming)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsRead:
    """The records of living runners, and a note for each document that was passed over."""

    records: tuple[RunnerRecord, ...]
    notes: tuple[str, ...] = ()


def record_path(state: Path, pid: int) -> Path:
    """Return where the record of a runner lies."""
    return state / _FOLDER / f"{pid}.json"


def write_record(state: Path, record: RunnerRecord) -> None:
    """Write or replace a record, whole or not at all."""
    path = record_path(state, record.pid)
    document = {"schema": RECORD_SCHEMA, **to_plain(record)}
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, json.dumps(document))
    except OSError as error:
        raise MoerunError(
            f"the record {path} cannot be written: {error.strerror or error}",
            hint="`moerun stat` shows this runner only with it",
        ) from error


def remove_record(state: Path, pid: int) -> None:
    """Remove a record; one that is gone, or cannot be removed, is left to the next reader."""
    with contextlib.suppress(OSError):
        record_path(state, pid).unlink()


def read_records(state: Path, *, mark_of: Callable[[int], str | None] | None = None) -> RecordsRead:
    """Read the records of living runners in the order of their start, and remove stale ones."""
    mark_of = process_mark if mark_of is None else mark_of
    records: list[RunnerRecord] = []
    notes: list[str] = []
    for path in sorted((state / _FOLDER).glob("*.json")):
        if (pid := _pid_of(path)) is None:
            continue  # a name that no runner gives
        try:
            record = _read(path)
            if record.pid != pid:
                raise ValueError(f"it says that it is of process {record.pid}")
        except FileNotFoundError:
            continue  # its runner ended meanwhile
        except ValueError as error:
            if mark_of(pid) is None:
                remove_record(state, pid)
            else:
                notes.append(f"the record {path} is ignored: {error}")
            continue
        except OSError as error:
            notes.append(f"the record {path} cannot be read: {error.strerror or error}")
            continue
        if mark_of(pid) == record.process_mark:
            records.append(record)
        else:
            remove_record(state, pid)
    ordered = sorted(records, key=lambda record: (record.started_at_s, record.pid))
    return RecordsRead(records=tuple(ordered), notes=tuple(notes))


def _pid_of(path: Path) -> int | None:
    """Return the process that a document's name is of."""
    is_number = path.stem.isascii() and path.stem.isdecimal() and len(path.stem) <= _MOST_DIGITS
    return int(path.stem) if is_number else None


def _read(path: Path) -> RunnerRecord:
    """Read one document; ValueError with a sentence when it is none of ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    schema = document.pop("schema", None)
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("it has no schema number")
    if schema > RECORD_SCHEMA:
        raise ValueError(
            f"it has schema {schema}, this moerun knows {RECORD_SCHEMA}; a newer one wrote it"
        )
    return from_plain(RunnerRecord, document)
