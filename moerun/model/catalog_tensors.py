"""The tensors that a model of the catalogue consists of, from the keys of its header.

Beliefs: `load_arch_tensors` in src/models/*.cpp @ llama-cpp-python 0.3.36, one function below for
each family of them - checked by tests/test_catalog.py, which holds the sums to published parameter
counts, and by what moerun.model.support refuses.

Knows: names and shapes, by architecture.
Does not know: encodings, files, or which models there are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from moerun.model.mixtures import TensorSketch

KeyItem = int | float | str | bool | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a model, under the names that its header has for them.

    `extras` are what no key tells: a tensor that only some models of an architecture have.
    """

    architecture: str
    keys: Mapping[str, KeyItem]
    vocabulary_size: int
    is_tied: bool
    extras: frozenset[str] = frozenset()

    def number(self, key: str, default: int | None = None) -> int:
        """Return a whole number; KeyError when it is absent and has no default."""
        value = self.keys.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise KeyError(key)
        return value

    def of_layer(self, key: str, layer: int) -> int:
        """Return the number of one layer where there is one for each, else that of all."""
        value = self.keys[key]
        return value[layer] if isinstance(value, tuple) else self.number(key)

    @property
    def width(self) -> int:
        """The length of what flows between layers."""
        return self.number("embedding_length")

    @property
    def heads(self) -> int:
        """Heads that ask."""
        return self.number("attention.head_count")

    @property
    def key_length(self) -> int:
        """Numbers in one key."""
        return self.number("attention.key_length", self.width // self.heads)

    @property
    def blocks(self) -> int:
        """All blocks, those for further tokens included."""
        return self.number("block_count")

    @property
    def trunk_blocks(self) -> int:
        """The blocks without those for further tokens."""
        return self.blocks - self.number("nextn_predict_layers", 0)

    def kv_heads(self, layer: int) -> int:
        """Heads that are kept in the cache."""
        return self.of_layer("attention.head_count_kv", layer)

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer keeps a state in place of keys and values."""
        interval = self.number("full_attention_interval", 0)
        if interval:
            return (layer + 1) % interval != 0
        return isinstance(self.keys["attention.head_count_kv"], tuple) and not self.kv_heads(layer)


Rows = Iterator[tuple[str, tuple[int, ...]]]
_Layer = Callable[[Shape, int], Rows]


def sketch_tensors(shape: Shape) -> tuple[TensorSketch, ...]:
    """Return every tensor of a model; KeyError when its architecture has no rule here."""
    layer_rows = _LAYERS[shape.architecture]
    rows = list(_shared(shape))
    for layer in range(shape.blocks):
        rows += [(f"blk.{layer}.{name}", dims) for name, dims in layer_rows(shape, layer)]
        if layer >= shape.trunk_blocks:
            rows += [(f"blk.{layer}.nextn.{name}", dims) for name, dims in _prediction(shape)]
    return tuple(TensorSketch(name=name, shape=dims) for name, dims in rows)


def _shared(shape: Shape) -> Rows:
    yield "token_embd.weight", (shape.width, shape.vocabulary_size)
    norm = "token_embd_norm" if shape.architecture == "lfm2moe" else "output_norm"
    yield f"{norm}.weight", (shape.width,)
    if not shape.is_tied:
        yield "output.weight", (shape.width, shape.vocabulary_size)
    if shape.architecture == "phimoe":
        yield "output.bias", (shape.vocabulary_size,)
        yield "output_norm.bias", (shape.width,)
        for part in ("long", "short"):
            yield f"rope_factors_{part}.weight", (shape.number("rope.dimension_count") // 2,)
    if "rope_freqs" in shape.extras:
        yield "rope_freqs.weight", (shape.number("rope.dimension_count") // 2,)


def _prediction(shape: Shape) -> Rows:
    yield "eh_proj.weight", (2 * shape.width, shape.width)
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        yield f"{norm}.weight", (shape.width,)
    for matrix in ("embed_tokens", "shared_head_head"):
        yield f"{matrix}.weight", (shape.width, shape.vocabulary_size)


def _attention(shape: Shape, layer: int, *, query_share: int = 1) -> Rows:
    """Yield queries, keys, values, output, and their biases where the model has them."""
    length, kept = shape.key_length, shape.kv_heads(layer) * shape.key_length
    asked = shape.heads * length
    for part, rows in (("q", asked * query_share), ("k", kept), ("v", kept)):
        yield f"attn_{part}.weight", (shape.width, rows)
        if "qkv_bias" in shape.extras:
            yield f"attn_{part}.bias", (rows,)
    yield "attn_output.weight", (asked, shape.width)
    if "output_bias" in shape.extras:
        yield "attn_output.bias", (shape.width,)


def _head_norms(shape: Shape) -> Rows:
    for part in ("q", "k"):
        yield f"attn_{part}_norm.weight", (shape.key_length,)


def _wide_norms(shape: Shape, layer: int) -> Rows:
    yield "attn_q_norm.weight", (shape.heads * shape.key_length,)
    yield "attn_k_norm.weight", (shape.kv_heads(layer) * shape.key_length,)


def _norms(shape: Shape, *names: str) -> Rows:
    for name in names:
        yield f"{name}.weight", (shape.width,)


def _network(shape: Shape, inner: int, suffix: str = "") -> Rows:
    for part, dims in (("gate", (shape.width, inner)), ("up", (shape.width, inner))):
        yield f"ffn_{part}{suffix}.weight", dims
    yield f"ffn_down{suffix}.weight", (inner, shape.width)


def _experts(shape: Shape, inner: int) -> Rows:
    count = shape.number("expert_count")
    yield "ffn_gate_inp.weight", (shape.width, count)
    for name, dims in _network(shape, inner, "_exps"):
        yield name, (*dims, count)


def _router_bias(shape: Shape) -> Rows:
    yield "exp_probs_b.bias", (shape.number("expert_count"),)


def _dense_or_sparse(shape: Shape, layer: int, *, shared: int) -> Rows:
    """Yield a dense network in the leading layers, experts with a corrected router in others."""
    if layer < shape.number("leading_dense_block_count", 0):
        yield from _network(shape, shape.number("feed_forward_length"))
        return
    yield from _experts(shape, shape.number("expert_feed_forward_length"))
    if "router_without_bias" not in shape.extras:
        yield from _router_bias(shape)
    if shared:
        yield from _network(shape, shared, "_shexp")


def _shared_width(shape: Shape) -> int:
    each = shape.number("expert_feed_forward_length")
    return shape.number("expert_shared_feed_forward_length", 0) or (
        each * shape.number("expert_shared_count", 0)
    )


def _qwen3moe(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield from _attention(shape, layer)
    yield from _head_norms(shape)
    yield from _experts(shape, shape.number("expert_feed_forward_length"))


def _llama(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield from _attention(shape, layer)
    yield from _experts(shape, shape.number("feed_forward_length"))


def _olmoe(shape: Shape, layer: int) -> Rows:
    yield from _llama(shape, layer)
    yield from _wide_norms(shape, layer)


def _minimax_m2(shape: Shape, layer: int) -> Rows:
    yield from _olmoe(shape, layer)
    yield from _router_bias(shape)


def _phimoe(shape: Shape, layer: int) -> Rows:
    yield from _llama(shape, layer)
    for norm in ("attn_norm", "ffn_norm"):
        yield f"{norm}.bias", (shape.width,)


def _hunyuan(shape: Shape, layer: int) -> Rows:
    yield from _llama(shape, layer)
    yield from _head_norms(shape)
    yield from _network(shape, _shared_width(shape), "_shexp")


def _gpt_oss(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "post_attention_norm")
    yield from _attention(shape, layer)
    yield "attn_sinks.weight", (shape.heads,)
    inner, count = shape.number("expert_feed_forward_length"), shape.number("expert_count")
    yield from _experts(shape, inner)
    yield "ffn_gate_inp.bias", (count,)
    for part, rows in (("gate", inner), ("up", inner), ("down", shape.width)):
        yield f"ffn_{part}_exps.bias", (rows, count)


def _deepseek2(shape: Shape, layer: int) -> Rows:
    rank, rope = shape.number("attention.kv_lora_rank"), shape.number("rope.dimension_count")
    key, value = (shape.number(f"attention.{part}_length_mla") for part in ("key", "value"))
    queries = shape.heads * key
    yield from _norms(shape, "attn_norm", "ffn_norm")
    if asked := shape.number("attention.q_lora_rank", 0):
        yield "attn_q_a.weight", (shape.width, asked)
        yield "attn_q_a_norm.weight", (asked,)
        yield "attn_q_b.weight", (asked, queries)
    else:
        yield "attn_q.weight", (shape.width, queries)
    yield "attn_kv_a_mqa.weight", (shape.width, rank + rope)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_k_b.weight", (key - rope, rank, shape.heads)
    yield "attn_v_b.weight", (rank, value, shape.heads)
    yield "attn_output.weight", (shape.heads * value, shape.width)
    yield from _dense_or_sparse(shape, layer, shared=_shared_width(shape))


def _glm_dsa(shape: Shape, layer: int) -> Rows:
    """Yield a layer of GLM-5: latent attention, and an indexer that chooses what is attended to."""
    yield from _deepseek2(shape, layer)
    heads = shape.number("attention.indexer.head_count")
    length = shape.number("attention.indexer.key_length")
    yield "indexer.k_norm.weight", (length,)
    yield "indexer.k_norm.bias", (length,)
    yield "indexer.proj.weight", (shape.width, heads)
    yield "indexer.attn_k.weight", (shape.width, length)
    yield "indexer.attn_q_b.weight", (shape.number("attention.q_lora_rank"), heads * length)


def _mimo2(shape: Shape, layer: int) -> Rows:
    """Yield a layer of MiMo-V2: values are shorter than keys, and windows have sinks."""
    keys, kept = shape.key_length, shape.kv_heads(layer)
    values = shape.number("attention.value_length")
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield "attn_q.weight", (shape.width, shape.heads * keys)
    yield "attn_k.weight", (shape.width, kept * keys)
    yield "attn_v.weight", (shape.width, kept * values)
    yield "attn_output.weight", (shape.heads * values, shape.width)
    if shape.of_layer("attention.sliding_window_pattern", layer):
        yield "attn_sinks.weight", (shape.heads,)
    yield from _dense_or_sparse(shape, layer, shared=0)


def _granite_hybrid(shape: Shape, layer: int) -> Rows:
    """Yield a layer of Granite 4: it keeps a state or attends, and all have shared experts."""
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield from _mamba2(shape) if shape.is_recurrent(layer) else _attention(shape, layer)
    yield from _experts(shape, shape.number("feed_forward_length"))
    yield from _network(shape, shape.number("expert_shared_feed_forward_length"), "_shexp")


def _glm4moe(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "post_attention_norm")
    yield from _attention(shape, layer)
    if "head_norms" in shape.extras:
        yield from _head_norms(shape)
    yield from _dense_or_sparse(shape, layer, shared=_shared_width(shape))


def _ernie(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield from _attention(shape, layer)
    yield from _dense_or_sparse(shape, layer, shared=_shared_width(shape))


def _bailingmoe2(shape: Shape, layer: int) -> Rows:
    kept = shape.kv_heads(layer) * shape.key_length
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield "attn_qkv.weight", (shape.width, shape.heads * shape.key_length + 2 * kept)
    yield "attn_output.weight", (shape.heads * shape.key_length, shape.width)
    yield from _head_norms(shape)
    yield from _dense_or_sparse(shape, layer, shared=_shared_width(shape))


def _llama4(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "ffn_norm")
    yield from _attention(shape, layer)
    if (layer + 1) % shape.number("interleave_moe_layer_step"):
        yield from _network(shape, shape.number("feed_forward_length"))
        return
    inner = shape.number("expert_feed_forward_length")
    yield from _experts(shape, inner)
    yield from _network(shape, inner, "_shexp")


def _lfm2moe(shape: Shape, layer: int) -> Rows:
    yield from _norms(shape, "attn_norm", "ffn_norm")
    if shape.is_recurrent(layer):
        yield "shortconv.conv.weight", (shape.number("shortconv.l_cache"), shape.width)
        yield "shortconv.in_proj.weight", (shape.width, 3 * shape.width)
        yield "shortconv.out_proj.weight", (shape.width, shape.width)
    else:
        yield from _attention(shape, layer)
        yield from _head_norms(shape)
    yield from _dense_or_sparse(shape, layer, shared=0)


def _qwen_delta(shape: Shape, layer: int) -> Rows:
    """Yield a layer of Qwen3-Next or Qwen3.5: three of four keep a state in place of keys."""
    yield from _norms(shape, "attn_norm", "post_attention_norm")
    if shape.is_recurrent(layer):
        yield from _delta_net(shape)
    else:
        yield from _attention(shape, layer, query_share=2)  # queries and their gates
        yield from _head_norms(shape)
    yield from _experts(shape, shape.number("expert_feed_forward_length"))
    yield "ffn_gate_inp_shexp.weight", (shape.width,)
    yield from _network(shape, _shared_width(shape), "_shexp")


def _delta_net(shape: Shape) -> Rows:
    state, value_heads = shape.number("ssm.state_size"), shape.number("ssm.time_step_rank")
    keys, values = state * shape.number("ssm.group_count"), state * value_heads
    yield "attn_qkv.weight", (shape.width, 2 * keys + values)
    yield "attn_gate.weight", (shape.width, values)
    yield "ssm_conv1d.weight", (shape.number("ssm.conv_kernel"), 2 * keys + values)
    yield "ssm_dt.bias", (value_heads,)
    yield "ssm_a", (value_heads,)
    if shape.architecture == "qwen3next":
        yield "ssm_ba.weight", (shape.width, 2 * value_heads)
    else:
        yield "ssm_beta.weight", (shape.width, value_heads)
        yield "ssm_alpha.weight", (shape.width, value_heads)
    yield "ssm_norm.weight", (state,)
    yield "ssm_out.weight", (values, shape.width)


def _nemotron(shape: Shape, layer: int) -> Rows:
    """Yield a layer of Nemotron-H: it keeps a state, or attends, or is a network."""
    yield from _norms(shape, "attn_norm")
    if inner := shape.of_layer("feed_forward_length", layer):
        count = shape.number("expert_count")
        shared = shape.number("expert_shared_feed_forward_length")
        yield "ffn_gate_inp.weight", (shape.width, count)
        yield from _router_bias(shape)
        yield "ffn_up_exps.weight", (shape.width, inner, count)
        yield "ffn_down_exps.weight", (inner, shape.width, count)
        yield "ffn_up_shexp.weight", (shape.width, shared)
        yield "ffn_down_shexp.weight", (shared, shape.width)
    elif shape.kv_heads(layer):
        yield from _attention(shape, layer)
    else:
        yield from _mamba2(shape)


def _mamba2(shape: Shape) -> Rows:
    inner, heads = shape.number("ssm.inner_size"), shape.number("ssm.time_step_rank")
    groups = shape.number("ssm.group_count")
    convolved = inner + 2 * groups * shape.number("ssm.state_size")
    yield "ssm_in.weight", (shape.width, inner + convolved + heads)
    yield "ssm_conv1d.weight", (shape.number("ssm.conv_kernel"), convolved)
    yield "ssm_conv1d.bias", (convolved,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, shape.width)


_LAYERS: Final[dict[str, _Layer]] = {
    "bailingmoe2": _bailingmoe2,
    "deepseek2": _deepseek2,
    "ernie4_5-moe": _ernie,
    "glm-dsa": _glm_dsa,
    "glm4moe": _glm4moe,
    "gpt-oss": _gpt_oss,
    "granitehybrid": _granite_hybrid,
    "granitemoe": _llama,
    "hunyuan-moe": _hunyuan,
    "lfm2moe": _lfm2moe,
    "llama": _llama,
    "llama4": _llama4,
    "mimo2": _mimo2,
    "minimax-m2": _minimax_m2,
    "nemotron_h_moe": _nemotron,
    "olmoe": _olmoe,
    "phimoe": _phimoe,
    "qwen35moe": _qwen_delta,
    "qwen3moe": _qwen3moe,
    "qwen3next": _qwen_delta,
}
