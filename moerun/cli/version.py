"""What `moerun --version` says: moerun, the engine, and what the engine was built for.

Knows: how versions are told.
Does not know: whether the engine works; `moerun doctor` asks it.
"""

import platform

from moerun import __version__
from moerun.engine.abi import PACKAGE, VERSION, installed_version
from moerun.engine.installation import installed_backends


def version_lines() -> tuple[str, ...]:
    """Return one line for moerun and one for the engine, without importing the engine."""
    return (
        f"moerun {__version__} (Python {platform.python_version()})",
        _engine_line(installed_version()),
    )


def _engine_line(version: str | None) -> str:
    if version is None:
        return f"engine: {PACKAGE} is not installed (this moerun needs {VERSION})"
    backends = installed_backends()
    kinds = ", ".join(backend for backend in backends if backend != "rpc") or "none"
    remote = "yes" if "rpc" in backends else "no"
    line = f"engine: {PACKAGE} {version}; backends: {kinds}; RPC: {remote}"
    if version.partition("+")[0] != VERSION:
        line += f" (this moerun needs {VERSION})"
    return line
