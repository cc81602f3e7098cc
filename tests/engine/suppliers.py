"""Suppliers of experts for tests: one that notes what it is told, one that trusts nothing else.

Knows: the protocol, and where the experts of a model lie.
Does not know: the engine, or what a test expects.
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.engine.interface import MappedFile, Routing
from moerun.experts.layout import ExpertLayout, StreamedTensor, expert_layout
from moerun.machine.description import HOST, DeviceId
from moerun.model.gguf_header import read_model

POISON = 0xFF  # as a scale of any encoding it is no number
_FIXED_PRIVATE_ANONYMOUS = 0x10 | 0x02 | 0x20


def host_layout(
    path: Path, *, on_device: Callable[[str], bool] = lambda name: False
) -> ExpertLayout:
    """Return what streams of a model that lies on the host, but for the tensors named."""
    model = read_model(path)
    away = DeviceId("gpu:elsewhere")
    places = {t.name: away if on_device(t.name) else HOST for t in model.loaded_tensors}
    return expert_layout(model, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One call of `supply`, copied; `rows` and the arrays live on."""

    layer: int
    experts: tuple[int, ...]
    rows: NDArray[np.int32]
    hidden: NDArray[np.float32] | None
    weights: NDArray[np.float32] | None


class Recording:
    """Notes every call; pages are read when they are touched. `evaluations` end with `check`."""

    def __init__(
        self, layout: ExpertLayout, *, wants_hidden: bool = False, wants_weights: bool = False
    ) -> None:
        self.layout = layout
        self.streamed = {tensor.name: tensor.layer for tensor in layout.tensors}
        self.wants_hidden = wants_hidden
        self.wants_weights = wants_weights
        self.mapped: tuple[MappedFile, ...] = ()
        self.attached = 0
        self.evaluations: list[list[Heard]] = []
        self.whole_layers: list[int] = []
        self.closed = 0
        self._now: list[Heard] = []

    @property
    def heard(self) -> list[Heard]:
        return [heard for evaluation in self.evaluations for heard in evaluation]

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        self.attached += 1
        assert self.attached == 1, "attached twice"
        self.mapped = mapped

    def supply(self, routing: Routing) -> None:
        self._now.append(
            Heard(
                layer=routing.layer,
                experts=routing.experts,
                rows=routing.rows.copy(),
                hidden=None if routing.hidden is None else routing.hidden.copy(),
                weights=None if routing.weights is None else routing.weights.copy(),
            )
        )

    def supply_layer(self, layer: int) -> None:
        self.whole_layers.append(layer)

    def check(self) -> None:
        self.evaluations.append(self._now)
        self._now = []

    def close(self) -> None:
        self.closed += 1

    def forget(self) -> None:
        """Drop what was heard of an evaluation that was given up."""
        self._now = []


class Poisoned(Recording):
    """Lets the engine find an expert only in the evaluation in which it was supplied.

    The mapping is replaced by a copy of the file in which all experts are poison; so an expert
    that was read and not announced shows in the logits.
    """

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        super().attach(mapped)
        for part in mapped:
            _replace_by_copy(part)
        self._poison()

    def supply(self, routing: Routing) -> None:
        super().supply(routing)
        self._fill(routing.layer, routing.experts)

    def supply_layer(self, layer: int) -> None:
        super().supply_layer(layer)
        self._fill(layer, range(self.layout.expert_counts[layer]))

    def check(self) -> None:
        super().check()
        self._poison()

    def forget(self) -> None:
        super().forget()
        self._poison()

    def _poison(self) -> None:
        for tensor in self.layout.tensors:
            ctypes.memset(self._address(tensor, 0), POISON, tensor.size_bytes)

    def _fill(self, layer: int, experts) -> None:
        for tensor in self.layout.by_layer[layer]:
            path = self.layout.files[tensor.file_index].path
            with open(path, "rb") as file:
                for expert in experts:
                    file.seek(tensor.offset_bytes + expert * tensor.expert_bytes)
                    data = file.read(tensor.expert_bytes)
                    ctypes.memmove(self._address(tensor, expert), data, len(data))

    def _address(self, tensor: StreamedTensor, expert: int) -> int:
        """Return where the engine reads it; a file may be mapped in pieces."""
        path = os.path.realpath(self.layout.files[tensor.file_index].path)
        at = tensor.offset_bytes + expert * tensor.expert_bytes
        (part,) = (
            part
            for part in self.mapped
            if os.path.realpath(part.path) == path
            and 0 <= at - part.offset_bytes <= part.size_bytes - tensor.expert_bytes
        )
        return part.address + at - part.offset_bytes


def _replace_by_copy(part: MappedFile) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    readable = mmap.PROT_READ | mmap.PROT_WRITE
    at = libc.mmap(part.address, part.size_bytes, readable, _FIXED_PRIVATE_ANONYMOUS, -1, 0)
    assert at == part.address
    with open(part.path, "rb") as file:
        file.seek(part.offset_bytes)
        data = file.read(part.size_bytes)
    ctypes.memmove(part.address, data, len(data))
