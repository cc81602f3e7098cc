"""How this room starts Python children: the same interpreter, this very package, no other modules.

Knows: the command line, the environment, and how an exit code reads.
Does not know: what the children do.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Final

import moerun

_WINDOWS_STATUS: Final = 0x8000_0000  # where Windows puts its exceptions


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of this package.

    `-P` keeps the working folder, which may be anybody's, from providing modules.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def child_environment() -> dict[str, str]:
    """Return the environment in which a child finds this package, installed or not."""
    root = Path(moerun.__file__).resolve().parents[1]
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(root), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def describe_exit(returncode: int) -> str:
    """Return `exit code 3`, or the name of the signal or the status that ended a child."""
    if returncode >= _WINDOWS_STATUS:
        return f"status {returncode:#x}"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
