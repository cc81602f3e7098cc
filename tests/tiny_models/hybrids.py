"""Recipes of architectures that mix attention with recurrent layers.

Knows: what `load_arch_tensors` of src/models/<architecture>.cpp @ 0.3.36 asks for.
Does not know: pure transformers, or how a draft is written.
"""

from collections.abc import Sequence

from tests.tiny_models.blocks import (
    HeadNorm,
    attention,
    base_keys,
    dense_ffn,
    experts,
    frame,
    norms,
    router,
    shared_expert,
)
from tests.tiny_models.draft import Draft
from tests.tiny_models.transformers import SIGMOID

CONVOLUTION = 4
STATE = 32
SCAN_HEADS = 8


def _kv_heads(draft: Draft, attention_layers: Sequence[int]) -> list[int]:
    """Return the key heads of each layer: none marks a recurrent one."""
    heads = draft.shape.kv_heads
    return [heads if layer in attention_layers else 0 for layer in range(draft.shape.layers)]


def granitehybrid(draft: Draft) -> None:
    base_keys(draft)
    shape = draft.shape
    draft.keys(
        {
            "feed_forward_length": shape.expert_ff,
            "expert_shared_feed_forward_length": shape.expert_ff,
            "attention.head_count_kv": _kv_heads(draft, [1]),
            "logit_scale": 2.0,
            "residual_scale": 0.5,
            "embedding_scale": 2.0,
            "attention.scale": 0.125,
        }
    )
    _scan_keys(draft)
    frame(draft)
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        if layer == 1:
            attention(draft, layer)
        else:
            _mamba2(draft, layer)
        router(draft, layer)
        experts(draft, layer)
        shared_expert(draft, layer)


def nemotron_h_moe(draft: Draft) -> None:
    """Layers do one thing each: scan, experts, attention, experts, scan."""
    base_keys(draft)
    shape = draft.shape
    attention_layer, expert_layers = 2, (1, 3)
    draft.keys(
        {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.head_count_kv": _kv_heads(draft, [attention_layer]),
            "feed_forward_length": [
                shape.expert_ff if layer in expert_layers else 0 for layer in range(shape.layers)
            ],
            "expert_shared_feed_forward_length": shape.expert_ff,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.0,
        }
    )
    _scan_keys(draft)
    frame(draft)
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm")
        if layer == attention_layer:
            attention(draft, layer)
        elif layer in expert_layers:
            router(draft, layer, correction=True)
            experts(draft, layer, gate=False)
            _ungated_shared_expert(draft, layer)
        else:
            _mamba2(draft, layer)


def _ungated_shared_expert(draft: Draft, layer: int) -> None:
    shape = draft.shape
    draft.matrix(f"blk.{layer}.ffn_up_shexp.weight", shape.width, shape.expert_ff)
    draft.matrix(f"blk.{layer}.ffn_down_shexp.weight", shape.expert_ff, shape.width)


def _scan_keys(draft: Draft) -> None:
    draft.keys(
        {
            "ssm.conv_kernel": CONVOLUTION,
            "ssm.inner_size": 2 * draft.shape.width,
            "ssm.state_size": STATE,
            "ssm.time_step_rank": SCAN_HEADS,
            "ssm.group_count": 1,
        }
    )


def _mamba2(draft: Draft, layer: int) -> None:
    width, block = draft.shape.width, f"blk.{layer}"
    inner = 2 * width
    convolved = inner + 2 * STATE
    draft.matrix(f"{block}.ssm_in.weight", width, inner + convolved + SCAN_HEADS)
    draft.matrix(f"{block}.ssm_conv1d.weight", CONVOLUTION, convolved)
    draft.vector(f"{block}.ssm_conv1d.bias", convolved, centre=0.0)
    draft.vector(f"{block}.ssm_dt.bias", SCAN_HEADS, centre=-1.0)
    draft.vector(f"{block}.ssm_a", 1, SCAN_HEADS, centre=-1.0)
    draft.vector(f"{block}.ssm_d", 1, SCAN_HEADS)
    draft.vector(f"{block}.ssm_norm.weight", inner, 1)
    draft.matrix(f"{block}.ssm_out.weight", inner, width)


def jamba(draft: Draft) -> None:
    """Mamba layers and one of attention; experts on every second layer."""
    base_keys(draft)
    shape = draft.shape
    rank, state = 16, 16
    draft.keys(
        {
            "feed_forward_length": shape.expert_ff,
            "attention.head_count_kv": _kv_heads(draft, [2]),
            "ssm.conv_kernel": CONVOLUTION,
            "ssm.inner_size": 2 * shape.width,
            "ssm.state_size": state,
            "ssm.time_step_rank": rank,
        }
    )
    frame(draft)
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        if layer == 2:
            attention(draft, layer)
        else:
            _mamba1(draft, layer, rank=rank, state=state)
        if layer % 2:
            router(draft, layer)
            experts(draft, layer)
        else:
            dense_ffn(draft, layer, ff=shape.expert_ff)


def _mamba1(draft: Draft, layer: int, *, rank: int, state: int) -> None:
    width, block = draft.shape.width, f"blk.{layer}"
    inner = 2 * width
    draft.matrix(f"{block}.ssm_in.weight", width, 2 * inner)
    draft.matrix(f"{block}.ssm_conv1d.weight", CONVOLUTION, inner)
    draft.vector(f"{block}.ssm_conv1d.bias", inner, centre=0.0)
    draft.matrix(f"{block}.ssm_x.weight", inner, rank + 2 * state)
    draft.matrix(f"{block}.ssm_dt.weight", rank, inner)
    draft.vector(f"{block}.ssm_dt.bias", inner, centre=-1.0)
    draft.vector(f"{block}.ssm_dt_norm.weight", rank)
    draft.vector(f"{block}.ssm_b_norm.weight", state)
    draft.vector(f"{block}.ssm_c_norm.weight", state)
    draft.vector(f"{block}.ssm_a", state, inner, centre=-1.0)
    draft.vector(f"{block}.ssm_d", inner)
    draft.matrix(f"{block}.ssm_out.weight", inner, width)


def qwen3next(draft: Draft) -> None:
    """Gated delta nets, and gated attention on every second layer."""
    base_keys(draft)
    shape = draft.shape
    key_heads, value_heads, head = 2, 4, 64
    draft.keys(
        {
            "full_attention_interval": 2,
            "expert_shared_feed_forward_length": shape.expert_ff,
            "rope.dimension_count": shape.head_length // 4,
            "ssm.conv_kernel": CONVOLUTION,
            "ssm.inner_size": value_heads * head,
            "ssm.state_size": head,
            "ssm.time_step_rank": value_heads,
            "ssm.group_count": key_heads,
        }
    )
    frame(draft)
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm", "post_attention_norm")
        if layer % 2:
            attention(draft, layer, head_norm=HeadNorm.HEAD, query_gain=2)
        else:
            _delta_net(draft, layer, key_heads=key_heads, value_heads=value_heads, head=head)
        router(draft, layer)
        experts(draft, layer)
        shared_expert(draft, layer, gated=True)


def _delta_net(draft: Draft, layer: int, *, key_heads: int, value_heads: int, head: int) -> None:
    width, block = draft.shape.width, f"blk.{layer}"
    keys, values = key_heads * head, value_heads * head
    draft.matrix(f"{block}.attn_qkv.weight", width, 2 * keys + values)
    draft.matrix(f"{block}.attn_gate.weight", width, values)
    draft.matrix(f"{block}.ssm_conv1d.weight", CONVOLUTION, 2 * keys + values)
    draft.vector(f"{block}.ssm_dt.bias", value_heads, centre=-1.0)
    draft.vector(f"{block}.ssm_a", value_heads, centre=-1.0)
    draft.matrix(f"{block}.ssm_ba.weight", width, 2 * value_heads)
    draft.vector(f"{block}.ssm_norm.weight", head)
    draft.matrix(f"{block}.ssm_out.weight", values, width)


def lfm2moe(draft: Draft) -> None:
    """Short convolutions, and attention on every second layer; the first layer is dense."""
    base_keys(draft)
    shape = draft.shape
    cache = 3
    draft.keys(
        {
            "attention.head_count_kv": _kv_heads(draft, [1, 3]),
            "shortconv.l_cache": cache,
            "leading_dense_block_count": 1,
            "expert_gating_func": SIGMOID,
        }
    )
    frame(draft, output_norm="token_embd_norm")
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        if layer % 2:
            attention(draft, layer, head_norm=HeadNorm.HEAD)
        else:
            draft.matrix(f"blk.{layer}.shortconv.conv.weight", cache, shape.width)
            draft.matrix(f"blk.{layer}.shortconv.in_proj.weight", shape.width, 3 * shape.width)
            draft.matrix(f"blk.{layer}.shortconv.out_proj.weight", shape.width, shape.width)
        if layer == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer, correction=True)
            experts(draft, layer)
