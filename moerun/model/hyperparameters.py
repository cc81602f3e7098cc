"""The numbers that shape a model's layers, read as the engine reads them.

Beliefs: `load_hparams` in src/llama-model.cpp, `load_arch_hparams` in src/models/*.cpp, getters
in src/llama-hparams.cpp @ llama-cpp-python 0.3.36 - checked by tests/test_hyperparameters.py and,
against the engine's own log, by tests/engine/test_state_bytes.py.

Knows: defaults, per-layer values, windows, which layers are recurrent, sizes of their state.
Does not know: tensors, cells, or bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from moerun.model import architectures
from moerun.model.architectures import WindowRule, WindowSource
from moerun.model.keys import Keys

# the engine aborts on any other - LLAMA_ROPE_SCALING_TYPES, src/llama-model.cpp
_ROPE_SCALINGS: Final = frozenset({"none", "linear", "yarn", "longrope"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """What the keys say of all blocks; tuples have one item for each."""

    block_count: int
    prediction_blocks: int
    context_tokens: int
    embedding_length: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    feed_forward: tuple[int, ...]
    expert_count: int
    experts_used: tuple[int, ...]
    key_length: int
    value_length: int
    window_key_length: int
    window_value_length: int
    rope_length: int
    windowed: tuple[bool, ...]
    window_tokens: int
    recurrent: tuple[bool, ...]

    @property
    def trunk_blocks(self) -> int:
        """Blocks that predict the next token, without those that predict the ones after it."""
        return self.block_count - self.prediction_blocks

    def head_key_length(self, layer: int) -> int:
        """Return the length of one key of a layer."""
        return self.window_key_length if self.windowed[layer] else self.key_length

    def head_value_length(self, layer: int) -> int:
        """Return the length of one value of a layer."""
        return self.window_value_length if self.windowed[layer] else self.value_length

    def key_values(self, layer: int) -> int:
        """Return the numbers in all keys that a layer keeps for a token."""
        return self.head_key_length(layer) * self.kv_heads[layer]

    def value_values(self, layer: int) -> int:
        """Return the numbers in all values that a layer keeps for a token."""
        return self.head_value_length(layer) * self.kv_heads[layer]


def read_hyperparameters(keys: Keys, has_tensor: Callable[[str], bool]) -> HyperParameters:
    """Read and check the shape of a model; UnsupportedModel where the engine would stop."""
    blocks = keys.required("block_count")
    if not 1 <= blocks <= architectures.MAX_LAYERS:
        raise keys.refusal(
            f"has {blocks} layers, and the engine takes 1 to {architectures.MAX_LAYERS}"
        )
    prediction = _prediction_blocks(keys, blocks, has_tensor)
    trunk = blocks - prediction
    embedding = keys.required("embedding_length")
    if embedding == 0:
        raise keys.refusal("has an embedding length of 0")
    context_tokens = keys.required("context_length")
    if context_tokens == 0:
        raise keys.refusal("has a context length of 0")
    keys.one_of("rope.scaling.type", _ROPE_SCALINGS)
    heads = keys.per_layer("attention.head_count", (0,) * blocks)
    kv_heads = keys.per_layer("attention.head_count_kv", heads)
    feed_forward = keys.per_layer("feed_forward_length", (0,) * blocks)
    _check_heads(keys, heads)
    expert_count, experts_used = _read_experts(keys, blocks)
    key_length, value_length = _head_lengths(keys, embedding, heads[0])
    recurrent = _recurrent_layers(keys, kv_heads, feed_forward, trunk)
    windowed, window_tokens = _windows(keys, blocks, trunk, recurrent)
    hyper = HyperParameters(
        block_count=blocks,
        prediction_blocks=prediction,
        context_tokens=context_tokens,
        embedding_length=embedding,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=feed_forward,
        expert_count=expert_count,
        experts_used=experts_used,
        key_length=key_length,
        value_length=value_length,
        window_key_length=keys.optional("attention.key_length_swa", key_length),
        window_value_length=keys.optional("attention.value_length_swa", value_length),
        rope_length=keys.optional("rope.dimension_count", key_length) if heads[0] else 0,
        windowed=windowed,
        window_tokens=window_tokens,
        recurrent=recurrent,
    )
    return _with_added_blocks(keys, hyper)


def _with_added_blocks(keys: Keys, hyper: HyperParameters) -> HyperParameters:
    """Return the blocks as the engine counts them, those it adds to the file's included."""
    blocks = hyper.block_count
    if keys.architecture == "nanbeige":
        loops = keys.optional("num_loops", 1)
        if not 1 <= loops <= architectures.MAX_LAYERS // blocks:
            raise keys.refusal(f"has {blocks} layers that run {loops} times over")
        return replace(
            hyper,
            block_count=blocks * loops,
            heads=hyper.heads * loops,
            kv_heads=hyper.kv_heads * loops,
            feed_forward=hyper.feed_forward * loops,
            experts_used=hyper.experts_used * loops,
            windowed=hyper.windowed * loops,
            recurrent=hyper.recurrent * loops,
        )
    if keys.architecture == "graniteswitch":
        if blocks >= architectures.MAX_LAYERS:
            raise keys.refusal(f"has {blocks} layers and needs one more for its switch")
        return replace(
            hyper,
            block_count=blocks + 1,
            prediction_blocks=1,
            heads=(*hyper.heads, 1),
            kv_heads=(*hyper.kv_heads, 1),
            feed_forward=(*hyper.feed_forward, 0),
            experts_used=(*hyper.experts_used, 0),
            windowed=(*hyper.windowed, False),
            recurrent=(*hyper.recurrent, False),
        )
    return hyper


def _prediction_blocks(keys: Keys, blocks: int, has_tensor: Callable[[str], bool]) -> int:
    prediction = keys.optional("nextn_predict_layers", 0)
    if prediction > blocks:
        raise keys.refusal(f"has {blocks} layers and claims {prediction} of them for drafts")
    if prediction and keys.architecture == "deepseek4":
        # files without the block say so only by its absence - src/models/deepseek4.cpp
        return prediction if has_tensor(f"blk.{blocks - prediction}.nextn.eh_proj.weight") else 0
    if prediction == blocks:
        raise keys.refusal(
            "holds only blocks for speculative decoding, and its main file is what runs"
        )
    return prediction


def _check_heads(keys: Keys, heads: tuple[int, ...]) -> None:
    if keys.architecture in architectures.RECURRENT:
        return
    if not any(heads):
        raise keys.refusal("has no attention heads (attention.head_count), and needs some")


def _read_experts(keys: Keys, blocks: int) -> tuple[int, tuple[int, ...]]:
    count = keys.optional("expert_count", 0)
    used = keys.per_layer("expert_used_count", (0,) * blocks)
    if keys.architecture in ("hunyuan_vl", "hunyuan-dense") and count <= 1:
        return 0, (0,) * blocks
    most = max(used)
    if count > architectures.MAX_EXPERTS:
        raise keys.refusal(
            f"has {count} experts, and the engine takes at most {architectures.MAX_EXPERTS}"
        )
    if most > count or (count and not most):
        raise keys.refusal(f"has {count} experts and claims to use {most} of them for each token")
    if count == 0 and keys.architecture in architectures.REQUIRED_EXPERT_COUNT:
        raise keys.refusal("has no experts (expert_count), and is a mixture of experts")
    groups = keys.optional("expert_group_count", 0)
    used_groups = keys.optional("expert_group_used_count", 0)
    if groups and groups >= count:
        raise keys.refusal(f"has {count} experts in {groups} groups")
    if groups > 1 and (count % groups or not 0 < used_groups < groups):
        raise keys.refusal(
            f"has {count} experts in {groups} groups and claims to use {used_groups} of them"
        )
    return count, used


def _head_lengths(keys: Keys, embedding: int, first_heads: int) -> tuple[int, int]:
    # plamo2 begins with a recurrent layer and reads the lengths all the same
    if first_heads == 0 and keys.architecture != "plamo2":
        return 0, 0
    default = embedding // first_heads if first_heads else 0
    return (
        keys.optional("attention.key_length", default),
        keys.optional("attention.value_length", default),
    )


def _recurrent_layers(
    keys: Keys, kv_heads: tuple[int, ...], feed_forward: tuple[int, ...], trunk: int
) -> tuple[bool, ...]:
    name, blocks = keys.architecture, len(kv_heads)
    if name in architectures.RECURRENT or name in architectures.RECURRENT_AND_ATTENTION:
        return (True,) * blocks
    if name in architectures.RECURRENT_WITHOUT_KV_HEADS:
        limit = blocks if name == "glm5-next" else trunk
        return tuple(heads == 0 and i < limit for i, heads in enumerate(kv_heads))
    if name in architectures.NEMOTRON_HYBRIDS:
        return tuple(
            heads == 0 and feed_forward[i] == 0 and i < trunk for i, heads in enumerate(kv_heads)
        )
    interval = architectures.RECURRENT_BY_INTERVAL.get(name)
    if interval is None:
        return (False,) * blocks
    if keys.has("attention.recurrent_layers"):
        return tuple(bool(n) for n in keys.per_layer("attention.recurrent_layers", (0,) * blocks))
    interval = keys.optional("full_attention_interval", interval)
    if interval == 0:
        raise keys.refusal("has a full_attention_interval of 0")
    return tuple(i < trunk and (i + 1) % interval != 0 for i in range(blocks))


def _windows(
    keys: Keys, blocks: int, trunk: int, recurrent: tuple[bool, ...]
) -> tuple[tuple[bool, ...], int]:
    """Return which layers attend within a window, and its length (0: none does)."""
    none = (False,) * blocks
    name = keys.architecture
    if name in architectures.WINDOW_ON_ALL_ATTENTION:
        length = keys.optional("attention.sliding_window", 0)
        layers = tuple(i < trunk and not recurrent[i] for i in range(blocks))
        return (layers, length) if length else (none, 0)
    rule = architectures.WINDOWS.get(name)
    if rule is None or rule.only_with_layers not in (None, trunk):
        return none, 0
    window_tokens = _window_length(keys, rule)
    if window_tokens is None:
        return none, 0
    layers = _windowed_layers(keys, rule, blocks, trunk)
    if not any(layers):
        # the engine asserts that one layer has a window - create_memory, src/llama-model.cpp
        raise keys.refusal(f"has a window of {window_tokens} tokens and no layer that uses it")
    return layers, window_tokens


def _window_length(keys: Keys, rule: WindowRule) -> int | None:
    name = "attention.sliding_window"
    match rule.source:
        case WindowSource.REQUIRED:
            return keys.required(name)
        case WindowSource.OPTIONAL:
            return keys.optional(name, 0) or None
        case WindowSource.DEFAULTED:
            return keys.optional(name, rule.length_tokens)
        case WindowSource.FIXED:
            return rule.length_tokens if keys.optional(name, 0) else None
        case WindowSource.CHUNKED:
            return rule.length_tokens if keys.optional(name, rule.length_tokens) else None


def _windowed_layers(keys: Keys, rule: WindowRule, blocks: int, trunk: int) -> tuple[bool, ...]:
    name = "attention.sliding_window_pattern"
    flags = keys.flags(name, blocks)
    if flags is not None and rule.period != 0:
        return flags
    if rule.period is None:
        raise keys.refusal(f"has no list of windowed layers ({name}), which the engine needs")
    if rule.period == 0:
        return (True,) * blocks
    period = keys.optional(name, rule.period)
    if period == 0:
        return tuple(i < trunk for i in range(blocks))
    if rule.full_layer_first:
        return tuple(i < trunk and i % period != 0 for i in range(blocks))
    return tuple(i < trunk and i % period < period - 1 for i in range(blocks))
