"""The parts that architectures share: frame, attention, feed-forward, experts.

Knows: tensor names and shapes as llama.cpp expects them (src/llama-arch.cpp @ 0.3.36).
Does not know: which architecture has which parts.
"""

from enum import StrEnum

from gguf import GGMLQuantizationType as Encoding

from tests.tiny_models.draft import Draft, Value

UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1  # token types of llama.cpp's vocabulary


class HeadNorm(StrEnum):
    """Over what queries and keys are normalised: one head, all heads, or not at all."""

    HEAD = "head"
    ROW = "row"
    NONE = "none"


def frame(draft: Draft, *, output_norm: str = "output_norm", tied: bool | None = None) -> None:
    """Add what belongs to no layer; the output is left out where it is tied to the input."""
    shape = draft.shape
    draft.matrix("token_embd.weight", shape.width, shape.vocabulary, gain=shape.width**0.5)
    draft.vector(f"{output_norm}.weight", shape.width)
    if not (draft.tied_output if tied is None else tied):
        draft.matrix("output.weight", shape.width, shape.vocabulary, encoding=Encoding.Q6_K)


def base_keys(draft: Draft, *, sparse: bool = True) -> None:
    """Set the keys that nearly every architecture reads."""
    shape = draft.shape
    draft.keys(
        {
            "block_count": shape.layers,
            "context_length": shape.context_tokens,
            "embedding_length": shape.width,
            "feed_forward_length": shape.dense_ff,
            "attention.head_count": shape.heads,
            "attention.head_count_kv": shape.kv_heads,
            "attention.key_length": shape.head_length,
            "attention.value_length": shape.head_length,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
            "rope.dimension_count": shape.head_length,
        }
    )
    if sparse:
        draft.keys(
            {
                "expert_count": shape.experts,
                "expert_used_count": shape.experts_used,
                "expert_feed_forward_length": shape.expert_ff,
            }
        )


def norms(draft: Draft, layer: int, *names: str, bias: bool = False) -> None:
    """Add normalisations over the width."""
    for name in names:
        draft.vector(f"blk.{layer}.{name}.weight", draft.shape.width)
        if bias:
            draft.vector(f"blk.{layer}.{name}.bias", draft.shape.width, centre=0.0)


def attention(
    draft: Draft,
    layer: int,
    *,
    head_norm: HeadNorm = HeadNorm.NONE,
    fused: bool = False,
    input_bias: bool = False,
    output_bias: bool = False,
    query_gain: int = 1,
) -> None:
    """Add grouped-query attention; `query_gain` 2 is for queries that carry a gate."""
    shape, block = draft.shape, f"blk.{layer}"
    queries, keys = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
    rows = {"attn_q": queries * query_gain, "attn_k": keys, "attn_v": keys}
    if fused:
        rows = {"attn_qkv": sum(rows.values())}
    for name, row_count in rows.items():
        draft.matrix(f"{block}.{name}.weight", shape.width, row_count)
        if input_bias:
            draft.vector(f"{block}.{name}.bias", row_count, centre=0.0)
    draft.matrix(f"{block}.attn_output.weight", queries, shape.width)
    if output_bias:
        draft.vector(f"{block}.attn_output.bias", shape.width, centre=0.0)
    if head_norm is HeadNorm.HEAD:
        draft.vector(f"{block}.attn_q_norm.weight", shape.head_length)
        draft.vector(f"{block}.attn_k_norm.weight", shape.head_length)
    elif head_norm is HeadNorm.ROW:
        draft.vector(f"{block}.attn_q_norm.weight", queries)
        draft.vector(f"{block}.attn_k_norm.weight", keys)


def dense_ffn(draft: Draft, layer: int, *, ff: int | None = None) -> None:
    """Add a gated feed-forward network that every token uses."""
    _gated(draft, f"blk.{layer}.ffn_%s.weight", ff or draft.shape.dense_ff)


def shared_expert(draft: Draft, layer: int, *, gated: bool = False) -> None:
    """Add an expert that every token uses, behind a gate of its own if `gated`."""
    _gated(draft, f"blk.{layer}.ffn_%s_shexp.weight", draft.shape.expert_ff)
    if gated:
        draft.vector(f"blk.{layer}.ffn_gate_inp_shexp.weight", draft.shape.width, centre=0.0)


def router(draft: Draft, layer: int, *, bias: bool = False, correction: bool = False) -> None:
    """Add the router; `correction` is the bias that only the choice of experts sees."""
    shape = draft.shape
    name = f"blk.{layer}.ffn_gate_inp"
    draft.matrix(f"{name}.weight", shape.width, shape.experts, encoding=Encoding.F32)
    if bias:
        draft.vector(f"{name}.bias", shape.experts, centre=0.0)
    if correction:
        draft.vector(f"blk.{layer}.exp_probs_b.bias", shape.experts, centre=0.0)


def experts(
    draft: Draft,
    layer: int,
    *,
    encoding: Encoding | None = None,
    bias: bool = False,
    gate: bool = True,
    merged: bool = False,
) -> None:
    """Add the routed experts; `merged` holds gate and up in one tensor."""
    shape, block = draft.shape, f"blk.{layer}"
    width, ff, count = shape.width, shape.expert_ff, shape.experts
    parts = {"up": (width, ff), "down": (ff, width)}
    if merged:
        parts = {"gate_up": (width, 2 * ff), "down": (ff, width)}
    elif gate:
        parts = {"gate": (width, ff), **parts}
    for turn, (part, (columns, rows)) in enumerate(parts.items()):
        name = f"{block}.ffn_{part}_exps"
        draft.experts(f"{name}.weight", columns, rows, count, turn=layer + turn, encoding=encoding)
        if bias:
            draft.vector(f"{name}.bias", rows, count, centre=0.0)


def scale_experts(draft: Draft) -> None:
    """Add a scale for every matrix of every expert, which any architecture may have."""
    matrices = [t.name for t in draft.tensors if t.name.endswith("_exps.weight")]
    for name in matrices:
        draft.vector(name.replace(".weight", ".scale"), draft.shape.experts, spread=0.3)


def vocabulary_keys(token_count: int) -> dict[str, Value]:
    """Return a SentencePiece vocabulary: three control tokens, all bytes, then words."""
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    words = [f"\u2581word{number}" for number in range(token_count - len(special) - len(octets))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * len(octets) + [NORMAL] * len(words)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": special + octets + words,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def _gated(draft: Draft, pattern: str, ff: int) -> None:
    width = draft.shape.width
    draft.matrix(pattern % "gate", width, ff)
    draft.matrix(pattern % "up", width, ff)
    draft.matrix(pattern % "down", ff, width)
