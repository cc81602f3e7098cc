"""What lists say of a model from its header, remembered until the file changes.

A header with its vocabulary takes some milliseconds to read; a list of 200 models would take
seconds. So the facts are kept in the state folder, by path, size and time of change.

Knows: which facts, and when they are too old.
Does not know: how a header is read, or how facts are shown.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moerun.codec import from_plain, to_plain
from moerun.errors import ModelError
from moerun.places import state_folder, write_whole

_FILE: Final = "headers.json"
_SCHEMA: Final = 1
_LARGEST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFacts:
    """Facts of one header; `trouble` says why there are none."""

    architecture: str = ""
    quantization: str = ""
    parameter_count: int = 0
    expert_count: int = 0
    experts_used: int = 0
    train_context_tokens: int = 0
    generates_text: bool = True
    digest: str = ""
    trouble: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    size_bytes: int
    changed_at_ns: int
    facts: HeaderFacts


class HeaderBook:
    """The remembered facts; `save` writes them when any came new."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or state_folder()) / _FILE
        self._entries = _read(self._path)
        self._has_new = False

    def facts(self, path: Path) -> HeaderFacts:
        """Return the facts of a model by its first file, read anew where the file changed."""
        key = str(path)
        try:
            status = os.stat(path)
        except OSError as error:
            return HeaderFacts(trouble=f"it cannot be read: {error.strerror or error}")
        known = self._entries.get(key)
        state = (status.st_size, status.st_mtime_ns)
        if known is not None and (known.size_bytes, known.changed_at_ns) == state:
            return known.facts
        facts = _facts_of(path)
        self._entries[key] = _Remembered(
            size_bytes=status.st_size, changed_at_ns=status.st_mtime_ns, facts=facts
        )
        self._has_new = True
        return facts

    def save(self, still_there: Iterable[Path]) -> None:
        """Write what is known of these models; what is of others is forgotten."""
        kept = {str(path) for path in still_there}
        entries = {key: entry for key, entry in self._entries.items() if key in kept}
        if not self._has_new and len(entries) == len(self._entries):
            return
        plain = {key: to_plain(entry) for key, entry in entries.items()}
        document = json.dumps({"schema": _SCHEMA, "entries": plain})
        # Without a place to remember them, headers are read each time, and that is all.
        with contextlib.suppress(OSError):
            write_whole(self._path, document)


def _facts_of(path: Path) -> HeaderFacts:
    from moerun.model.gguf_header import read_model  # only when a header is not remembered

    try:
        model = read_model(path)
    except ModelError as error:
        return HeaderFacts(trouble=error.message)
    return HeaderFacts(
        architecture=model.architecture,
        quantization=model.quantization,
        parameter_count=model.parameter_count,
        expert_count=model.expert_count,
        experts_used=model.experts_used,
        train_context_tokens=model.train_context_tokens,
        generates_text=model.generates_text,
        digest=model.digest,
    )


def _read(path: Path) -> dict[str, _Remembered]:
    """Return what was remembered; nothing from a file that is none of ours, or newer."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return {}
        document: Any = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
            return {}
        return {
            str(key): from_plain(_Remembered, entry)
            for key, entry in dict(document["entries"]).items()
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
