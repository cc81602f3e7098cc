"""What this program believes of llama.cpp's binary interface, and the check that it is so.

Every belief names its source, at llama-cpp-python 0.3.36 (llama.cpp 0c1e57098), and all of them
are checked by tests/engine/test_abi.py and, at a user's first start, by `self_check`.

Knows: versions, libraries, symbols, structs and enumerations.
Does not know: models, plans, or what the functions are called for.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from moerun.engine.abi_buffers import BufferFunctions, bind_buffers
from moerun.errors import EngineMismatch, EngineMissing

PACKAGE: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
INSTALL_COMMAND: Final = (
    f'CMAKE_ARGS="-DGGML_RPC=on" pip install --no-binary {PACKAGE} {PACKAGE}=={VERSION}'
)

# GGML_BACKEND_API_VERSION — ggml/src/ggml-backend-impl.h @ 0.3.36
BACKEND_API_VERSION: Final = 2
# sizeof of both, natural alignment, 64 bit — include/llama.h @ 0.3.36
MODEL_PARAMETERS_BYTES: Final = 80
CONTEXT_PARAMETERS_BYTES: Final = 160
# llama_model_default_params — src/llama-model.cpp @ 0.3.36
MODEL_PARAMETER_DEFAULTS: Final = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
# llama_context_default_params — src/llama-context.cpp @ 0.3.36
CONTEXT_PARAMETER_DEFAULTS: Final = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "flash_attn_type": -1,
    "yarn_beta_slow": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
# ggml_tensor_overhead: an object's head of 32 bytes and the tensor — ggml/src/ggml.c @ 0.3.36
TENSOR_OVERHEAD_BYTES: Final = 368
# What the program asks of a tensor in a graph — `enum ggml_type` and `enum ggml_op`,
# ggml/include/ggml.h @ 0.3.36
TYPE_F32: Final = 0
TYPE_I32: Final = 26


class Operation(IntEnum):
    """The entries of `enum ggml_op` that are looked at — ggml/include/ggml.h @ 0.3.36."""

    NONE = 0
    ADD_ID = 3
    REPEAT = 20
    MUL_MAT = 29
    MUL_MAT_ID = 30
    RESHAPE = 36
    VIEW = 37
    GET_ROWS = 40


class EngineLoadMode(IntEnum):
    """`enum llama_load_mode` — include/llama.h @ 0.3.36."""

    NONE = 0
    MMAP = 1
    MLOCK = 2
    MMAP_MLOCK = 3
    DIRECT_IO = 4


class FlashAttention(IntEnum):
    """`enum llama_flash_attn_type` — include/llama.h @ 0.3.36."""

    AUTO = -1
    OFF = 0
    ON = 1


class LogLevel(IntEnum):
    """`enum ggml_log_level` — ggml/include/ggml.h @ 0.3.36."""

    NONE = 0
    DEBUG = 1
    INFO = 2
    WARN = 3
    ERROR = 4
    CONTINUED = 5


class TensorBufferOverride(ctypes.Structure):
    """`llama_model_tensor_buft_override` — include/llama.h @ 0.3.36; an array ends with NULLs."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class Tensor(ctypes.Structure):
    """`ggml_tensor` — ggml/include/ggml.h @ 0.3.36; pointers are plain integers, or None."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class DeviceProperties(ctypes.Structure):
    """`ggml_backend_dev_props` — ggml/include/ggml-backend.h @ 0.3.36."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("free_bytes", ctypes.c_size_t),
        ("total_bytes", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("has_async", ctypes.c_bool),
        ("has_host_buffer", ctypes.c_bool),
        ("can_wrap_host_memory", ctypes.c_bool),
        ("has_events", ctypes.c_bool),
        ("can_mmap", ctypes.c_bool),
    )


class BackendRegistration(ctypes.Structure):
    """`ggml_backend_reg` — ggml/src/ggml-backend-impl.h @ 0.3.36."""

    _fields_ = (
        ("api_version", ctypes.c_int),
        ("get_name", ctypes.c_void_p),
        ("get_device_count", ctypes.c_void_p),
        ("get_device", ctypes.c_void_p),
        ("get_proc_address", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


GetMemory = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)


# `ggml_backend_sched_eval_callback` without its second and third argument, whether the node is
# still to be computed and the user's data: what is passed and not taken harms no 64-bit calling
# convention, and each conversion is paid at every node. `router_hook` knows the second without it.
EvaluationCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)

GetProcedure = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
IsNuma = ctypes.CFUNCTYPE(ctypes.c_bool)


class DeviceInterfaceHead(ctypes.Structure):
    """The first functions of `ggml_backend_device` — ggml/src/ggml-backend-impl.h @ 0.3.36."""

    _fields_ = (
        ("get_name", ctypes.c_void_p),
        ("get_description", ctypes.c_void_p),
        ("get_memory", GetMemory),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """The opened engine: the package's own bindings and the ggml functions they leave out.

    Pointers are plain integers. `llama` is the module `llama_cpp.llama_cpp`, whose C functions
    carry their types; the rest lives in the very libraries that libllama itself is linked to
    (the wheel ships copies under several names, and opening another one gives a second registry).
    """

    llama: Any
    folder: Path
    device_count: Callable[[], int]
    device_at: Callable[[int], int]
    device_by_type: Callable[[int], int | None]
    device_name: Callable[[int], bytes]
    device_description: Callable[[int], bytes]
    device_properties: Callable[[int, Any], None]
    device_registration: Callable[[int], int]
    device_buffer_type: Callable[[int], int]
    registration_name: Callable[[int], bytes]
    buffer_type_name: Callable[[int], bytes]
    buffer_is_host: Callable[[int], bool]
    tensor_bytes: Callable[[int], int]
    read_tensor: Callable[[int, Any, int, int], None]
    tensor_overhead: Callable[[], int]
    operation_name: Callable[[int], bytes]
    buffers: BufferFunctions
    register: Callable[[int], None]
    add_rpc_server: Callable[[bytes], int | None] | None
    start_rpc_server: Callable[[bytes, bytes | None, int, int, Any], None] | None


@functools.cache
def open_engine() -> Abi:
    """Import the engine, check what is cheap to check, and return its functions.

    Raises EngineMissing or EngineMismatch. The first call takes some 0.3 s.
    """
    require_version()
    # An abort otherwise starts a debugger whose stack buries the engine's own words
    # — ggml_print_backtrace, ggml/src/ggml.c @ 0.3.36 — checked by tests/engine/test_abi.py.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        llama = importlib.import_module("llama_cpp.llama_cpp")
        package = importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(
            f"The engine ({PACKAGE} {VERSION}) is installed but its libraries cannot be opened: "
            f"{error}.",
            hint=f"Run `make run`, or build it again: {INSTALL_COMMAND} --force-reinstall",
        ) from error
    folder = Path(package.__file__ or "").parent / "lib"
    abi = _bind(llama, folder)
    problems = mismatches(abi)
    if problems:
        raise EngineMismatch(
            f"The engine does not match what moerun knows of {PACKAGE} {VERSION}: {problems[0]}.",
            hint=f"Run `make run`, or build it again: {INSTALL_COMMAND} --force-reinstall",
        )
    # Backends are initialised once in a process, before anything else is asked of them.
    llama.llama_backend_init()
    return abi


def installed_version() -> str | None:
    """Return the version of the installed engine without importing it; None when absent."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def require_version() -> None:
    """Raise EngineMissing or EngineMismatch unless the very version is installed."""
    found = installed_version()
    if found is None:
        raise EngineMissing(
            f"The engine is not installed: moerun needs {PACKAGE} {VERSION}.",
            hint=f"Run `make run`, or: {INSTALL_COMMAND}",
        )
    # A local part (`0.3.36+cu124`) is a build of the same source.
    if found.partition("+")[0] != VERSION:
        raise EngineMismatch(
            f"{PACKAGE} {found} is installed; moerun uses the C structs of {VERSION} and needs "
            "exactly that version.",
            hint=f"Run `make run`, or: {INSTALL_COMMAND} --force-reinstall",
        )


def mismatches(abi: Abi) -> tuple[str, ...]:
    """Return one sentence for each belief that the opened engine contradicts."""
    found: list[str] = []
    for label, parameters, size_bytes, defaults in (
        (
            "llama_model_params",
            abi.llama.llama_model_default_params(),
            MODEL_PARAMETERS_BYTES,
            MODEL_PARAMETER_DEFAULTS,
        ),
        (
            "llama_context_params",
            abi.llama.llama_context_default_params(),
            CONTEXT_PARAMETERS_BYTES,
            CONTEXT_PARAMETER_DEFAULTS,
        ),
    ):
        size = ctypes.sizeof(parameters)
        if size != size_bytes:
            found.append(f"{label} takes {size} bytes, not {size_bytes}")
        for field, expected in defaults.items():
            value = getattr(parameters, field, None)
            if value != expected:
                found.append(f"the default of {label}.{field} is {value!r}, not {expected!r}")
    found += _registry_mismatches(abi)
    found += _graph_mismatches(abi)
    return tuple(found)


def _graph_mismatches(abi: Abi) -> list[str]:
    found = []
    overhead = abi.tensor_overhead()
    if overhead != TENSOR_OVERHEAD_BYTES:
        found.append(f"a tensor takes {overhead} bytes, not {TENSOR_OVERHEAD_BYTES}")
    for operation in Operation:
        name = abi.operation_name(int(operation)).decode()
        if name != operation.name:
            found.append(f"operation {int(operation)} is {name}, not {operation.name}")
    return found


def _registry_mismatches(abi: Abi) -> list[str]:
    count = abi.device_count()
    if not 1 <= count <= 256:
        return [f"the engine lists {count} devices"]
    versions = {
        BackendRegistration.from_address(abi.device_registration(abi.device_at(index))).api_version
        for index in range(count)
    }
    return [
        f"a backend has API version {version}, not {BACKEND_API_VERSION}"
        for version in sorted(versions - {BACKEND_API_VERSION})
    ]


def encode_path(path: str) -> bytes:
    """Return a path as llama.cpp wants it: the file system's bytes, UTF-8 on Windows.

    Belief: ggml_fopen turns UTF-8 into wide characters — ggml/src/ggml.c @ 0.3.36 — checked by
    tests/engine/test_load.py (on the system at hand).
    """
    return str(path).encode("utf-8", "surrogateescape")


def _bind(llama: Any, folder: Path) -> Abi:
    base = _open(folder, "ggml-base")
    registry = _open(folder, "ggml")
    rpc = _open_optional(folder, "ggml-rpc")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    text = ctypes.c_char_p
    return Abi(
        llama=llama,
        folder=folder,
        device_count=_function(registry, "ggml_backend_dev_count", size),
        device_at=_function(registry, "ggml_backend_dev_get", pointer, size),
        device_by_type=_function(registry, "ggml_backend_dev_by_type", pointer, ctypes.c_int),
        register=_function(registry, "ggml_backend_register", None, pointer),
        device_properties=_function(
            base, "ggml_backend_dev_get_props", None, pointer, ctypes.POINTER(DeviceProperties)
        ),
        device_name=_function(base, "ggml_backend_dev_name", text, pointer),
        device_description=_function(base, "ggml_backend_dev_description", text, pointer),
        device_registration=_function(base, "ggml_backend_dev_backend_reg", pointer, pointer),
        device_buffer_type=_function(base, "ggml_backend_dev_buffer_type", pointer, pointer),
        registration_name=_function(base, "ggml_backend_reg_name", text, pointer),
        buffer_type_name=_function(base, "ggml_backend_buft_name", text, pointer),
        buffer_is_host=_function(base, "ggml_backend_buffer_is_host", ctypes.c_bool, pointer),
        tensor_bytes=_function(base, "ggml_nbytes", size, pointer),
        read_tensor=_function(base, "ggml_backend_tensor_get", None, pointer, pointer, size, size),
        tensor_overhead=_function(base, "ggml_tensor_overhead", size),
        operation_name=_function(base, "ggml_op_name", text, ctypes.c_int),
        buffers=bind_buffers(functools.partial(_function, base)),
        add_rpc_server=None
        if rpc is None
        else _function(rpc, "ggml_backend_rpc_add_server", pointer, text),
        start_rpc_server=None
        if rpc is None
        else _function(
            rpc,
            "ggml_backend_rpc_start_server",
            *(None, text, text, size, size, ctypes.POINTER(pointer)),
        ),
    )


def library_path(folder: Path, name: str) -> Path | None:
    """Return the file under which libllama itself opens a library; None when there is none."""
    match sys.platform:
        case "darwin":
            names = [f"lib{name}.0.dylib", f"lib{name}.dylib"]
        case "win32":
            names = [f"{name}.dll", f"lib{name}.dll"]
        case _:
            names = [f"lib{name}.so.0", f"lib{name}.so"]
    return next((folder / file for file in names if (folder / file).is_file()), None)


def _open(folder: Path, name: str) -> ctypes.CDLL:
    library = _open_optional(folder, name)
    if library is None:
        raise EngineMissing(
            f"The engine's library '{name}' is missing beside {PACKAGE}.",
            hint=f"Run `make run`, or build it again: {INSTALL_COMMAND} --force-reinstall",
        )
    return library


def _open_optional(folder: Path, name: str) -> ctypes.CDLL | None:
    path = library_path(folder, name)
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineMissing(
            f"The engine's library {path.name} cannot be opened: {error}.",
            hint=f"Run `make run`, or build it again: {INSTALL_COMMAND} --force-reinstall",
        ) from error


def _function(library: ctypes.CDLL, symbol: str, result: Any, *arguments: Any) -> Any:
    try:
        function = library[symbol]  # a fresh object: types set elsewhere do not reach it
    except AttributeError as error:
        raise EngineMismatch(
            f"The engine has no function {symbol}; moerun needs {PACKAGE} {VERSION}.",
            hint=f"Run `make run`, or build it again: {INSTALL_COMMAND} --force-reinstall",
        ) from error
    function.restype = result
    function.argtypes = arguments
    return function
