"""Loading a model without reading it: its files are mapped, and no page is asked for.

The engine reads a mapped file whole while it loads (MAP_POPULATE and WILLNEED), which for a model
larger than memory takes minutes and leaves the wrong half in the page cache. It does not on a
machine with several memory nodes, so for the length of the load it is told that this is one.

Beliefs: the loader asks the processor's registry for `ggml_backend_cpu_is_numa` once for each
file, before it maps it, and is the only one to ask there - `init_mappings`,
src/llama-model-loader.cpp:1420; then nothing is populated and the whole mapping is advised
MADV_RANDOM, which makes every later fault read one page - `llama_mmap`, src/llama-mmap.cpp:473;
progress is told before the first tensor is read - `load_all_data`, src/llama-model-loader.cpp:1635
@ 0.3.36 - checked by tests/engine/test_lazy_load.py.

Knows: the registry, /proc/self/maps, madvise.
Does not know: tensors, or what is done with the mappings later.
"""

import ctypes
import errno
import functools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from moerun.engine import abi
from moerun.engine.interface import MappedFile
from moerun.errors import EngineRefused

_PROCESSOR: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_IS_NUMA: Final = b"ggml_backend_cpu_is_numa"
_ADVICE_NORMAL: Final = 0  # MADV_NORMAL
# belief: "%s-%05d-of-%05d.gguf" - llama_split_path, src/llama.cpp @ 0.3.36
_SHARD_NAME: Final = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def can_stream() -> bool:
    """Whether a model can be mapped here without being read."""
    return sys.platform == "linux"


def require_streaming() -> None:
    """Raise EngineRefused where a model cannot be mapped without being read."""
    if not can_stream():
        raise EngineRefused(
            f"The load mode 'stream' is there on Linux only, and this is {sys.platform}.",
            hint="Use the load mode mmap; --streaming off does.",
        )


@contextmanager
def without_reading(opened: abi.Abi) -> Iterator[None]:
    """While open, models are mapped and not read; the registry is as it was afterwards."""
    require_streaming()
    processor = opened.device_by_type(_PROCESSOR)
    if not processor:
        raise EngineRefused("The engine has no backend for the processor.")
    registration = abi.BackendRegistration.from_address(opened.device_registration(processor))
    original = registration.get_proc_address
    ask_original = abi.GetProcedure(original)
    is_numa = abi.IsNuma(lambda: True)
    answer = ctypes.cast(is_numa, ctypes.c_void_p).value

    def get_procedure(pointer: Any, name: bytes) -> int | None:
        return answer if name == _IS_NUMA else ask_original(pointer, name)

    replacement = abi.GetProcedure(get_procedure)
    registration.get_proc_address = ctypes.cast(replacement, ctypes.c_void_p).value
    try:
        yield
    finally:
        registration.get_proc_address = original


def model_files(path: str) -> tuple[str, ...]:
    """Return the files of a model by their names: all parts of a split one."""
    place = Path(path)
    match = _SHARD_NAME.fullmatch(place.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    names = (f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
    return tuple(str(place.with_name(name)) for name in names)


def mapped_files(path: str, *, before: tuple[MappedFile, ...] = ()) -> tuple[MappedFile, ...]:
    """Return what this process has mapped of a model's files, but for what it had `before`.

    Nothing where the system does not tell. Each file is found by device and inode; some file
    systems (btrfs, overlays) show another device there, and then the path decides.
    """
    if sys.platform != "linux":
        return ()
    wanted = {file: os.stat(file) for file in model_files(path) if os.path.isfile(file)}
    by_path = {os.path.realpath(file): file for file in wanted}
    by_inode = {
        (f"{os.major(s.st_dev):02x}:{os.minor(s.st_dev):02x}", s.st_ino): file
        for file, s in wanted.items()
    }
    known = {mapped.address for mapped in before}
    found: list[MappedFile] = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) < 6:
                continue
            file = by_inode.get((fields[3], int(fields[4]))) or by_path.get(_unescaped(fields[5]))
            if file is None:
                continue
            first, _, last = fields[0].partition("-")
            address = int(first, 16)
            if address not in known:
                found.append(
                    MappedFile(
                        path=file,
                        address=address,
                        offset_bytes=int(fields[2], 16),
                        size_bytes=int(last, 16) - address,
                    )
                )
    return tuple(found)


def advise_normal(mapped: tuple[MappedFile, ...]) -> None:
    """Give faults in the mappings the usual read-ahead again."""
    for part in mapped:
        if _madvise()(part.address, part.size_bytes, _ADVICE_NORMAL) != 0:
            code = ctypes.get_errno()
            raise EngineRefused(
                f"The system did not take advice on the mapping of {part.path}: "
                f"{errno.errorcode.get(code, code)} ({os.strerror(code)}).",
                hint="--streaming off loads the model without it.",
            )


def _unescaped(text: str) -> str:
    """Return a path of /proc/self/maps as it is; a newline is written as \\012 there."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.restype = ctypes.c_int
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
