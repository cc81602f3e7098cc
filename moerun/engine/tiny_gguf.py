"""A Mixture-of-Experts model of some hundred kilobytes with random weights, written in a moment.

Knows: how the smallest sound qwen3moe file looks.
Does not know: what is checked with it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy
import numpy.typing

_SPACE: Final = "\u2581"  # how SentencePiece writes a space
_Floats = numpy.typing.NDArray[numpy.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """The size of a tiny model. Widths are multiples of a quantization block (32)."""

    layers: int = 3
    width: int = 128
    expert_width: int = 64
    experts: int = 8
    experts_used: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    vocabulary: int = 320
    context_tokens: int = 4096
    seed: int = 1


def write_tiny_moe(
    path: Path,
    *,
    shape: TinyShape | None = None,
    encoding: str = "Q8_0",
    expert_encoding: str = "Q4_0",
    chat_template: str | None = None,
    metadata: tuple[tuple[str, float], ...] = (),
    extra_tokens: tuple[bytes, ...] = (),
) -> None:
    """Write a model whose matrices are kept in `encoding` and its experts in `expert_encoding`.

    `metadata` are further header keys with numbers; `extra_tokens` lie at the end of the
    vocabulary, which grows by them.
    """
    shape = shape or TinyShape()
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _write_header(writer, shape)
    _write_vocabulary(writer, shape, extra_tokens)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, value in metadata:
        if float(value).is_integer():
            writer.add_int32(key, int(value))
        else:
            writer.add_float32(key, value)
    tensors = _Tensors(writer, shape, len(extra_tokens))
    tensors.write(encoding, expert_encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Tensors:
    """Random weights of the right sizes, scaled so that activations stay moderate."""

    def __init__(self, writer: Any, shape: TinyShape, extra_tokens: int) -> None:
        self._writer = writer
        self._shape = shape
        self._rows = shape.vocabulary + extra_tokens
        self._random = numpy.random.default_rng(shape.seed)

    def write(self, encoding: str, expert_encoding: str) -> None:
        """Add all tensors."""
        shape = self._shape
        self._matrix("token_embd.weight", (self._rows, shape.width), "F16", scale=1.0)
        self._matrix("output.weight", (self._rows, shape.width), encoding)
        self._ones("output_norm.weight", shape.width)
        attention_width = shape.heads * shape.head_width
        kv_width = shape.kv_heads * shape.head_width
        for layer in range(shape.layers):
            block = f"blk.{layer}."
            for name, width in (
                ("attn_norm", shape.width),
                ("ffn_norm", shape.width),
                ("attn_q_norm", shape.head_width),
                ("attn_k_norm", shape.head_width),
            ):
                self._ones(f"{block}{name}.weight", width)
            self._matrix(f"{block}attn_q.weight", (attention_width, shape.width), encoding)
            self._matrix(f"{block}attn_k.weight", (kv_width, shape.width), encoding)
            self._matrix(f"{block}attn_v.weight", (kv_width, shape.width), encoding)
            self._matrix(f"{block}attn_output.weight", (shape.width, attention_width), encoding)
            self._matrix(f"{block}ffn_gate_inp.weight", (shape.experts, shape.width), "F32")
            inner = (shape.experts, shape.expert_width, shape.width)
            outer = (shape.experts, shape.width, shape.expert_width)
            self._matrix(f"{block}ffn_gate_exps.weight", inner, expert_encoding)
            self._matrix(f"{block}ffn_up_exps.weight", inner, expert_encoding)
            self._matrix(f"{block}ffn_down_exps.weight", outer, expert_encoding)

    def _matrix(
        self, name: str, dimensions: tuple[int, ...], encoding: str, *, scale: float | None = None
    ) -> None:
        spread = dimensions[-1] ** -0.5 if scale is None else scale
        values: _Floats = self._random.standard_normal(dimensions, dtype=numpy.float32)
        kind = gguf.GGMLQuantizationType[encoding]
        data = gguf.quants.quantize(values * numpy.float32(spread), kind)
        self._writer.add_tensor(name, data, raw_dtype=kind)

    def _ones(self, name: str, width: int) -> None:
        self._writer.add_tensor(name, numpy.ones(width, dtype=numpy.float32))


def _write_header(writer: Any, shape: TinyShape) -> None:
    writer.add_name("moerun tiny")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.expert_width)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)


def _write_vocabulary(writer: Any, shape: TinyShape, extra_tokens: tuple[bytes, ...]) -> None:
    """A SentencePiece vocabulary: three control tokens, 256 bytes, the space, made-up words."""
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256)]
    words = [_SPACE.encode()]
    words += [f"{_SPACE}w{index}".encode() for index in range(len(tokens) + 1, shape.vocabulary)]
    words += extra_tokens
    tokens += words
    types += [kinds.NORMAL] * len(words)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
