"""A qwen3moe model of more than a gigabyte with random weights, written in seconds.

`python -m benchmarks.synthetic_model FILE [--layers N]` writes it. All layers share one block of
random Q8_0 values, since only the bytes that are read matter to speed; routers differ, so every
layer routes its own way.

Knows: what a qwen3moe file holds, and a shape whose decoding is bound by memory.
Does not know: what is measured with it.
"""

import argparse
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


class SyntheticWriter:
    """Writes one model; random blocks are made once for each shape of tensor."""

    def __init__(self, path: Path, shape: SyntheticShape, *, seed: int) -> None:
        self._shape = shape
        self._random = np.random.default_rng(seed)
        self._writer = gguf.GGUFWriter(path, "qwen3moe")
        self._made: dict[tuple[int, ...], NDArray[np.uint8]] = {}

    def write(self) -> None:
        """Write the whole file."""
        self._keys()
        self._vocabulary()
        shape = self._shape
        self._matrix("token_embd.weight", shape.vocabulary, shape.width)
        self._writer.add_tensor("output.weight", self._output(), raw_dtype=Q8_0)
        self._ones("output_norm.weight", shape.width)
        for layer in range(shape.layers):
            self._layer(f"blk.{layer}")
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
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

    def _layer(self, block: str) -> None:
        shape = self._shape
        queries, keys = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
        self._ones(f"{block}.attn_norm.weight", shape.width)
        self._ones(f"{block}.ffn_norm.weight", shape.width)
        self._ones(f"{block}.attn_q_norm.weight", shape.head_length)
        self._ones(f"{block}.attn_k_norm.weight", shape.head_length)
        self._matrix(f"{block}.attn_q.weight", queries, shape.width)
        self._matrix(f"{block}.attn_k.weight", keys, shape.width)
        self._matrix(f"{block}.attn_v.weight", keys, shape.width)
        self._matrix(f"{block}.attn_output.weight", shape.width, queries)
        router = self._random.standard_normal((shape.experts, shape.width), dtype=np.float32)
        self._writer.add_tensor(f"{block}.ffn_gate_inp.weight", router / shape.width**0.5)
        for part, rows, columns in (
            ("gate", shape.expert_ff, shape.width),
            ("up", shape.expert_ff, shape.width),
            ("down", shape.width, shape.expert_ff),
        ):
            self._matrix(f"{block}.ffn_{part}_exps.weight", shape.experts, rows, columns)

    def _ones(self, name: str, length: int) -> None:
        self._writer.add_tensor(name, np.ones(length, np.float32))

    def _matrix(self, name: str, *dimensions: int) -> None:
        if dimensions not in self._made:
            self._made[dimensions] = self._random_q8_0(dimensions)
        self._writer.add_tensor(name, self._made[dimensions], raw_dtype=Q8_0)

    def _output(self) -> NDArray[Any]:
        """Return an output matrix that never ends an answer: the end token's row is zero."""
        output = self._random_q8_0((self._shape.vocabulary, self._shape.width))
        output[END_TOKEN] = 0
        return output

    def _random_q8_0(self, dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return blocks whose values keep the scale of what they are multiplied with."""
        columns = dimensions[-1]
        count = int(np.prod(dimensions)) // BLOCK_VALUES
        blocks = np.empty((count, BLOCK_BYTES), np.uint8)
        scale = np.array([1 / columns**0.5 / UNIFORM_SPREAD], np.float16)
        blocks[:, :SCALE_BYTES] = scale.view(np.uint8)
        values = self._random.integers(-127, 128, (count, BLOCK_VALUES), dtype=np.int8)
        blocks[:, SCALE_BYTES:] = values.view(np.uint8)
        return blocks.reshape(*dimensions[:-1], columns // BLOCK_VALUES * BLOCK_BYTES)


def write_synthetic_model(
    path: Path, shape: SyntheticShape | None = None, *, seed: int = 0
) -> Path:
    """Write a model and return its path."""
    SyntheticWriter(path, shape or SyntheticShape(), seed=seed).write()
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
