"""Slots for experts in the memory of devices, which graphs read in place of the whole tensors.

A layer's tensors of experts lie on the host, as they were loaded. While slots are on, their structs
say instead that they are K experts long and lie in a device: graphs that are built then multiply
there, by a choice that is rewritten to numbers of slots (`router_hook`). Batches that may need more
experts than there are slots run with slots off, by the same structs.

Beliefs: a graph is built from the structs, and where a node runs follows from the buffers of its
weights - src/llama-context.cpp:1430, ggml/src/ggml-backend.cpp:921; a graph is used again only for
as many tokens as before - src/llama-graph.h:818; disabling a control vector that there is not makes
the next call build its graph anew and changes nothing else - src/llama-context.cpp:1381,
src/llama-adapter.cpp @ 0.3.36 - checked by tests/engine/test_device_slots.py.

Knows: which state the tensors are in, and how an expert comes into a slot.
Does not know: which expert is in which slot, or why.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moerun.engine import abi
from moerun.engine.arguments import BufferReport
from moerun.engine.load_log import SLOTS
from moerun.engine.slot_memory import (
    Device,
    SlotBuffers,
    TensorState,
    Uploads,
    put_state,
    shortened,
    state_of,
)
from moerun.errors import EngineRefused
from moerun.machine.description import DeviceId

# So many experts of one layer may be under way from pinned memory before the first is waited for.
_STAGED_EXPERTS: Final = 4
_EXPERTS_SUFFIX: Final = "_exps.weight"
MATRIX_AXIS: Final = 2  # along which the experts of a matrix are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTensor:
    """A tensor of all experts of a layer; they are counted along `axis`."""

    pointer: int
    name: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensors:
    """What has to lie in the slots of a layer; `refusal` is why that cannot be, in words."""

    layer: int
    tensors: tuple[SlotTensor, ...] = ()
    experts_used: int = 0
    expert_count: int = 0
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRoom:
    """The slots of one layer, on one device, for its tensors."""

    tensors: LayerTensors
    device: Device
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Twin:
    """A tensor in both states; an expert takes `expert_bytes`, the first one lies at `source`."""

    tensor: SlotTensor
    whole: TensorState
    slotted: TensorState
    source: int
    expert_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    twins: tuple[_Twin, ...]
    slots: int
    uploads: Uploads


class DeviceSlots:
    """The slots of one loaded model. `close` gives everything back as it was found."""

    def __init__(
        self,
        opened: abi.Abi,
        rooms: Iterable[LayerRoom],
        *,
        pinned_type: int | None = None,
    ) -> None:
        """Take the memory; raises EngineOutOfMemory. The slots are off and hold nothing."""
        self._opened = opened
        self._is_on = False
        self._kept: list[Any] = []
        self._buffers: list[SlotBuffers] = []
        self._uploads: list[Uploads] = []
        self._layers: dict[int, _Layer] = {}
        by_device: dict[int, list[LayerRoom]] = {}
        for room in rooms:
            by_device.setdefault(room.device.pointer, []).append(room)
        try:
            for same in by_device.values():
                self._open_device(same, pinned_type)
        except BaseException:
            self.close()
            raise
        every = [room for same in by_device.values() for room in same]
        self._most_tokens = min(
            (room.slots // max(1, room.tensors.experts_used) for room in every), default=0
        )
        self._devices = [same[0].device for same in by_device.values()]
        self._sizes = {
            device.id: buffers.size_bytes
            for device, buffers in zip(self._devices, self._buffers, strict=True)
        }

    @property
    def counts(self) -> Mapping[int, int]:
        """How many slots each layer has that has any."""
        return {number: layer.slots for number, layer in self._layers.items()}

    def counts_of(self, layer: int) -> int:
        """How many slots a layer has."""
        return self._layers[layer].slots

    @property
    def device_bytes(self) -> Mapping[DeviceId, int]:
        """What the slots take of each device."""
        return dict(self._sizes)

    def reports(self) -> tuple[BufferReport, ...]:
        """Return what the slots take, in the form of the engine's own buffers."""
        return tuple(
            BufferReport(
                component="slots",
                buffer=self._opened.buffer_type_name(device.buffer_type).decode(),
                device=device.id,
                kind=SLOTS,
                size_bytes=self._sizes[device.id],
            )
            for device in self._devices
        )

    @property
    def is_on(self) -> bool:
        """Whether graphs that are built now read the slots."""
        return self._is_on

    @property
    def is_queued(self) -> bool:
        """Whether all devices take uploads while the next one is prepared."""
        return all(uploads.is_queued for uploads in self._uploads)

    @property
    def is_staged(self) -> bool:
        """Whether uploads to all devices go out of pinned memory."""
        return all(uploads.is_staged for uploads in self._uploads)

    @property
    def most_tokens(self) -> int:
        """How many tokens a batch may have whose experts find slots, whatever they choose."""
        return self._most_tokens

    def __contains__(self, layer: object) -> bool:
        """Whether a layer has slots."""
        return layer in self._layers

    def turn(self, on: bool) -> None:
        """Have graphs that are built from now on read the slots, or the whole tensors."""
        if on == self._is_on:
            return
        self._is_on = on
        for layer in self._layers.values():
            for twin in layer.twins:
                put_state(twin.tensor.pointer, twin.slotted if on else twin.whole)

    def upload(self, layer: int, moves: Sequence[tuple[int, int]]) -> int:
        """Copy experts into slots, given as pairs, and return how many bytes; slots must be on.

        What the host holds of the experts must be readable.
        """
        if not self._is_on:
            raise EngineRefused("Experts can be uploaded only while their slots are in use.")
        place = self._layers[layer]
        moved_bytes = 0
        try:
            for expert, slot in moves:
                for twin in place.twins:
                    size_bytes = twin.expert_bytes
                    place.uploads.add(
                        twin.tensor.pointer,
                        twin.source + expert * size_bytes,
                        slot * size_bytes,
                        size_bytes,
                    )
                    moved_bytes += size_bytes
        finally:  # the sources may change once this returns
            place.uploads.wait()
        return moved_bytes

    def close(self) -> None:
        """Point every tensor to where it was loaded, and free the memory of the slots."""
        self.turn(False)
        self._layers.clear()
        for uploads in self._uploads:
            uploads.close()
        for buffers in self._buffers:
            buffers.close()
        self._uploads.clear()
        self._buffers.clear()
        self._kept.clear()

    def _open_device(self, rooms: Sequence[LayerRoom], pinned_type: int | None) -> None:
        buffers = SlotBuffers(self._opened, rooms[0].device)
        self._buffers.append(buffers)
        wanted = [
            (room, tensor, shortened(state_of(tensor.pointer), tensor.axis, room.slots))
            for room in rooms
            for tensor in room.tensors.tensors
        ]
        placed = buffers.place([(tensor.pointer, state) for _, tensor, state in wanted])
        twins: dict[int, list[_Twin]] = {}
        for (room, tensor, _), state in zip(wanted, placed, strict=True):
            twins.setdefault(room.tensors.layer, []).append(self._twin(tensor, state))
        largest_bytes = max(sum(twin.expert_bytes for twin in some) for some in twins.values())
        uploads = Uploads(
            self._opened,
            rooms[0].device,
            staging_bytes=_STAGED_EXPERTS * largest_bytes,
            pinned_type=pinned_type,
        )
        self._uploads.append(uploads)
        for room in rooms:
            own = tuple(twins[room.tensors.layer])
            self._layers[room.tensors.layer] = _Layer(twins=own, slots=room.slots, uploads=uploads)

    def _twin(self, tensor: SlotTensor, slotted: TensorState) -> _Twin:
        whole = state_of(tensor.pointer)
        return _Twin(
            tensor=tensor,
            whole=whole,
            slotted=slotted,
            source=self._source_of(tensor, whole),
            expert_bytes=whole.nb[tensor.axis],
        )

    def _source_of(self, tensor: SlotTensor, whole: TensorState) -> int:
        """Return the address of the first expert on the host: biases and adapters may lie on a
        device, and are small.
        """
        if whole.buffer and whole.data and self._opened.buffer_is_host(whole.buffer):
            return whole.data
        if tensor.name.endswith(_EXPERTS_SUFFIX):
            raise EngineRefused(
                f"{tensor.name} lies on a device already, so its experts need no slots there."
            )
        size_bytes = self._opened.tensor_bytes(tensor.pointer)
        memory = ctypes.create_string_buffer(size_bytes)
        self._opened.read_tensor(tensor.pointer, memory, 0, size_bytes)
        self._kept.append(memory)
        return ctypes.addressof(memory)
