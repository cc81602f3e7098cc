"""How a runner died, in words: what its exit code says, and what to try.

Knows: signals, Windows' status codes, and what usually lies behind each.
Does not know: processes; the facts arrive as values.
"""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.errors import EngineCrashed

_WINDOWS: Final = {
    0xC0000005: "an access violation",
    0xC000001D: "an illegal instruction",
    0xC00000FD: "a stack overflow",
    0xC0000409: "an abort",
    0xC0000017: "no memory left",
    0x40010004: "being ended from outside",
}
_MEANINGS: Final = {
    "SIGKILL": "killed from outside",
    "SIGSEGV": "a memory fault in native code",
    "SIGBUS": "a read beyond the end of a mapped file, or of failing storage",
    "SIGABRT": "a check of the engine failed",
    "SIGILL": "an instruction that this processor does not have",
    "SIGFPE": "a division by zero in native code",
    "SIGTERM": "ended from outside",
}
_SHORTER: Final = "a smaller context (`--ctx`) or a lower `--ram` leaves more memory free"
_TRY: Final = {
    "SIGKILL": "look for another program that ended it, such as a batch system's limit",
    "SIGBUS": "check that the model's file is complete and its storage sound (`dmesg`)",
    "SIGILL": "the engine was built for another processor: build it here with `make run`",
}
_TAIL_LINES: Final = 12
_PYTHON_DUMP: Final = "Fatal Python error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The facts of a death: the code, what was being done, and where the log lies.

    `memory_kills` is how many processes the system ended for want of memory meanwhile,
    `model_path` the model it had, and `file_change` what became of its files since.
    """

    returncode: int | None
    doing: str
    log_path: Path | None
    log_tail: str
    memory_kills: int = 0
    model_path: str | None = None
    file_change: str | None = None


def crash_of(ending: Ending) -> EngineCrashed:
    """Return the error that tells of a death in one sentence, with what to try."""
    name = signal_name(ending.returncode)
    out_of_memory = name == "SIGKILL" and ending.memory_kills > 0
    why = describe_code(ending.returncode)
    if out_of_memory:
        why = f"{name}: the system ran out of memory and ended it"
    advice = _SHORTER if out_of_memory else _TRY.get(name, "`moerun doctor` checks the engine")
    if name == "SIGBUS":
        why, advice = _bad_read(ending, why)
    where = f"; the whole log is {ending.log_path}" if ending.log_path is not None else ""
    return EngineCrashed(
        f"The runner died while it {ending.doing} ({why}).",
        log_tail=ending.log_tail,
        hint=f"{advice}{where}",
    )


def _bad_read(ending: Ending, why: str) -> tuple[str, str]:
    """Return which file could not be read through its mapping, and what to try."""
    if ending.file_change is not None:
        return f"{why}; {ending.file_change}", "let the file come to rest, and start again"
    if ending.model_path is None:
        return why, _TRY["SIGBUS"]
    return (
        f"{why}; {ending.model_path} is as long as before, so its storage failed to read it",
        "`dmesg` tells what the storage reported; copy the model to another disk",
    )


def describe_code(returncode: int | None) -> str:
    """Return what an exit code means."""
    if returncode is None:
        return "it closed its channel and went on"
    if name := signal_name(returncode):
        meaning = _MEANINGS.get(name)
        return f"{name}: {meaning}" if meaning else name
    if returncode in _WINDOWS:
        return f"{_WINDOWS[returncode]}, 0x{returncode:08X}"
    return f"exit code {returncode}"


def signal_name(returncode: int | None) -> str:
    """Return the name of the signal that ended a process; empty when none did."""
    if returncode is None or returncode >= 0:
        return ""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def tail_of(log: str, *, lines: int = _TAIL_LINES) -> str:
    """Return the end of a log as the engine wrote it, without Python's dump of its stacks."""
    said = log.partition(_PYTHON_DUMP)[0].splitlines()
    return "\n".join([line for line in said if line.strip()][-lines:])


def memory_kills(proc: Path = Path("/proc")) -> int:
    """Return how many processes Linux has ended for want of memory since it started."""
    try:
        lines = (proc / "vmstat").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0  # not Linux: nothing counts them
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
