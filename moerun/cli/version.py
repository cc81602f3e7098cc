"""What `moerun --version` says: moerun, the engine, and what the engine was built for.

Knows: that each backend of ggml is a library of its own beside the engine's Python code.
Does not know: whether the engine works; `moerun doctor` asks it.
"""

import importlib.util
import platform
from pathlib import Path
from typing import Final

from moerun import __version__
from moerun.engine.abi import PACKAGE, VERSION, installed_version

# libggml-<backend>: ggml/src/CMakeLists.txt, ggml_add_backend @ llama-cpp-python 0.3.36 - checked
# by tests/engine/test_installed_backends.py
_BACKENDS: Final = ("cuda", "hip", "vulkan", "metal", "sycl", "blas", "cpu", "rpc")


def version_lines() -> tuple[str, ...]:
    """Return one line for moerun and one for the engine, without importing the engine."""
    return (
        f"moerun {__version__} (Python {platform.python_version()})",
        _engine_line(installed_version()),
    )


def installed_backends() -> tuple[str, ...]:
    """Return the backends whose libraries are installed, empty when there is no engine."""
    found = importlib.util.find_spec("llama_cpp")
    folders = (
        [Path(place) / "lib" for place in (found.submodule_search_locations or [])] if found else []
    )
    names = {file.name for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return tuple(
        backend
        for backend in _BACKENDS
        if any(name.removeprefix("lib").startswith(f"ggml-{backend}") for name in names)
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
