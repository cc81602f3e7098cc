"""Recipes of architectures whose layers are attention and a feed-forward network.

Knows: what `load_arch_tensors` of src/models/<architecture>.cpp @ 0.3.36 asks for.
Does not know: recurrent layers, or how a draft is written.
"""

from collections.abc import Callable

from gguf import GGMLQuantizationType as Encoding

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

SOFTMAX, SIGMOID = 1, 2  # values of `expert_gating_func`

Recipe = Callable[[Draft], None]


def _experts_as_wide_as_ffn(draft: Draft) -> None:
    """Set the keys of the older architectures, whose experts have the feed-forward length."""
    base_keys(draft)
    draft.keys({"feed_forward_length": draft.shape.expert_ff})


def mixtral(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer)
        router(draft, layer)
        experts(draft, layer)


def qwen2moe(draft: Draft) -> None:
    base_keys(draft)
    draft.keys({"expert_shared_feed_forward_length": draft.shape.expert_ff})
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, input_bias=True)
        router(draft, layer)
        experts(draft, layer)
        shared_expert(draft, layer, gated=True)


def qwen3moe(draft: Draft) -> None:
    base_keys(draft)
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, head_norm=HeadNorm.HEAD)
        router(draft, layer)
        experts(draft, layer)


def olmoe(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, head_norm=HeadNorm.ROW)
        router(draft, layer)
        experts(draft, layer)


def gpt_oss(draft: Draft) -> None:
    base_keys(draft)
    draft.keys({"attention.sliding_window": 16})
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "post_attention_norm")
        attention(draft, layer, input_bias=True, output_bias=True)
        draft.vector(f"blk.{layer}.attn_sinks.weight", draft.shape.heads, centre=0.0)
        router(draft, layer, bias=True)
        experts(draft, layer, encoding=Encoding.MXFP4, bias=True)


def deepseek2(draft: Draft) -> None:
    latent, rope, nope, query_rank = 64, 32, 32, 96
    base_keys(draft)
    draft.keys(
        {
            # Latent attention keeps one key, the latent and the rotated part, for all heads.
            "attention.head_count_kv": 1,
            "attention.key_length": latent + rope,
            "attention.value_length": latent,
            "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": draft.shape.head_length,
            "attention.q_lora_rank": query_rank,
            "attention.kv_lora_rank": latent,
            "rope.dimension_count": rope,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "expert_gating_func": SIGMOID,
        }
    )
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        _latent_attention(draft, layer, latent=latent, rope=rope, nope=nope, query_rank=query_rank)
        if layer == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer, correction=True)
            experts(draft, layer, merged=layer == 2)
            shared_expert(draft, layer)


def _latent_attention(
    draft: Draft, layer: int, *, latent: int, rope: int, nope: int, query_rank: int
) -> None:
    shape, block = draft.shape, f"blk.{layer}"
    draft.vector(f"{block}.attn_q_a_norm.weight", query_rank)
    draft.vector(f"{block}.attn_kv_a_norm.weight", latent)
    draft.matrix(f"{block}.attn_q_a.weight", shape.width, query_rank)
    draft.matrix(f"{block}.attn_q_b.weight", query_rank, shape.heads * (nope + rope))
    draft.matrix(f"{block}.attn_kv_a_mqa.weight", shape.width, latent + rope)
    draft.matrix(f"{block}.attn_k_b.weight", nope, latent, shape.heads)
    draft.matrix(f"{block}.attn_v_b.weight", latent, shape.head_length, shape.heads)
    draft.matrix(f"{block}.attn_output.weight", shape.heads * shape.head_length, shape.width)


def glm4moe(draft: Draft) -> None:
    base_keys(draft)
    layers = draft.shape.layers
    draft.keys(
        {
            "block_count": layers + 1,
            "nextn_predict_layers": 1,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "rope.dimension_count": draft.shape.head_length // 2,
        }
    )
    frame(draft)
    for layer in range(layers + 1):
        norms(draft, layer, "attn_norm", "post_attention_norm")
        attention(draft, layer, head_norm=HeadNorm.HEAD, input_bias=True)
        if layer == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer, correction=True)
            experts(draft, layer)
            shared_expert(draft, layer)
    _next_token_prediction(draft, layers)


def _next_token_prediction(draft: Draft, layer: int) -> None:
    """Add what turns a trailing layer into a predictor of the token after next."""
    width = draft.shape.width
    draft.matrix(f"blk.{layer}.nextn.eh_proj.weight", 2 * width, width)
    norms(draft, layer, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")


def llama4(draft: Draft) -> None:
    base_keys(draft)
    draft.keys({"interleave_moe_layer_step": 2})
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer)
        if layer % 2 == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer)
            experts(draft, layer)
            shared_expert(draft, layer)


def granitemoe(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    draft.keys(
        {
            "logit_scale": 2.0,
            "residual_scale": 0.5,
            "embedding_scale": 2.0,
            "attention.scale": 0.125,
            "expert_shared_feed_forward_length": draft.shape.expert_ff,
        }
    )
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer)
        router(draft, layer)
        experts(draft, layer)
        shared_expert(draft, layer)


def phimoe(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    shape = draft.shape
    draft.keys({"rope.scaling.original_context_length": shape.context_tokens // 2})
    frame(draft, tied=False)
    draft.vector("output_norm.bias", shape.width, centre=0.0)
    draft.vector("output.bias", shape.vocabulary, centre=0.0)
    for length in ("long", "short"):
        draft.vector(f"rope_factors_{length}.weight", shape.head_length // 2)
    for layer in range(shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm", bias=True)
        attention(draft, layer, input_bias=True, output_bias=True)
        router(draft, layer)
        experts(draft, layer)


def dbrx(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    draft.keys({"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 8.0})
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "attn_output_norm")
        attention(draft, layer, fused=True)
        router(draft, layer)
        experts(draft, layer)


def bailingmoe2(draft: Draft) -> None:
    base_keys(draft)
    draft.keys(
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": SIGMOID,
            "expert_weights_scale": 2.0,
            "expert_weights_norm": True,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        }
    )
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, fused=True, head_norm=HeadNorm.HEAD)
        if layer == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer, correction=True)
            experts(draft, layer)
            shared_expert(draft, layer)


def hunyuan_moe(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    draft.keys({"expert_shared_feed_forward_length": draft.shape.expert_ff})
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, head_norm=HeadNorm.HEAD)
        router(draft, layer)
        experts(draft, layer)
        shared_expert(draft, layer)


def ernie4_5_moe(draft: Draft) -> None:
    base_keys(draft)
    draft.keys(
        {
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 1,
            "expert_shared_feed_forward_length": draft.shape.expert_ff,
        }
    )
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer)
        if layer == 0:
            dense_ffn(draft, layer)
        else:
            router(draft, layer, correction=True)
            experts(draft, layer)
            shared_expert(draft, layer)


def minimax_m2(draft: Draft) -> None:
    _experts_as_wide_as_ffn(draft)
    draft.keys(
        {
            "expert_gating_func": SIGMOID,
            "rope.dimension_count": draft.shape.head_length // 2,
        }
    )
    frame(draft, tied=False)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer, head_norm=HeadNorm.ROW)
        router(draft, layer, correction=True)
        experts(draft, layer)


def grok(draft: Draft) -> None:
    base_keys(draft)
    # Grok-2's residual feed-forward network runs beside the experts.
    draft.keys({"embedding_scale": 2.0, "attention.output_scale": 0.125})
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "attn_output_norm", "ffn_norm", "post_ffw_norm")
        attention(draft, layer)
        dense_ffn(draft, layer)
        router(draft, layer)
        experts(draft, layer)


def llama(draft: Draft) -> None:
    base_keys(draft, sparse=False)
    frame(draft)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "ffn_norm")
        attention(draft, layer)
        dense_ffn(draft, layer)


def gemma2(draft: Draft) -> None:
    base_keys(draft, sparse=False)
    draft.keys({"attention.sliding_window": 16, "attn_logit_softcapping": 50.0})
    frame(draft, tied=True)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        attention(draft, layer)
        dense_ffn(draft, layer)


def gemma3(draft: Draft) -> None:
    base_keys(draft, sparse=False)
    draft.keys({"attention.sliding_window": 16, "rope.freq_base_swa": 1000.0})
    frame(draft, tied=True)
    for layer in range(draft.shape.layers):
        norms(draft, layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        attention(draft, layer, head_norm=HeadNorm.HEAD)
        dense_ffn(draft, layer)
