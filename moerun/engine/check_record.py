"""The self-check's result, kept so that it runs at first start and after a change alone.

Knows: what a result holds for (engine, its libraries, the processor), and its file.
Does not know: what is checked.
"""

import contextlib
import hashlib
import importlib.util
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Final

from moerun.codec import from_plain, to_plain
from moerun.engine import abi
from moerun.engine.self_check import SelfCheck, run_self_check
from moerun.places import write_whole

SCHEMA: Final = 1
FILE_NAME: Final = "engine-check.json"


def check_engine_once(
    folder: Path,
    *,
    run: Callable[[], SelfCheck] = run_self_check,
    key: Callable[[], str] | None = None,
) -> SelfCheck:
    """Return the kept result for this engine and processor, or check now and keep it.

    A failed check is not kept, so that it is made again once the cause may be gone.
    """
    wanted = (key or engine_key)()
    path = folder / FILE_NAME
    kept = _read(path, wanted)
    if kept is not None:
        return kept
    check = run()
    if check.is_sound:
        _write(path, wanted, check)
    return check


def engine_key() -> str:
    """Return a text that changes with the engine, its library files, and the processor."""
    parts = [str(SCHEMA), str(abi.installed_version()), *_library_marks(), _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path, wanted: str) -> SelfCheck | None:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema"] != SCHEMA or document["key"] != wanted:
            return None
        return from_plain(SelfCheck, document["check"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, foreign or damaged: the check is simply made again


def _write(path: Path, key: str, check: SelfCheck) -> None:
    document = {"schema": SCHEMA, "key": key, "check": to_plain(check)}
    # A read-only or full disk costs the check at every start, nothing else.
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps(document, indent=1) + "\n")


def _library_marks() -> list[str]:
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        return []
    marks = []
    for file in sorted((Path(package.origin).parent / "lib").glob("*")):
        facts = file.stat()
        marks.append(f"{file} {facts.st_size} {facts.st_mtime_ns}")
    return marks


def _processor() -> str:
    """Return what names the processor and its instruction sets."""
    lines = []
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
            for line in cpuinfo:
                if not line.strip():
                    break  # the first processor stands for all
                if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part"):
                    lines.append(line.strip())
    except OSError:
        lines = [platform.processor()]  # macOS and Windows
    return "\n".join([platform.machine(), *lines])
