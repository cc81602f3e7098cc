"""Where the experts of a model lie in its files, and what else the host always needs of them.

Belief: the matrices of all experts of a layer are one tensor each, expert after expert, and all of
them are read by the same choice of the router - `build_moe_ffn`, src/llama-graph.cpp
@ llama-cpp-python 0.3.36; not so a second set in the same layer (`ffn_*_chexps`), whose numbers
the graph divides first - src/models/grovemoe.cpp. Checked by tests/test_expert_layout.py on the
headers of real models.

Knows: slices of files, by layer and expert.
Does not know: addresses, memory, or which experts are held.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from moerun.errors import UnsupportedModel
from moerun.machine.description import HOST, SSD, DeviceId
from moerun.model.description import Model, ModelFile, Tensor, TensorUse


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedTensor:
    """One matrix of all experts of a layer: `expert_count` slices of `expert_bytes` in a row.

    `offset_bytes` counts from the start of the file with that index.
    """

    name: str
    layer: int
    file_index: int
    offset_bytes: int
    expert_bytes: int
    expert_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all experts."""
        return self.expert_bytes * self.expert_count


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Bytes of one file that lie together."""

    file_index: int
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayout:
    """All that streaming has to know of a model.

    `tensors` are the matrices that are streamed, by layer, and in a layer in the order in which
    they are computed (gate, up, the two in one, down). `resident` are the ranges of the files
    that the host needs for every token: dense weights, small tensors of the experts (biases and
    scales), experts that do not stream; adjacent ones are merged. The properties add up anew each
    time: keep what is needed often.
    """

    files: tuple[ModelFile, ...]
    tensors: tuple[StreamedTensor, ...]
    resident: tuple[FileRange, ...]
    experts_used: int

    @property
    def by_layer(self) -> dict[int, tuple[StreamedTensor, ...]]:
        """The streamed matrices of each layer that has any."""
        found: dict[int, tuple[StreamedTensor, ...]] = {}
        for tensor in self.tensors:
            found[tensor.layer] = (*found.get(tensor.layer, ()), tensor)
        return found

    @property
    def slot_bytes(self) -> dict[int, int]:
        """Bytes of one expert of each layer, all its matrices together."""
        return {
            layer: sum(tensor.expert_bytes for tensor in tensors)
            for layer, tensors in self.by_layer.items()
        }

    @property
    def expert_counts(self) -> dict[int, int]:
        """How many experts each layer has."""
        return {layer: tensors[0].expert_count for layer, tensors in self.by_layer.items()}

    @property
    def expert_bytes(self) -> int:
        """Bytes of all experts that stream."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def resident_bytes(self) -> int:
        """Bytes that the host needs for every token."""
        return sum(part.size_bytes for part in self.resident)

    @property
    def cycle_bytes(self) -> int:
        """Bytes of the experts that one token uses, over all layers."""
        return sum(
            min(self.experts_used, self.expert_counts[layer]) * size_bytes
            for layer, size_bytes in self.slot_bytes.items()
        )


def expert_layout(
    model: Model, devices: Mapping[str, DeviceId], *, held: Collection[str] = ()
) -> ExpertLayout:
    """Return what streams of a model, and what the host always needs.

    `devices` tell where every loaded tensor lives (`Plan.devices_by_tensor`): what lies on a GPU
    is in neither. All matrices of experts on the host or on SSD stream, since RAM is a cache over
    both, but those named by `held`. Raises UnsupportedModel when a matrix is not whole experts.
    """
    on_host = [tensor for tensor in model.loaded_tensors if _is_on_host(tensor, devices, model)]
    here = {tensor.name for tensor in on_host} - set(held)
    streamed = tuple(
        _streamed(tensor, layer.index)
        for layer in model.layers
        for tensor in layer.routed_matrices(model.expert_count)
        if tensor.name in here
    )
    names = {tensor.name for tensor in streamed}
    return ExpertLayout(
        files=model.files,
        tensors=streamed,
        resident=_merged(model, {tensor.name for tensor in on_host} - names),
        experts_used=model.experts_used,
    )


def _is_on_host(tensor: Tensor, devices: Mapping[str, DeviceId], model: Model) -> bool:
    """Whether the host reads a tensor of the model's files; a repeated one where it computes."""
    if tensor.use is TensorUse.ADAPTER:
        return False  # its file is not mapped
    if devices[tensor.name] in (HOST, SSD):
        return True
    if tensor.use is not TensorUse.REPEATED:
        return False
    return any(devices[t.name] == HOST for layer in model.layers for t in layer.dense_tensors)


def _streamed(tensor: Tensor, layer: int) -> StreamedTensor:
    expert_count = tensor.shape[-1]
    if expert_count < 1 or tensor.size_bytes % expert_count:
        raise UnsupportedModel(
            f"{tensor.name} has {tensor.size_bytes:,} bytes for {expert_count} experts, which is "
            "no whole number for each, so its experts cannot be streamed; pass --streaming off, "
            "or download the model again"
        )
    return StreamedTensor(
        name=tensor.name,
        layer=layer,
        file_index=tensor.file_index,
        offset_bytes=tensor.offset_bytes,
        expert_bytes=tensor.size_bytes // expert_count,
        expert_count=expert_count,
    )


def _merged(model: Model, names: Collection[str]) -> tuple[FileRange, ...]:
    """Return the ranges of these tensors; neighbours are one range with the padding between."""
    ranges: list[FileRange] = []
    is_open = False  # whether the last range may grow: no other tensor lies behind it
    for tensor in _in_file_order(model.tensors):
        if tensor.name not in names:
            is_open = False
            continue
        last = ranges[-1] if ranges else None
        if is_open and last is not None and last.file_index == tensor.file_index:
            start = last.offset_bytes
            ranges.pop()
        else:
            start = tensor.offset_bytes
        ranges.append(
            FileRange(
                file_index=tensor.file_index,
                offset_bytes=start,
                size_bytes=tensor.offset_bytes + tensor.size_bytes - start,
            )
        )
        is_open = True
    return tuple(ranges)


def _in_file_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: (tensor.file_index, tensor.offset_bytes))


def page_slot_bytes(layout: ExpertLayout, *, page_bytes: int = 4096) -> dict[int, int]:
    """Return the memory that one expert of each layer takes at most: whole pages.

    A slice that does not begin with a page touches one page more, which its neighbour shares.
    """
    found: dict[int, int] = {}
    for tensor in layout.tensors:
        pages = -(-tensor.expert_bytes // page_bytes)
        is_aligned = not (tensor.offset_bytes % page_bytes or tensor.expert_bytes % page_bytes)
        size_bytes = (pages if is_aligned else pages + 1) * page_bytes
        found[tensor.layer] = found.get(tensor.layer, 0) + size_bytes
    return found
