"""A model as values: tensors with roles and exact bytes, layers with what their state costs.

Knows: the nouns, and sums over them.
Does not know: file formats, tensor naming, devices, or the engine.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class TensorRole(StrEnum):
    """What a tensor does in the network."""

    INPUT = "input"
    OUTPUT = "output"
    NORM = "norm"
    ATTENTION = "attention"
    DENSE_FFN = "dense_ffn"
    ROUTER = "router"
    SHARED_EXPERT = "shared_expert"
    EXPERT = "expert"
    RECURRENT = "recurrent"
    OTHER = "other"


class ExpertPart(StrEnum):
    """Which matrix of the experts of a layer a tensor holds; biases and scales go with theirs."""

    GATE = "gate"
    UP = "up"
    DOWN = "down"
    GATE_UP = "gate_up"


_COMPUTED: Final = (ExpertPart.GATE, ExpertPart.UP, ExpertPart.GATE_UP, ExpertPart.DOWN)
_MATRIX_DIMENSIONS: Final = 3  # columns, rows, experts


class TensorUse(StrEnum):
    """What the engine does with a tensor of the file."""

    LOADED = "loaded"
    SKIPPED = "skipped"  # in the file, never loaded (next-token-prediction blocks)
    DUPLICATED = "duplicated"  # loaded once as input, and once more as output (tied embeddings)
    ADAPTER = "adapter"  # of an adapter: in memory beside the matrix that it changes, never mapped
    REPEATED = "repeated"  # loaded with the first layer, and once on every device that has layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the file.

    `shape` is in ggml's order: the fastest dimension first (columns, rows, experts).
    `offset_bytes` counts from the start of its file.
    """

    name: str
    role: TensorRole
    layer: int | None
    part: ExpertPart | None
    shape: tuple[int, ...]
    encoding: str
    size_bytes: int
    offset_bytes: int
    file_index: int
    use: TensorUse = TensorUse.LOADED


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What one layer keeps for each token: `kv_heads` keys and values, within a window if set.

    `indexer_*` are one more key (and value) for each token, kept by the sparse-attention indexer
    of the layer. `widest_value_values` is the widest value row of the model: without flash
    attention every layer keeps rows of that width (0 means the layer's own).
    """

    kv_heads: int
    key_length: int
    value_length: int
    window_tokens: int | None = None
    indexer_key_length: int = 0
    indexer_value_length: int = 0
    widest_value_values: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec:
    """What one layer of multi-head latent attention keeps for each token (no value cache)."""

    latent_length: int
    rope_length: int
    window_tokens: int | None = None
    indexer_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedSpec:
    """What one layer of DeepSeek-V4 keeps: keys in a window, and compressed keys behind it.

    One compressed key stands for `compression` tokens (0: the layer keeps the window only);
    layers that compress finely keep `indexer_length` values beside each compressed key.
    `state_values` are what the compressor keeps for each sequence, whatever the context (F32).
    """

    key_values: int
    window_tokens: int
    compression: int
    indexer_length: int = 0
    state_values: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSpec:
    """What one recurrent layer keeps for each sequence, whatever the context (always F32)."""

    convolution_values: int
    state_values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block of the network; a spec is None where the engine keeps no such state for it."""

    index: int
    tensors: tuple[Tensor, ...]
    attention: AttentionSpec | LatentSpec | CompressedSpec | None
    recurrent: RecurrentSpec | None = None

    @property
    def expert_tensors(self) -> tuple[Tensor, ...]:
        """The loaded tensors that hold the routed experts."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.role is TensorRole.EXPERT and tensor.use is not TensorUse.SKIPPED
        )

    @property
    def dense_tensors(self) -> tuple[Tensor, ...]:
        """The loaded tensors that every token needs."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.role is not TensorRole.EXPERT and tensor.use is not TensorUse.SKIPPED
        )

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts of the layer."""
        return sum(tensor.size_bytes for tensor in self.expert_tensors)

    @property
    def dense_bytes(self) -> int:
        """Bytes of what every token needs."""
        return sum(tensor.size_bytes for tensor in self.dense_tensors)

    @property
    def expert_parts(self) -> tuple[ExpertPart, ...]:
        """The parts present, in the order of the enumeration."""
        present = {tensor.part for tensor in self.expert_tensors}
        return tuple(part for part in ExpertPart if part in present)

    def expert_part_bytes(self, part: ExpertPart) -> int:
        """Bytes of one part of all experts of the layer."""
        return sum(t.size_bytes for t in self.expert_tensors if t.part is part)

    def routed_matrices(self, expert_count: int) -> tuple[Tensor, ...]:
        """Return the matrices that the router's choice selects slices of, as they are computed.

        Where a layer has two sets of experts, those of the model's own count are meant; two of
        one count cannot be told apart, and none is returned.
        """
        found = [
            tensor
            for tensor in self.expert_tensors
            if tensor.part is not None and len(tensor.shape) == _MATRIX_DIMENSIONS
        ]
        if len({tensor.shape[-1] for tensor in found}) > 1:
            found = [tensor for tensor in found if tensor.shape[-1] == expert_count]
        if len({tensor.part for tensor in found}) < len(found):
            return ()
        return tuple(sorted(found, key=lambda t: _COMPUTED.index(t.part or ExpertPart.GATE)))

    @property
    def is_sparse(self) -> bool:
        """Whether the layer routes to experts."""
        return bool(self.expert_tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of the model, and where its tensor data begins."""

    path: str
    size_bytes: int
    data_offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A whole model as its header tells it. `digest` is of header facts, not of weights.

    `layers` are all blocks that the engine counts, those it skips (next-token prediction) and
    those it adds without weights included, so that an index here is an index there. `files` begin
    with the one that the engine is given. What `adapters` hold is among the tensors.
    """

    name: str
    architecture: str
    files: tuple[ModelFile, ...]
    layers: tuple[Layer, ...]
    shared: tuple[Tensor, ...]
    expert_count: int
    experts_used: int
    train_context_tokens: int
    embedding_length: int
    vocabulary_size: int
    parameter_count: int
    has_tied_output: bool
    quantization: str
    digest: str
    generates_text: bool = True
    adapters: tuple[ModelFile, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the file: shared ones first, then by layer."""
        return self.shared + tuple(t for layer in self.layers for t in layer.tensors)

    @property
    def loaded_tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that the engine loads, once each."""
        return tuple(t for t in self.tensors if t.use is not TensorUse.SKIPPED)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all loaded tensors; a duplicated one is counted once."""
        return sum(tensor.size_bytes for tensor in self.loaded_tensors)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(layer.expert_bytes for layer in self.layers)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def is_sparse(self) -> bool:
        """Whether any layer routes to experts."""
        return any(layer.is_sparse for layer in self.layers)

    @property
    def expert_bytes_per_token(self) -> int:
        """Bytes of experts that one token reads: the used share of every sparse layer."""
        if not self.expert_count:
            return 0
        return self.expert_bytes * self.experts_used // self.expert_count
