"""What the installed engine was built for, as its files tell; the engine is not imported.

Knows: that each backend of ggml is a library of its own beside the engine's Python code.
Does not know: whether any of them works; `moerun doctor` asks the engine.
"""

import importlib.util
from pathlib import Path
from typing import Final

# libggml-<backend> - ggml/src/CMakeLists.txt, ggml_add_backend_library @ llama-cpp-python 0.3.36 -
# checked by tests/engine/test_installation.py
_BACKENDS: Final = ("cuda", "hip", "vulkan", "metal", "sycl", "blas", "cpu", "rpc")


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
