"""Where the experts of a model lie in its files, and what else the host always needs of them.

Knows: slices of files, by layer and expert.
Does not know: addresses, memory, or which experts are held.
"""

from dataclasses import dataclass

from moerun.model.description import ModelFile


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
