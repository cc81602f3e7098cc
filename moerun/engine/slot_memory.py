"""Memory of devices for slots of experts: laid out, taken, filled, and given back.

Beliefs: what a tensor takes in a device's memory is told by its buffer type, padding of quantized
rows included, and `init_tensor` clears that padding once - ggml/src/ggml-cuda/ggml-cuda.cu,
`ggml_backend_cuda_buffer_type_get_alloc_size`; a queue of our own orders what is written through
it, and a device without queues writes at once - ggml/src/ggml-backend.cpp,
`ggml_backend_tensor_set_async` @ 0.3.36 - checked by tests/engine/test_device_slots.py.

Knows: buffers, queues, staging.
Does not know: experts, layers, or graphs.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from moerun.engine import abi
from moerun.engine.abi_buffers import STATUS_SUCCESS, USAGE_WEIGHTS
from moerun.errors import EngineOutOfMemory, EngineRefused
from moerun.machine.description import DeviceId
from moerun.units import format_gib

_AXES: Final = 4


class TensorState(NamedTuple):
    """The fields of a tensor that say where and how large it is."""

    buffer: int | None
    data: int | None
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    extra: int | None


def state_of(pointer: int) -> TensorState:
    """Return where a tensor is now."""
    tensor = abi.Tensor.from_address(pointer)
    return TensorState(tensor.buffer, tensor.data, tuple(tensor.ne), tuple(tensor.nb), tensor.extra)


def put_state(pointer: int, state: TensorState) -> None:
    """Let a tensor be elsewhere from now on; graphs that were built before must not run again."""
    tensor = abi.Tensor.from_address(pointer)
    tensor.buffer, tensor.data, tensor.extra = state.buffer, state.data, state.extra
    tensor.ne[:], tensor.nb[:] = state.ne, state.nb


def shortened(state: TensorState, axis: int, length: int) -> TensorState:
    """Return the state of a tensor of fewer entries along an axis, without a place."""
    ne, nb = list(state.ne), list(state.nb)
    ne[axis] = length
    for above in range(axis + 1, _AXES):
        nb[above] = nb[above - 1] * ne[above - 1]
    return TensorState(None, None, tuple(ne), tuple(nb), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where slots are: the id, ggml's pointer, and the type of its memory."""

    id: DeviceId
    pointer: int
    buffer_type: int


class SlotBuffers:
    """Buffers of one device that hold shortened twins of tensors; `close` frees them."""

    def __init__(self, opened: abi.Abi, device: Device) -> None:
        self._opened = opened
        self._device = device
        self._buffers: list[int] = []

    @property
    def size_bytes(self) -> int:
        """What the buffers take, as the backend tells."""
        return sum(self._opened.buffers.size_bytes(buffer) for buffer in self._buffers)

    def place(self, twins: Sequence[tuple[int, TensorState]]) -> tuple[TensorState, ...]:
        """Give each tensor's shortened state a place; raises EngineOutOfMemory.

        A tensor has its own state again when this returns.
        """
        functions, kind = self._opened.buffers, self._device.buffer_type
        alignment, largest = functions.alignment(kind), functions.largest_bytes(kind)
        runs: list[tuple[int, list[tuple[int, TensorState, int]]]] = []
        for pointer, state in twins:
            size_bytes = -(-self._bytes_of(pointer, state) // alignment) * alignment
            if not runs or runs[-1][0] + size_bytes > largest:
                runs.append((0, []))
            used_bytes, run = runs[-1]
            run.append((pointer, state, used_bytes))
            runs[-1] = (used_bytes + size_bytes, run)
        placed: list[TensorState] = []
        for size_bytes, run in runs:
            buffer, base = self._allocate(size_bytes)
            for pointer, state, offset_bytes in run:
                at = state._replace(buffer=buffer, data=base + offset_bytes)
                self._initialise(pointer, at)
                placed.append(at)
        return tuple(placed)

    def close(self) -> None:
        """Free the memory; nothing may point to it any more."""
        while self._buffers:
            self._opened.buffers.free(self._buffers.pop())

    def _bytes_of(self, pointer: int, state: TensorState) -> int:
        own = state_of(pointer)
        put_state(pointer, state)
        try:
            return self._opened.buffers.tensor_bytes(self._device.buffer_type, pointer)
        finally:
            put_state(pointer, own)

    def _allocate(self, size_bytes: int) -> tuple[int, int]:
        functions = self._opened.buffers
        buffer = functions.allocate(self._device.buffer_type, size_bytes)
        base = functions.base(buffer) if buffer else None
        if not buffer or base is None:
            raise EngineOutOfMemory(
                f"The slots for experts need {format_gib(size_bytes)} on {self._device.id}, which "
                "the device did not give.",
                device=self._device.id,
                requested_bytes=size_bytes,
                hint="Plan with a larger margin or a smaller --vram-limit, or pass "
                "--streaming off.",
            )
        self._buffers.append(buffer)
        functions.set_usage(buffer, USAGE_WEIGHTS)
        return buffer, base

    def _initialise(self, pointer: int, state: TensorState) -> None:
        own = state_of(pointer)
        put_state(pointer, state)
        try:
            status = self._opened.buffers.initialise(state.buffer or 0, pointer)
        finally:
            put_state(pointer, own)
        if status != STATUS_SUCCESS:
            raise EngineRefused(f"{self._device.id} did not take the slots for experts.")


class Uploads:
    """A queue of writes to one device, from pinned memory where the device has such.

    `pinned_type` is the type of memory to stage in, None to have the device asked for its own.
    Tensors are written to where they are when `add` is called.
    """

    def __init__(
        self,
        opened: abi.Abi,
        device: Device,
        *,
        staging_bytes: int,
        pinned_type: int | None = None,
    ) -> None:
        self._functions = opened.buffers
        properties = abi.DeviceProperties()
        opened.device_properties(device.pointer, ctypes.byref(properties))
        self._queue: int | None = None
        self._staging: int | None = None
        self._base = self._used_bytes = 0
        self._staging_bytes = staging_bytes
        if not properties.has_async:
            return
        self._queue = self._functions.open_queue(device.pointer, None)
        kind = pinned_type or self._functions.pinned_type(device.pointer)
        if self._queue and kind:
            self._staging = self._functions.allocate(kind, staging_bytes)
            self._base = (self._functions.base(self._staging) or 0) if self._staging else 0

    @property
    def is_queued(self) -> bool:
        """Whether writes go on while the next one is prepared."""
        return bool(self._queue)

    @property
    def is_staged(self) -> bool:
        """Whether writes go out of pinned memory."""
        return bool(self._base)

    def add(self, pointer: int, source: int, offset_bytes: int, size_bytes: int) -> None:
        """Write bytes at `source` into a tensor; they must stay until `wait`."""
        if not self._queue:
            self._functions.write(pointer, source, offset_bytes, size_bytes)
            return
        if self._base and size_bytes <= self._staging_bytes:
            if self._used_bytes + size_bytes > self._staging_bytes:
                self.wait()
            staged = self._base + self._used_bytes
            ctypes.memmove(staged, source, size_bytes)
            self._used_bytes += size_bytes
            source = staged
        self._functions.write_queued(self._queue, pointer, source, offset_bytes, size_bytes)

    def wait(self) -> None:
        """Return when all that was added is in the device's memory."""
        if self._queue:
            self._functions.wait(self._queue)
        self._used_bytes = 0

    def close(self) -> None:
        """Give the queue and the staging memory back."""
        if self._staging:
            self._functions.free(self._staging)
        if self._queue:
            self._functions.close_queue(self._queue)
        self._staging = self._queue = None
        self._base = 0
