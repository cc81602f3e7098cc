"""A qwen3moe model of any size with random weights, written in seconds.

`python -m benchmarks.synthetic_model FILE [--layers N]` writes one of 1.4 GB. All layers share one
block of random Q8_0 values, since only the bytes that are read matter to speed; routers differ, so
every layer routes its own way. Where a file is to be read from a disk, `has_own_blocks` makes every
block anew, so that no storage can share or compress them, and tensors are written one by one, so
that no more than one is in memory. With a `RoutedVocabulary` the token decides the routing.

Knows: what a qwen3moe file holds, and a shape whose decoding is bound by memory.
Does not know: what is measured with it, or what makes routing lifelike.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES, BLOCK_BYTES, SCALE_BYTES = 32, 34, 2  # Q8_0: one F16 scale before 32 integers
UNIFORM_SPREAD = 73.6  # standard deviation of integers from -127 to 127
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
END_TOKEN = 2
Q8_0 = gguf.GGMLQuantizationType.Q8_0
# How much attention and experts add in each layer to a hidden state that begins as its token's
# embedding; `streaming_routing` says what these two figures were chosen by.
ATTENTION_ADDS, EXPERTS_ADD = 0.10, 0.46


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticShape:
    """The default is 1.4 GB: 24 layers of 32 experts, of which a token uses 4."""

    layers: int = 24
    width: int = 1024
    heads: int = 16
    kv_heads: int = 4
    head_length: int = 64
    expert_ff: int = 512
    experts: int = 32
    experts_used: int = 4
    vocabulary: int = 4096
    context_tokens: int = 4096
    has_own_blocks: bool = False

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, its three matrices together."""
        return 3 * self.width * self.expert_ff // BLOCK_VALUES * BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedVocabulary:
    """An embedding for each token and a router for each layer; all else adds little."""

    embeddings: NDArray[np.float32]
    routers: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """One tensor to come: what the file says of it, and how its bytes are made."""

    name: str
    dimensions: tuple[int, ...]
    is_q8_0: bool
    make: Callable[[], NDArray[Any]]

    @property
    def stored(self) -> tuple[tuple[int, ...], type[np.generic], int]:
        """Return the shape and type of the array that `make` gives, and its bytes."""
        if not self.is_q8_0:
            return self.dimensions, np.float32, 4 * int(np.prod(self.dimensions))
        row_bytes = self.dimensions[-1] // BLOCK_VALUES * BLOCK_BYTES
        shape = (*self.dimensions[:-1], row_bytes)
        return shape, np.uint8, int(np.prod(shape))


class SyntheticWriter:
    """Writes one model; shared blocks are made once for each shape of tensor."""

    def __init__(
        self, path: Path, shape: SyntheticShape, *, seed: int, routed: RoutedVocabulary | None
    ) -> None:
        self._shape = shape
        self._routed = routed
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._writer = gguf.GGUFWriter(path, "qwen3moe")
        self._made: dict[tuple[tuple[int, ...], float], NDArray[np.uint8]] = {}

    def write(self) -> None:
        """Write the whole file."""
        self._keys()
        self._vocabulary()
        tensors = list(self._tensors())
        for tensor in tensors:
            shape, element, size_bytes = tensor.stored
            encoding = Q8_0 if tensor.is_q8_0 else None
            self._writer.add_tensor_info(
                tensor.name, shape, np.dtype(element), size_bytes, raw_dtype=encoding
            )
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        for tensor in tensors:
            self._writer.write_tensor_data(tensor.make())
        self._writer.close()

    def _keys(self) -> None:
        writer, shape = self._writer, self._shape
        writer.add_name("synthetic qwen3moe")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_block_count(shape.layers)
        writer.add_context_length(shape.context_tokens)
        writer.add_embedding_length(shape.width)
        writer.add_feed_forward_length(shape.expert_ff)
        writer.add_expert_feed_forward_length(shape.expert_ff)
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_length)
        writer.add_value_length(shape.head_length)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e6)

    def _vocabulary(self) -> None:
        writer, count = self._writer, self._shape.vocabulary
        octets = [f"<0x{octet:02X}>" for octet in range(256)]
        words = [f"\u2581w{n}" for n in range(count - len(SPECIAL_TOKENS) - len(octets))]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*SPECIAL_TOKENS, *octets, *words])
        writer.add_token_scores([-float(rank) for rank in range(count)])
        unknown, control, normal, byte = 2, 3, 1, 6
        types = [unknown, control, control, *[byte] * len(octets), *[normal] * len(words)]
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(END_TOKEN)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)

    def _tensors(self) -> Iterator[_Tensor]:
        shape, routed = self._shape, self._routed
        if routed is None:
            yield self._matrix("token_embd.weight", shape.vocabulary, shape.width)
        else:
            yield self._given("token_embd.weight", routed.embeddings)
        dimensions = (shape.vocabulary, shape.width)
        yield _Tensor(name="output.weight", dimensions=dimensions, is_q8_0=True, make=self._output)
        yield self._ones("output_norm.weight", shape.width)
        for layer in range(shape.layers):
            yield from self._layer(layer)

    def _layer(self, layer: int) -> Iterator[_Tensor]:
        shape, block = self._shape, f"blk.{layer}"
        attends, adds = (1.0, 1.0) if self._routed is None else (ATTENTION_ADDS, EXPERTS_ADD)
        queries, keys = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
        yield self._ones(f"{block}.attn_norm.weight", shape.width)
        yield self._ones(f"{block}.ffn_norm.weight", shape.width)
        yield self._ones(f"{block}.attn_q_norm.weight", shape.head_length)
        yield self._ones(f"{block}.attn_k_norm.weight", shape.head_length)
        yield self._matrix(f"{block}.attn_q.weight", queries, shape.width)
        yield self._matrix(f"{block}.attn_k.weight", keys, shape.width)
        yield self._matrix(f"{block}.attn_v.weight", keys, shape.width)
        yield self._matrix(f"{block}.attn_output.weight", shape.width, queries, size=attends)
        yield self._given(f"{block}.ffn_gate_inp.weight", self._router(layer))
        experts, ff, width = shape.experts, shape.expert_ff, shape.width
        yield self._matrix(f"{block}.ffn_gate_exps.weight", experts, ff, width)
        yield self._matrix(f"{block}.ffn_up_exps.weight", experts, ff, width)
        yield self._matrix(f"{block}.ffn_down_exps.weight", experts, width, ff, size=adds)

    def _router(self, layer: int) -> NDArray[np.float32]:
        if self._routed is not None:
            return self._routed.routers[layer]
        shape = self._shape
        router = self._random.standard_normal((shape.experts, shape.width), dtype=np.float32)
        return router / np.float32(shape.width**0.5)

    def _ones(self, name: str, length: int) -> _Tensor:
        return self._given(name, np.ones(length, np.float32))

    def _given(self, name: str, values: NDArray[np.float32]) -> _Tensor:
        return _Tensor(name=name, dimensions=values.shape, is_q8_0=False, make=lambda: values)

    def _matrix(self, name: str, *dimensions: int, size: float = 1.0) -> _Tensor:
        return _Tensor(
            name=name,
            dimensions=dimensions,
            is_q8_0=True,
            make=lambda: self._block(dimensions, size),
        )

    def _block(self, dimensions: tuple[int, ...], size: float) -> NDArray[np.uint8]:
        if self._shape.has_own_blocks:
            return self._random_q8_0(dimensions, size)
        if (dimensions, size) not in self._made:
            self._made[dimensions, size] = self._random_q8_0(dimensions, size)
        return self._made[dimensions, size]

    def _output(self) -> NDArray[Any]:
        """Return an output matrix that never ends an answer: the end token's row is zero."""
        output = self._random_q8_0((self._shape.vocabulary, self._shape.width), 1.0)
        output[END_TOKEN] = 0
        return output

    def _random_q8_0(self, dimensions: tuple[int, ...], size: float) -> NDArray[np.uint8]:
        """Return blocks whose values have that size times what keeps the scale of a product."""
        columns = dimensions[-1]
        count = int(np.prod(dimensions)) // BLOCK_VALUES
        words = self._random.integers(0, 1 << 64, -(-count * BLOCK_BYTES // 8), dtype=np.uint64)
        blocks = words.view(np.uint8)[: count * BLOCK_BYTES].reshape(count, BLOCK_BYTES)
        values = blocks[:, SCALE_BYTES:].view(np.int8)
        np.maximum(values, -127, out=values)  # as quantizing gives; kernels negate them
        scale = np.array([size / columns**0.5 / UNIFORM_SPREAD], np.float16)
        blocks[:, :SCALE_BYTES] = scale.view(np.uint8)
        return blocks.reshape(*dimensions[:-1], columns // BLOCK_VALUES * BLOCK_BYTES)


def write_synthetic_model(
    path: Path,
    shape: SyntheticShape | None = None,
    *,
    seed: int = 0,
    routed: RoutedVocabulary | None = None,
) -> Path:
    """Write a model and return its path."""
    SyntheticWriter(path, shape or SyntheticShape(), seed=seed, routed=routed).write()
    return path


def main() -> None:
    """Write the file that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_model")
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=SyntheticShape().layers)
    options = parser.parse_args()
    path = write_synthetic_model(options.path, SyntheticShape(layers=options.layers))
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
