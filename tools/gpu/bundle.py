"""Make the source bundle: the parts of the engine's source distribution that a CUDA build needs.

`python -m tools.gpu.bundle SDIST [--out FILE] [--wheels FOLDER]` reads the source distribution of
llama-cpp-python (`pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36`) and writes
one compressed archive of at most 50 MB. Wheels of what moerun imports go along where the other
machine lacks them. It is made when needed and never committed.

Knows: which folders the build reads, and how large a bundle may be.
Does not know: how it is built, or what is measured.
"""

import argparse
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

LIMIT_BYTES: Final = 50_000_000
VERSION: Final = "0.3.36"
_ENGINE: Final = "vendor/llama.cpp"
# Paths of the distribution that are taken, folders with all that is in them.
TAKEN: Final = (
    "LICENSE.md",
    "PKG-INFO",
    "llama_cpp",
    f"{_ENGINE}/CMakeLists.txt",
    f"{_ENGINE}/LICENSE",
    f"{_ENGINE}/licenses",
    f"{_ENGINE}/cmake",
    f"{_ENGINE}/common",
    f"{_ENGINE}/include",
    f"{_ENGINE}/src",
    f"{_ENGINE}/vendor",
    f"{_ENGINE}/tools/fit-params",
    f"{_ENGINE}/ggml/CMakeLists.txt",
    f"{_ENGINE}/ggml/cmake",
    f"{_ENGINE}/ggml/include",
    f"{_ENGINE}/ggml/src",
)
# Back ends that are not built; their folders are most of what is taken otherwise.
_LEFT_OUT: Final = (
    *("blas", "cann", "et", "hexagon", "hip", "metal", "musa", "opencl", "openvino", "sycl"),
    *("virtgpu", "vulkan", "webgpu", "zdnn", "zendnn"),
)


class BundleError(Exception):
    """The bundle cannot be made; the text says why and what to do."""


def is_taken(path: str) -> bool:
    """Whether a path within the distribution goes into the bundle."""
    parts = PurePosixPath(path)
    if any(parts.is_relative_to(f"{_ENGINE}/ggml/src/ggml-{name}") for name in _LEFT_OUT):
        return False
    return any(parts.is_relative_to(taken) for taken in TAKEN)


def write_bundle(source: Path, out: Path, wheels: Sequence[Path] = ()) -> int:
    """Write the bundle and return its size; BundleError when it is incomplete or too large."""
    found: set[str] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(source) as given, tarfile.open(out, "w:xz") as bundle:
            for member, name in _members(given):
                found.update(taken for taken in TAKEN if PurePosixPath(name).is_relative_to(taken))
                member.name = f"engine/{name}"
                bundle.addfile(member, given.extractfile(member))
            for wheel in wheels:
                bundle.add(wheel, f"wheels/{wheel.name}")
    except (OSError, tarfile.TarError) as error:
        raise BundleError(f"{source} cannot be read as a source distribution: {error}") from error
    missing = [taken for taken in TAKEN if taken not in found]
    if missing:
        out.unlink()
        raise BundleError(f"{source} lacks {', '.join(missing)}; is it llama-cpp-python {VERSION}?")
    size = out.stat().st_size
    if size > LIMIT_BYTES:
        raise BundleError(
            f"{out} has {size / 1e6:.1f} MB and may have {LIMIT_BYTES / 1e6:g}; give fewer wheels"
        )
    return size


def _members(given: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the files to take, with their names below the distribution's only folder."""
    for member in given:
        _, _, name = member.name.partition("/")
        if member.isfile() and is_taken(name):
            yield member, name


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the bundle that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.bundle", description=__doc__)
    parser.add_argument("source", type=Path, help="llama_cpp_python-0.3.36.tar.gz")
    parser.add_argument("--out", type=Path, default=Path(".build/gpu/bundle.tar.xz"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take along")
    options = parser.parse_args(arguments)
    wheels = sorted(options.wheels.glob("*.whl")) if options.wheels else []
    try:
        size = write_bundle(options.source, options.out, wheels)
    except BundleError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(f"{options.out}: {size / 1e6:.1f} MB, {len(wheels)} wheels\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
