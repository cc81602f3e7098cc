"""Build the pinned engine for what this machine has, and install it into the running Python.

Knows: which compiler flags and CMake options the engine needs here, what to install when a
toolkit is missing, and when an earlier build can be used again.
Does not know: anything of moerun itself; it runs before moerun's dependencies are there, so it
uses the standard library alone.

Run it inside the virtual environment: `python scripts/build_engine.py [--backend auto]`.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENGINE: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
BACKENDS: Final = ("auto", "cpu", "cuda", "vulkan", "metal")

# GCC 12 drops the stores of the AMX tile configuration and the first long prompt then dies at
# `ldtilecfg`; without these instruction sets the engine runs and decodes as fast. Held by
# tests/engine/test_self_check.py.
NO_AMX_FLAGS: Final = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")

NVIDIA_VENDOR: Final = "0x10de"
GPU_VENDORS: Final = {NVIDIA_VENDOR: "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}

# Core-minutes, rounded up from builds seen; they only serve the sentence that asks for patience.
CORE_MINUTES: Final = {"cpu": 8, "vulkan": 16, "metal": 8, "cuda": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What matters for the choice of a backend; vendors as `NVIDIA`, `AMD`, `Intel`."""

    system: str
    machine: str
    gpu_vendors: frozenset[str]
    has_cuda_toolkit: bool
    has_vulkan_sdk: bool
    has_nvidia_driver: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend to build, why, and what would give a faster one."""

    backend: str
    because: str
    advice: str | None = None


def main() -> int:
    """Build or reuse the engine; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--no-cache", action="store_true", help="build even if a build is kept")
    options = parser.parse_args()
    found = look_around()
    choice = choose_backend(options.backend, found)
    if choice is None:
        say(f"Error: BACKEND={options.backend} cannot be built here. {missing(options.backend)}")
        return 2
    key = build_key(choice.backend, found)
    stamp = Path(sys.prefix) / "moerun-engine.json"
    if installed_key(stamp) == key:
        return 0
    say(f"Engine: {ENGINE} {VERSION} for {choice.backend.upper()}: {choice.because}")
    if choice.advice:
        say(f"Note: {choice.advice}")
    status = install(choice.backend, found, key, use_cache=not options.no_cache)
    if status == 0:
        stamp.write_text(json.dumps({"key": key, "backend": choice.backend}), encoding="utf-8")
    return status


def choose_backend(wanted: str, found: Found) -> Choice | None:
    """Return what to build, or None when `wanted` cannot be built here."""
    if wanted == "cpu":
        return Choice(backend="cpu", because="as asked", advice=None)
    possible = {
        "metal": found.system == "Darwin" and found.machine == "arm64",
        "cuda": found.has_cuda_toolkit,
        "vulkan": found.has_vulkan_sdk,
    }
    if wanted != "auto":
        return Choice(backend=wanted, because="as asked") if possible[wanted] else None
    if possible["metal"]:
        return Choice(backend="metal", because="an Apple processor")
    if "NVIDIA" in found.gpu_vendors:
        if possible["cuda"]:
            return Choice(backend="cuda", because="an NVIDIA GPU and the CUDA toolkit are here")
        return Choice(
            backend="cpu",
            because="an NVIDIA GPU is here, but no CUDA toolkit",
            advice="to use the GPU: " + missing("cuda"),
        )
    others = sorted(found.gpu_vendors - {"NVIDIA"})
    if others and possible["vulkan"]:
        return Choice(backend="vulkan", because=f"an {others[0]} GPU and the Vulkan SDK are here")
    if "AMD" in others:
        return Choice(
            backend="cpu",
            because="an AMD GPU is here, but no Vulkan SDK",
            advice="to use the GPU: " + missing("vulkan"),
        )
    return Choice(backend="cpu", because="no GPU with a toolkit was found")


def missing(backend: str) -> str:
    """Return the sentence that says what a backend needs."""
    match backend:
        case "cuda":
            return (
                "install the CUDA toolkit (sudo apt install nvidia-cuda-toolkit), "
                "then run: make run BACKEND=cuda"
            )
        case "vulkan":
            return (
                "install the Vulkan SDK (sudo apt install libvulkan-dev glslc), "
                "then run: make run BACKEND=vulkan"
            )
        case _:
            return "Metal needs a Mac with an Apple processor."


def look_around(
    *, root: Path = Path("/"), which: Callable[[str], str | None] = shutil.which
) -> Found:
    """Return what this machine has, from its PCI bus and its search path."""
    cuda = which("nvcc") or _existing(root / "usr/local/cuda/bin/nvcc")
    vulkan_headers = _existing(root / "usr/include/vulkan/vulkan.h") or os.environ.get("VULKAN_SDK")
    return Found(
        system=platform.system(),
        machine=platform.machine(),
        gpu_vendors=_gpu_vendors(root),
        has_cuda_toolkit=cuda is not None,
        has_vulkan_sdk=bool(vulkan_headers) and which("glslc") is not None,
        has_nvidia_driver=which("nvidia-smi") is not None,
    )


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _gpu_vendors(root: Path) -> frozenset[str]:
    vendors = set()
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            # PCI class 0x03: display controllers, data-centre GPUs without a screen included.
            is_display = (device / "class").read_text().startswith("0x03")
            vendor = (device / "vendor").read_text().strip()
        except OSError:
            continue  # the device went away, or is not ours to read: then it is not ours to use
        if is_display and vendor in GPU_VENDORS:
            vendors.add(GPU_VENDORS[vendor])
    return frozenset(vendors)


def cmake_options(backend: str) -> tuple[str, ...]:
    """Return the CMake options of a backend; the RPC backend is always built in."""
    options = ["-DGGML_RPC=on", "-DLLAVA_BUILD=OFF"]
    if backend == "cuda":
        options.append("-DGGML_CUDA=on")
    elif backend == "vulkan":
        options.append("-DGGML_VULKAN=on")
    return tuple(options)


def compiler_flags(machine: str, accepts: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the flags for C and C++: no AMX on x86, as far as the compiler knows the flags."""
    if machine.lower() not in ("x86_64", "amd64"):
        return ()
    return tuple(flag for flag in NO_AMX_FLAGS if accepts(flag))


def compiler_accepts(flag: str) -> bool:
    """Return whether the C compiler knows a flag."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int main(void) { return 0; }\n", encoding="ascii")
        command = [*compiler.split(), flag, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build_key(backend: str, found: Found) -> str:
    """Return a text that differs whenever an earlier build may not be used again.

    A native build must not move to another processor, so the processor's flags are part of it.
    """
    facts = (
        VERSION,
        backend,
        found.system,
        found.machine,
        platform.libc_ver(),
        cmake_options(backend),
        NO_AMX_FLAGS,
        _processor_flags(),
        _first_line([os.environ.get("CXX") or "c++", "--version"]),
        _first_line(["nvcc", "--version"]) if backend == "cuda" else "",
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _first_line(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.partition("\n")[0]


def installed_key(stamp: Path) -> str | None:
    """Return the key of the build that is installed here, None when there is none."""
    if importlib.util.find_spec("llama_cpp") is None or not stamp.exists():
        return None
    try:
        return str(json.loads(stamp.read_text(encoding="utf-8"))["key"])
    except (ValueError, KeyError, TypeError):
        return None


def install(backend: str, found: Found, key: str, *, use_cache: bool) -> int:
    """Build the wheel unless one of the same key is kept, and install it."""
    kept = cache_folder() / key
    wheels = sorted(kept.glob("llama_cpp_python-*.whl")) if use_cache else []
    if not wheels:
        missing_tool = next((t for t in ("cc", "c++") if shutil.which(t) is None), None)
        if missing_tool is not None and found.system != "Windows":
            say(f"Error: no C++ compiler ({missing_tool}) was found; sudo apt install g++")
            return 2
        status = build(backend, found, kept)
        if status != 0:
            return status
        wheels = sorted(kept.glob("llama_cpp_python-*.whl"))
    return pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheels[-1]))


def build(backend: str, found: Found, folder: Path) -> int:
    """Build the wheel into `folder`; the compiler's output is kept beside it."""
    cores = os.cpu_count() or 1
    minutes = max(1, round(CORE_MINUTES[backend] / cores))
    say(f"Building it takes about {minutes} minutes on {cores} cores, once.")
    flags = " ".join(compiler_flags(found.machine, compiler_accepts))
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join((os.environ.get("CMAKE_ARGS", ""), *cmake_options(backend))).strip(),
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}".strip(),
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {flags}".strip(),
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(cores)),
    }
    if backend == "cuda" and shutil.which("nvcc") is None:
        environment["CUDACXX"] = "/usr/local/cuda/bin/nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "build.log"
    # pip's own wheel cache does not look at CMAKE_ARGS and could hand out a build without RPC.
    arguments = ("wheel", "--no-cache-dir", "--no-deps", "--no-binary", ENGINE)
    with log_path.open("w", encoding="utf-8") as log:
        status = pip(
            *arguments,
            "--wheel-dir",
            str(folder),
            f"{ENGINE}=={VERSION}",
            environment=environment,
            log=log.fileno(),
        )
    if status != 0:
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        say("\n".join(tail))
        say(f"Error: the engine did not build; the whole log is {log_path}")
    return status


def pip(*arguments: str, environment: dict[str, str] | None = None, log: int | None = None) -> int:
    """Run pip of this Python; its output goes to `log` when one is given."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode


def cache_folder() -> Path:
    """Return where builds are kept, following the system's custom."""
    if platform.system() == "Windows":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif platform.system() == "Darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "moerun" / "engine"


def say(text: str) -> None:
    """Tell the person at the terminal."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
