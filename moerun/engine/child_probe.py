"""Asking the engine for its devices from a process that does not load it.

Loading the engine takes a third of a second, initialises every driver, and may die natively; a
child process bears all three.

Knows: how the child is started, what it prints, and how its end is told.
Does not know: ctypes, or what the devices will be used for.
"""

import json
import subprocess
from dataclasses import dataclass
from typing import Final

from moerun.codec import from_plain
from moerun.engine.abi import require_version
from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.errors import (
    EngineCrashed,
    EngineError,
    EngineMismatch,
    EngineMissing,
    EngineRefused,
    MoerunError,
    UsageError,
)
from moerun.machine.description import EngineDevice

DEFAULT_TIMEOUT_S: Final = 60.0
_KINDS: dict[str, type[MoerunError]] = {
    kind.__name__: kind for kind in (EngineMissing, EngineMismatch, EngineRefused, UsageError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProbe:
    """The installed engine as it describes itself; `build` names its backends and features."""

    version: str
    devices: tuple[EngineDevice, ...]
    build: str
    has_rpc: bool


def probe_engine(
    *, timeout_s: float = DEFAULT_TIMEOUT_S, workers: tuple[str, ...] = ()
) -> EngineProbe:
    """List the devices in a child process.

    Raises EngineMissing or EngineMismatch without starting one, EngineCrashed when it dies.
    """
    require_version()
    named = (f"--worker={worker}" for worker in workers)
    try:
        done = subprocess.run(
            module_command("moerun.engine.devices", "--json", *named),
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineCrashed(
            f"The engine did not list its devices within {timeout_s:g} s.",
            log_tail=_tail(error.stderr),
            hint="A driver may be stuck; `moerun doctor` runs the same check.",
        ) from error
    log_tail = _tail(done.stderr)
    if done.returncode != 0:
        raise EngineCrashed(
            f"The engine died while it listed its devices ({describe_exit(done.returncode)}).",
            log_tail=log_tail,
        )
    return _read(done.stdout, log_tail)


def _read(output: bytes, log_tail: str) -> EngineProbe:
    try:
        # Backends may print lines of their own before.
        document = json.loads(output.decode("utf-8", "replace").splitlines()[-1])
        if "error" in document:
            error = document["error"]
            kind = _KINDS.get(error["kind"], EngineError)
            raise kind(error["message"], hint=error["hint"])
        return from_plain(EngineProbe, document["probe"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineCrashed(
            "The engine's list of devices cannot be read.", log_tail=log_tail
        ) from error


def _tail(output: bytes | None, *, lines: int = 20) -> str:
    return "\n".join((output or b"").decode("utf-8", "replace").splitlines()[-lines:])
