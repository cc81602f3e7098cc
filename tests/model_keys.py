"""Keys that make the engine build a model of any architecture from a header alone.

Knows: which keys each architecture reads, with small numbers that exercise its rules.
Does not know: tensors (the engine names them), or what moerun reads from the keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

KeyValue = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[str]


class U16(int):
    """A number that a header holds with 16 bits (`split.no`, `split.count`)."""


class U64(int):
    """A number that a header holds with 64 bits."""


HYBRIDS_BY_HEADS = frozenset(
    {
        "jamba",
        "granitehybrid",
        "plamo2",
        "lfm2",
        "lfm2moe",
        "kimi-linear",
        "kimi-k3",
        "bailingmoe3",
        "glm5-next",
    }
)
LATENT = frozenset(
    {
        "deepseek2",
        "mistral4",
        "deepseek32",
        "glm-dsa",
        "dots3note",
        "hy_v4",
        "kimi-linear",
        "kimi-k3",
        "bailingmoe3",
        "glm5-next",
    }
)
LISTED_WINDOWS = frozenset(
    {
        "cohere2moe",
        "dots3note",
        "gemma4",
        "granite_swa",
        "maple",
        "mimo2",
        "spark2_5",
        "step35",
    }
)
VOCABULARY = 128
CONTEXT_TOKENS = 1024
WINDOW_TOKENS = 40


@dataclass
class Sizes:
    """The numbers that most keys follow from."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 384
    per_layer_heads: list[int] = field(default_factory=list)

    @property
    def head_length(self) -> int:
        return self.width // self.heads


def model_keys(architecture: str, *, sparse: bool) -> dict[str, KeyValue]:
    """Return the keys of a small model; those of the architecture without its prefix."""
    sizes = _sizes(architecture)
    keys = _base_keys(architecture, sizes)
    keys |= _attention_keys(architecture, sizes)
    keys |= _recurrent_keys(architecture, sizes)
    keys |= _indexer_keys(architecture, sizes)
    keys |= _special_keys(architecture, sizes)
    if sparse:
        keys |= _expert_keys(architecture, sizes)
    return keys


def _sizes(architecture: str) -> Sizes:
    match architecture:
        case "gemma3n":
            return Sizes(layers=22, width=64, heads=1, kv_heads=1, feed_forward=96)
        case "gemma4":
            return Sizes(layers=6, width=128, heads=2, kv_heads=2, feed_forward=192)
        case "deepseek4":
            return Sizes(layers=4, width=512, heads=8, kv_heads=1, feed_forward=1024)
        case "exaone4":
            return Sizes(layers=64, width=64, heads=1, kv_heads=1, feed_forward=64)
        case "nemotron_h" | "nemotron_h_moe":
            return Sizes(layers=5)
        case "hrm_text":
            return Sizes(layers=6, kv_heads=4)
        case "minicpm3" | "plm" | "minimax-01" | "dots1" | "olmoe" | "deepseek2-ocr":
            return Sizes(kv_heads=4)
        case name if name in LATENT:
            return Sizes(width=128, heads=1, kv_heads=1, feed_forward=192)
        case "mpt" | "refact" | "falcon" | "gpt2" | "gptneox" | "bloom" | "starcoder" | "phi2":
            return Sizes(kv_heads=4)
        case "openelm" | "qwen" | "jais" | "codeshell" | "plamo" | "chatglm":
            return Sizes(kv_heads=4)
        case _:
            return Sizes()


def _base_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    return {
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT_TOKENS,
        "embedding_length": sizes.width,
        "features_length": sizes.width,
        "block_count": sizes.layers,
        "leading_dense_block_count": 1,
        "feed_forward_length": sizes.feed_forward,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "residual_scale": 3.5,
        "embedding_scale": 1.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.clamp_kqv": 1.0,
        "attention.max_alibi_bias": 8.0,
        "attention.relative_buckets_count": 8,
        "attention.q_lora_rank": 64 if architecture == "deepseek4" else 96,
        "attention.kv_lora_rank": 64,
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
        "rope.dimension_sections": [sizes.head_length // 4] * 4,
    }


def _attention_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    heads: KeyValue = sizes.heads
    kv_heads: KeyValue = sizes.kv_heads
    if architecture in HYBRIDS_BY_HEADS or architecture.startswith("nemotron_h"):
        kv_heads = [0 if i % 2 else sizes.kv_heads for i in range(sizes.layers)]
    keys: dict[str, KeyValue] = {
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.sliding_window": WINDOW_TOKENS,
    }
    if architecture in LISTED_WINDOWS:
        # gemma4: the layers that lend their caches are a windowed one and then a full one
        first = 1 if architecture == "gemma4" else 0
        keys["attention.sliding_window_pattern"] = [(i + first) % 2 for i in range(sizes.layers)]
    if architecture in LATENT:
        rope_length = 0 if architecture == "glm5-next" else 32
        keys |= {
            "attention.key_length": 64 + rope_length,
            "attention.value_length": 64,
            "attention.key_length_mla": 64,
            "attention.value_length_mla": 48,
            "rope.dimension_count": rope_length,
        }
    elif architecture not in ("openelm", "gptneox", "plm", "minicpm3"):
        keys |= {
            "attention.key_length": sizes.head_length,
            "attention.value_length": sizes.head_length,
            "rope.dimension_count": sizes.head_length,
        }
    if architecture in ("minicpm3", "plm"):
        keys |= {
            "attention.key_length": 96,
            "attention.value_length": sizes.width // sizes.heads,
            "rope.dimension_count": 32,
        }
    if architecture == "gemma4":
        keys |= {"attention.key_length_swa": 32, "attention.value_length_swa": 32}
    return keys


def _recurrent_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    delta = architecture in ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")
    keys: dict[str, KeyValue] = {
        "ssm.inner_size": 256 if delta else 2 * sizes.width,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128 if delta else 64,
        "ssm.time_step_rank": 2 if delta else sizes.heads,
        "ssm.group_count": 0 if architecture == "plamo2" else 2,
        "kda.head_dim": 64,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": sizes.head_length,
        "shortconv.l_cache": 3,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "full_attention_interval": 2,
    }
    if architecture in ("arwkv7", "rwkv6qwen2"):
        keys["token_shift_count"] = 1
    if architecture in ("rwkv7", "arwkv7"):
        keys |= {
            "attention.decay_lora_rank": 32,
            "attention.iclr_lora_rank": 32,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 32,
        }
    if architecture.startswith("nemotron_h"):
        # a layer does one thing: it attends, recurs, or is a network of its own
        keys["feed_forward_length"] = [
            sizes.feed_forward if i == sizes.layers - 1 else 0 for i in range(sizes.layers)
        ]
    return keys


def _indexer_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    keys: dict[str, KeyValue] = {
        "attention.indexer.head_count": sizes.kv_heads if architecture == "minimax-m3" else 8,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 1024,
        "attention.indexer.block_size": 4,
        "attention.indexer.kpool": 4,
        "attention.indexer.kpool_select_tail": True,
        "attention.indexer.local_blocks": 1,
    }
    if architecture in ("dots3note", "hy_v4", "glm-dsa", "glm5-next"):
        # full-attention layers of dots3note are the even ones, and layer 0 must own an indexer
        keys["attention.indexer.types"] = [1 - i % 2 for i in range(sizes.layers)]
    return keys


def _special_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    match architecture:
        case "dots3note":
            return {
                "attention.kv_lora_rank_swa": 64,
                "attention.key_length_swa": 96,
                "attention.value_length_swa": 64,
                "attention.key_length_mla_swa": 64,
                "attention.value_length_mla_swa": 48,
                "rope.freq_base_swa": 10000.0,
            }
        case "gemma4":
            return {
                "embedding_length_per_layer_input": 64,
                "attention.shared_kv_layers": 2,
                "rope.freq_base_swa": 10000.0,
            }
        case "deepseek4":
            return {
                "attention.output_group_count": 8,
                "attention.output_lora_rank": 32,
                "attention.compress_ratios": [0, 0, 4, 128],
                "attention.compress_rope_freq_base": 160000.0,
                "hyper_connection.count": 4,
                "hyper_connection.sinkhorn_iterations": 2,
                "hyper_connection.epsilon": 1e-6,
                "hash_layer_count": 0,
                "swiglu_clamp_exp": 10.0,
                "rope.dimension_count": sizes.head_length // 2,
            }
        case "hy_v4":
            return {
                "hyper_connection.count": 4,
                "hyper_connection.epsilon": 1e-6,
                "hyper_connection.magnitude": 2.0,
                "swiglu_clamp_exp": 10.0,
            }
        case "qwen4exp" | "glm5-next":
            return _hyper_connection_keys(sizes)
        case "hrm_text":
            return {"hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2}
        case "maple":
            return {"swiglu_clamp_exp": 7.0}
        case "bailingmoe3":
            return {"rope.dimension_sections": [4, 6, 6, 0]}
        case "graniteswitch":
            return {
                "adapters.count": 2,
                "adapters.lora_rank": 8,
                "adapters.token_ids_activate": [3, 4],
                "adapters.token_ids_substitute": [5, 6],
            }
        case "nanbeige":
            return {"num_loops": 2}
        case _:
            return {}


def _hyper_connection_keys(sizes: Sizes) -> dict[str, KeyValue]:
    parts = 4  # (ngram_size - 1) * heads_per_ngram
    return {
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.low_rank": 8,
        "attention.compress_ratios": [4] * sizes.layers,
        "ple.layers": [0],
        "ple.ngram_size": 3,
        "ple.heads_per_ngram": 2,
        "ple.conv_kernel": 4,
        "ple.eos_token_id": 0,
        "embedding_length_per_layer_input": sizes.width // parts,
        "ple.layer_multipliers": [U64(n) for n in (1, 3, 5)],
        "ple.head_offsets": [U64(h * VOCABULARY) for h in range(parts)],
        "ple.head_vocab_sizes": [U64(VOCABULARY)] * parts,
    }


def _expert_keys(architecture: str, sizes: Sizes) -> dict[str, KeyValue]:
    return {
        "expert_feed_forward_length": sizes.feed_forward,
        "expert_shared_feed_forward_length": sizes.feed_forward // 2,
        "expert_latent_length": sizes.feed_forward,
        "interleave_moe_layer_step": 2,
        "moe_every_n_layers": 2,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_gating_func": 4 if architecture == "deepseek4" else 2,
        "expert_group_scale": 1.0,
        "experts_per_group": 1,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "expert_chunk_feed_forward_length": 64,
    }
