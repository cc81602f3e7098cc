"""CUDA's own runtime, as little of it as the check needs: ballast, and copies from pinned memory.

Knows: a handful of calls of libcudart, which every CUDA toolkit has.
Does not know: the engine, models, or what the figures are for.
"""

import ctypes
import ctypes.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

_NAMES: Final = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")
_FOLDERS: Final = ("", "/usr/local/cuda/lib64/", "/usr/local/cuda/targets/x86_64-linux/lib/")
_HOST_TO_DEVICE: Final = 1
_BALLAST_STEP_BYTES: Final = 4 << 30
_NEAR_BYTES: Final = 64 << 20  # an allocation is rounded up, and the driver keeps some


class CudaError(Exception):
    """A call of the runtime failed, or there is none."""


class Memory(Protocol):
    """What ballast needs of a card."""

    def free_bytes(self) -> int:
        """Return the free memory of the card."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Take memory of the card; return its address."""
        ...

    def release(self, address: int) -> None:
        """Give it back."""
        ...


@contextmanager
def ballast(memory: Memory, *, leaving_bytes: int) -> Iterator[int]:
    """Take a card's memory until so much is free; yield what is free then."""
    held: list[int] = []
    try:
        while (over := memory.free_bytes() - leaving_bytes) > _NEAR_BYTES:
            held.append(memory.allocate(min(over, _BALLAST_STEP_BYTES)))
        yield memory.free_bytes()
    finally:
        for address in held:
            memory.release(address)


class CudaMemory:
    """The first card of this process through libcudart."""

    def __init__(self) -> None:
        self._runtime = _open()

    def free_bytes(self) -> int:
        """Return the free memory of the card."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size_bytes: int) -> int:
        """Take memory of the card; return its address."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return int(address.value or 0)

    def release(self, address: int) -> None:
        """Give it back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    @contextmanager
    def pinned(self, size_bytes: int) -> Iterator[int]:
        """Hold host memory that the card may read by itself; yield its address."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), 0)
        try:
            yield int(address.value or 0)
        finally:
            self._call("cudaFreeHost", address)

    def copy_s(self, target: int, source: int, sizes_bytes: Sequence[int]) -> float:
        """Copy pieces one after another without waiting for each; return the time of all."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        try:
            started = time.perf_counter()
            for size in sizes_bytes:
                self._call(
                    "cudaMemcpyAsync",
                    ctypes.c_void_p(target),
                    ctypes.c_void_p(source),
                    ctypes.c_size_t(size),
                    _HOST_TO_DEVICE,
                    stream,
                )
            self._call("cudaStreamSynchronize", stream)
            return time.perf_counter() - started
        finally:
            self._call("cudaStreamDestroy", stream)

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._runtime[name](*arguments)
        if status:
            raise CudaError(f"{name} failed with {status}")


def _open() -> ctypes.CDLL:
    for folder in _FOLDERS:
        for name in _NAMES:
            if folder and not Path(folder + name).exists():
                continue
            try:
                return ctypes.CDLL(folder + name)
            except OSError:
                continue  # the next place may have it
    raise CudaError("libcudart was not found; is the CUDA toolkit installed?")
