"""Looking at the tensors of a graph that the engine is about to compute, or has computed.

Knows: names, operations, and rows of numbers wherever they lie.
Does not know: which tensors are of interest, or why.
"""

import ctypes
import re
from collections.abc import Callable
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine import abi
from moerun.errors import EngineRefused

NAME_OFFSET: Final = abi.Tensor.name.offset
OPERATION_OFFSET: Final = abi.Tensor.op.offset
SOURCES_OFFSET: Final = abi.Tensor.src.offset
_POINTER_BYTES: Final = 8
# Beliefs: the scheduler names its copy of a tensor on another backend after both - `"%s#%s#%d"`,
# ggml/src/ggml-backend.cpp:1381; a view is named after what it shows - `ggml_reshape_3d` and its
# like, ggml/src/ggml.c:3708 @ 0.3.36 - checked by tests/engine/test_router_hook.py.
_COPY: Final = re.compile(rb"[^#]*#(.*)#\d+", re.DOTALL)
_VIEW: Final = re.compile(rb"( \((view|reshaped)\))+$")
_NUMBERS: Final = {abi.TYPE_I32: numpy.dtype(numpy.int32), abi.TYPE_F32: numpy.dtype(numpy.float32)}

ReadRows = Callable[[], "numpy.typing.NDArray[Any]"]
"""Return the rows of a tensor as they are now; the array lives until the next call."""


def name_of(pointer: int) -> bytes:
    """Return the name of a tensor."""
    return ctypes.string_at(pointer + NAME_OFFSET)


def operation_of(pointer: int) -> int:
    """Return the number of the operation that makes a tensor."""
    return ctypes.c_int.from_address(pointer + OPERATION_OFFSET).value


def source_of(pointer: int, index: int) -> int:
    """Return a source of a tensor's operation, 0 when there is none."""
    address = pointer + SOURCES_OFFSET + index * _POINTER_BYTES
    return ctypes.c_void_p.from_address(address).value or 0


def is_copy(name: bytes) -> bool:
    """Whether the scheduler made the tensor of that name, to have it on another backend."""
    return _COPY.fullmatch(name) is not None


def copied_name(name: bytes) -> bytes:
    """Return the name of what was copied, or the name itself."""
    match = _COPY.fullmatch(name)
    return match[1] if match else name


def shown_name(name: bytes) -> bytes:
    """Return the name of what is shown by views, and copied."""
    return _VIEW.sub(b"", copied_name(name))


def shown_tensor(pointer: int) -> int:
    """Return the tensor whose memory a view shows, or the tensor itself."""
    return abi.Tensor.from_address(pointer).view_src or pointer


def rows_reader(opened: abi.Abi, pointer: int, *, column_axis: int = 0) -> ReadRows:
    """Return a function that reads a tensor of int32 or float32 as rows, with any stride."""
    return TensorRows(opened, pointer, column_axis=column_axis).read


class TensorRows:
    """The rows of a tensor of int32 or float32, with any stride, wherever they lie.

    Belief: the memory of a graph's tensors stays where it is until the graph is built again -
    `ggml_backend_sched_alloc_graph` is called then alone, src/llama-context.cpp:1440 @ 0.3.36 -
    so what lies in host memory is not even copied. Checked by tests/engine/test_router_hook.py.
    """

    def __init__(self, opened: abi.Abi, pointer: int, *, column_axis: int = 0) -> None:
        tensor = abi.Tensor.from_address(pointer)
        dtype = _NUMBERS.get(tensor.type)
        axes = (column_axis, column_axis + 1)
        others = [tensor.ne[axis] for axis in range(len(tensor.ne)) if axis not in axes]
        if dtype is None or any(length != 1 for length in others):
            name = name_of(pointer).decode("utf-8", "replace")
            raise EngineRefused(
                f"The tensor {name} of the graph has type {tensor.type} and shape "
                f"{tuple(tensor.ne)}, which are no rows of numbers.",
                hint="--streaming off runs the model without looking at its graph.",
            )
        shape = (tensor.ne[axes[1]], tensor.ne[axes[0]])
        strides = (tensor.nb[axes[1]], tensor.nb[axes[0]])
        size_bytes = opened.tensor_bytes(pointer)
        view = tensor.view_src
        buffer = (abi.Tensor.from_address(view) if view else tensor).buffer
        if not buffer:
            raise EngineRefused("The engine computes a tensor that it gave no memory.")
        self._opened, self._pointer, self._size_bytes = opened, pointer, size_bytes
        self._is_host = opened.buffer_is_host(buffer)
        memory: Any = (
            (ctypes.c_char * size_bytes).from_address(tensor.data)
            if self._is_host
            else ctypes.create_string_buffer(max(size_bytes, 1))
        )
        self._memory = memory
        self._own: numpy.typing.NDArray[Any] = numpy.ndarray(
            shape, dtype, buffer=memory, strides=strides
        )
        self._rows = self._own.view()
        self._rows.flags.writeable = False

    def read(self) -> "numpy.typing.NDArray[Any]":
        """Return the rows as they are now; the array lives until the next call."""
        if not self._is_host:
            self._opened.read_tensor(self._pointer, self._memory, 0, self._size_bytes)
        return self._rows

    def write(self, rows: "numpy.typing.NDArray[Any]") -> None:
        """Put other rows in their place, after a `read`: what lies between them stays."""
        self._own[...] = rows
        if not self._is_host:
            self._opened.buffers.write(self._pointer, self._memory, 0, self._size_bytes)
