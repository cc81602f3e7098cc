"""The functions of ggml that make, fill and free memory of a device, beside those of `abi`.

Beliefs: names and arguments are those of ggml/include/ggml-backend.h @ 0.3.36 - checked by
tests/engine/test_device_slots.py, which fills and reads memory through them.

Knows: symbols and their types.
Does not know: what is put into the memory, or why.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

# GGML_BACKEND_BUFFER_USAGE_WEIGHTS: an operation runs where its weights lie - `enum
# ggml_backend_buffer_usage`, ggml/include/ggml-backend.h; ggml/src/ggml-backend.cpp:955 @ 0.3.36
USAGE_WEIGHTS: Final = 1
STATUS_SUCCESS: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferFunctions:
    """Pointers are plain integers, None or 0 where there is none.

    A queue is a backend instance of a device of our own: what is written by it goes in order, and
    `wait` returns when all of it is there. `tensor_bytes` tells what a tensor takes in memory of a
    type, which may be more than its own bytes; `initialise` has the padding cleared.
    """

    alignment: Callable[[int], int]
    largest_bytes: Callable[[int], int]
    tensor_bytes: Callable[[int, int], int]
    allocate: Callable[[int, int], int | None]
    base: Callable[[int], int | None]
    size_bytes: Callable[[int], int]
    free: Callable[[int], None]
    set_usage: Callable[[int, int], None]
    initialise: Callable[[int, int], int]
    write: Callable[[int, Any, int, int], None]
    pinned_type: Callable[[int], int | None]
    open_queue: Callable[[int, None], int | None]
    close_queue: Callable[[int], None]
    write_queued: Callable[[int, int, Any, int, int], None]
    wait: Callable[[int], None]


def bind_buffers(function: Callable[..., Any]) -> BufferFunctions:
    """Bind them; `function` takes a symbol, the type of its result and of its arguments."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    status = ctypes.c_int
    return BufferFunctions(
        alignment=function("ggml_backend_buft_get_alignment", size, pointer),
        largest_bytes=function("ggml_backend_buft_get_max_size", size, pointer),
        tensor_bytes=function("ggml_backend_buft_get_alloc_size", size, pointer, pointer),
        allocate=function("ggml_backend_buft_alloc_buffer", pointer, pointer, size),
        base=function("ggml_backend_buffer_get_base", pointer, pointer),
        size_bytes=function("ggml_backend_buffer_get_size", size, pointer),
        free=function("ggml_backend_buffer_free", None, pointer),
        set_usage=function("ggml_backend_buffer_set_usage", None, pointer, status),
        initialise=function("ggml_backend_buffer_init_tensor", status, pointer, pointer),
        write=function("ggml_backend_tensor_set", None, pointer, pointer, size, size),
        pinned_type=function("ggml_backend_dev_host_buffer_type", pointer, pointer),
        open_queue=function("ggml_backend_dev_init", pointer, pointer, pointer),
        close_queue=function("ggml_backend_free", None, pointer),
        write_queued=function(
            "ggml_backend_tensor_set_async", None, pointer, pointer, pointer, size, size
        ),
        wait=function("ggml_backend_synchronize", None, pointer),
    )
