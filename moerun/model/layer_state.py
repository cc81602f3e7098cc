"""What each layer keeps between tokens: keys and values, latents, recurrent state.

Beliefs: which memory an architecture gets, and which layers are in it - `create_memory` in
src/llama-model.cpp; the sizes of recurrent rows - `n_embd_r`, `n_embd_s` in
src/llama-hparams.cpp @ llama-cpp-python 0.3.36 - checked against the engine's own log by
tests/engine/test_state_bytes.py.

Knows: which layer keeps what for a token or a sequence.
Does not know: cells, encodings, bytes (`moerun.model.state` does).
"""

from dataclasses import dataclass
from typing import Final

from moerun.model import architectures
from moerun.model.description import AttentionSpec, CompressedSpec, LatentSpec, RecurrentSpec
from moerun.model.hyperparameters import HyperParameters
from moerun.model.keys import Keys

# CSA and HCA of DeepSeek-V4 - src/llama-kv-cache-dsv4.cpp @ 0.3.36
FINE_COMPRESSION: Final = 4
COARSE_COMPRESSION: Final = 128

GLM_DSA_SHARED_CONTEXT_TOKENS: Final = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """What one layer keeps; None where it keeps none of that kind."""

    attention: AttentionSpec | LatentSpec | CompressedSpec | None
    recurrent: RecurrentSpec | None


def layer_states(keys: Keys, hyper: HyperParameters) -> tuple[LayerState, ...]:
    """Return what every block keeps; UnsupportedModel when a key that this needs is missing."""
    name = keys.architecture
    if name in architectures.WITHOUT_MEMORY:
        return (LayerState(attention=None, recurrent=None),) * hyper.block_count
    if name == "deepseek4":
        return _compressed_states(keys, hyper)
    attends, recurs = _membership(name, hyper)
    widest = max(hyper.value_values(layer) for layer in range(hyper.block_count))
    shapes = _Shapes(keys=keys, hyper=hyper, widest_value_values=widest)
    row = shapes.recurrent_row() if any(recurs) else None
    return tuple(
        LayerState(
            attention=shapes.attention(layer) if attends[layer] else None,
            recurrent=shapes.with_history(row, layer) if row and recurs[layer] else None,
        )
        for layer in range(hyper.block_count)
    )


def _membership(name: str, hyper: HyperParameters) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Return which blocks have a key-value cache, and which a recurrent state."""
    blocks, trunk = hyper.block_count, hyper.trunk_blocks
    in_trunk = tuple(layer < trunk for layer in range(blocks))
    if name in architectures.RECURRENT:
        return (False,) * blocks, in_trunk
    if name in architectures.RECURRENT_AND_ATTENTION:
        return (True,) * blocks, in_trunk
    if name in architectures.NEMOTRON_HYBRIDS:
        bare = tuple(length == 0 for length in hyper.feed_forward)
        return (
            tuple(not r and b for r, b in zip(hyper.recurrent, bare, strict=True)),
            tuple(r and b for r, b in zip(hyper.recurrent, bare, strict=True)),
        )
    if name in architectures.RECURRENT_BY_INTERVAL or name == "glm5-next":
        return (
            tuple(not r and t for r, t in zip(hyper.recurrent, in_trunk, strict=True)),
            tuple(r and t for r, t in zip(hyper.recurrent, in_trunk, strict=True)),
        )
    if name in architectures.RECURRENT_WITHOUT_KV_HEADS:
        return (
            tuple(not r for r in hyper.recurrent),
            tuple(r and t for r, t in zip(hyper.recurrent, in_trunk, strict=True)),
        )
    if name in ("graniteswitch", "hy_v4", "minimax-m3"):
        return (True,) * blocks, (False,) * blocks
    return in_trunk, (False,) * blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    """The shapes of what layers of one model keep."""

    keys: Keys
    hyper: HyperParameters
    widest_value_values: int

    def attention(self, layer: int) -> AttentionSpec | LatentSpec | None:
        """Return what the cache of a layer keeps; None where it shares another layer's."""
        if layer >= self._layers_with_own_cache():
            return None
        window = self.hyper.window_tokens if self.hyper.windowed[layer] else None
        if self._is_latent():
            values = self.hyper.key_values(layer)
            rope_length = min(self.hyper.rope_length, values)
            return LatentSpec(
                latent_length=values - rope_length,
                rope_length=rope_length,
                window_tokens=window,
                indexer_length=self._indexer_length(layer),
            )
        indexer_length = self._indexer_length(layer)
        # the indexer of qwen4exp is told to be latent, the others keep a value beside the key
        keeps_value = indexer_length > 0 and self.keys.architecture != "qwen4exp"
        return AttentionSpec(
            kv_heads=self.hyper.kv_heads[layer],
            key_length=self.hyper.head_key_length(layer),
            value_length=self.hyper.head_value_length(layer),
            window_tokens=window,
            indexer_key_length=indexer_length,
            indexer_value_length=self.hyper.head_value_length(layer) if keeps_value else 0,
            widest_value_values=self.widest_value_values,
        )

    def recurrent_row(self) -> RecurrentSpec:
        """Return what one recurrent layer keeps for a sequence."""
        keys, hyper = self.keys, self.hyper
        if keys.architecture in architectures.READS_WKV:
            shifts = keys.optional("token_shift_count", 2)
            head_size = keys.required("wkv.head_size")
            return RecurrentSpec(
                convolution_values=shifts * hyper.embedding_length,
                state_values=head_size * hyper.embedding_length,
            )
        if keys.architecture in architectures.READS_SHORT_CONVOLUTION:
            taps = keys.required("shortconv.l_cache")
            if taps == 0:
                raise keys.refusal("has a short convolution of length 0")
            return RecurrentSpec(
                convolution_values=hyper.embedding_length * (taps - 1), state_values=0
            )
        return self._delta_row()

    def with_history(self, row: RecurrentSpec, layer: int) -> RecurrentSpec:
        """Return the row of a layer, with the history of per-layer embeddings where it has one."""
        history = self._embedding_history(layer)
        if not history:
            return row
        return RecurrentSpec(
            convolution_values=row.convolution_values + history, state_values=row.state_values
        )

    def _delta_row(self) -> RecurrentSpec:
        keys, heads = self.keys, self.hyper.heads[0]
        kernel = keys.optional("ssm.conv_kernel", 0)
        if keys.architecture in architectures.READS_KDA:
            head_size = keys.required("kda.head_dim")
            taps = kernel - 1 if kernel else 3
            return RecurrentSpec(
                convolution_values=3 * taps * heads * head_size,
                state_values=head_size * head_size * heads,
            )
        if keys.architecture == "minimax-01":  # the state alone, and no convolution before it
            length = self.hyper.key_length
            return RecurrentSpec(convolution_values=0, state_values=length * length * heads)
        inner = keys.optional("ssm.inner_size", 0)
        state = keys.optional("ssm.state_size", 0)
        groups = 0
        if keys.architecture not in architectures.WITHOUT_STATE_GROUPS:
            groups = keys.optional("ssm.group_count", 0)
        if not (kernel and inner and state):
            raise keys.refusal(
                "has recurrent layers without ssm.conv_kernel, ssm.inner_size and ssm.state_size"
            )
        return RecurrentSpec(
            convolution_values=(kernel - 1) * (inner + 2 * groups * state),
            state_values=state * inner,
        )

    def _layers_with_own_cache(self) -> int:
        blocks = self.hyper.block_count
        match self.keys.architecture:
            case "gemma3n":
                shared = max(blocks - 20, 0)
            case "gemma4":
                shared = self.keys.optional("attention.shared_kv_layers", 0)
            case _:
                return blocks
        if shared:
            self._check_lenders(blocks - shared, shared)
        return blocks - shared

    def _check_lenders(self, own: int, shared: int) -> None:
        """Refuse caches that no layer of the same kind lends; the engine would abort."""
        for borrower in range(max(own, 0), self.hyper.block_count):
            windowed = self.hyper.windowed[borrower]
            lender = own - (2 if windowed else 1)
            if own < 2 or self.hyper.windowed[lender] is not windowed:
                raise self.keys.refusal(
                    f"has {shared} layers that share caches, and layer {borrower} finds none"
                )

    def _is_latent(self) -> bool:
        keys = self.keys
        return keys.architecture in architectures.READS_LATENT_KEYS and bool(
            keys.optional("attention.key_length_mla", 0)
            and keys.optional("attention.value_length_mla", 0)
        )

    def _indexer_length(self, layer: int) -> int:
        keys, name = self.keys, self.keys.architecture
        if name not in architectures.INDEXED:
            return 0
        length = keys.optional("attention.indexer.key_length", 0)
        match name:
            case "minimax-m3":
                lead = keys.optional("leading_dense_block_count", 0)
                return length if layer >= lead else 0
            case "qwen4exp":
                return length
            case "hy_v4" if keys.optional("attention.indexer.top_k", 0) == 0:
                return 0
            case "glm5-next":
                pooled = 3 if keys.optional("attention.indexer.kpool", 0) else 1
                return length * pooled if self._has_own_indexer(layer) else 0
            case _:
                return length if self._has_own_indexer(layer) else 0

    def _has_own_indexer(self, layer: int) -> bool:
        trunk = self.hyper.trunk_blocks
        if layer >= trunk:
            return False
        own: tuple[int, ...] = (1,) * trunk
        match self.keys.architecture:
            case "deepseek32":
                return True
            case "glm-dsa" if self.hyper.context_tokens >= GLM_DSA_SHARED_CONTEXT_TOKENS:
                # GLM_5_2_DEFAULT_INDEXER_TYPES - src/models/glm-dsa.cpp @ 0.3.36
                own = tuple(int(i < 2 or i % 4 == 2) for i in range(trunk))
            case "hy_v4":
                own = (0,) * trunk
            case "dots3note":
                flags = self.keys.flags("attention.indexer.types", trunk)
                if flags is None:
                    raise self.keys.refusal("has no attention.indexer.types")
                return flags[layer]
            case _:
                pass
        return bool(self.keys.per_layer("attention.indexer.types", own)[layer])

    def _embedding_history(self, layer: int) -> int:
        keys = self.keys
        if keys.architecture != "qwen4exp" or not keys.has("ple.layers"):
            return 0
        if layer not in keys.whole_numbers("ple.layers"):
            return 0
        taps = keys.optional("ple.conv_kernel", 0)
        span = keys.optional("ple.ngram_size", 0)
        streams = keys.optional("hyper_connection.count", 0)
        return max(taps - 1, 0) * span * streams * self.hyper.embedding_length


def _compressed_states(keys: Keys, hyper: HyperParameters) -> tuple[LayerState, ...]:
    ratios = keys.whole_numbers("attention.compress_ratios")
    if len(ratios) < hyper.block_count:
        raise keys.refusal(
            f"has {len(ratios)} values in attention.compress_ratios and {hyper.block_count} layers"
        )
    indexer = keys.required("attention.indexer.key_length")
    states: list[LayerState] = []
    for layer in range(hyper.block_count):
        head = hyper.head_key_length(layer)
        fine = ratios[layer] == FINE_COMPRESSION
        values = 0
        if fine:  # keys and scores of two windows, for the attention and for its indexer
            values = 2 * 2 * FINE_COMPRESSION * 2 * (head + indexer)
        elif ratios[layer] == COARSE_COMPRESSION:
            values = 2 * COARSE_COMPRESSION * head
        states.append(
            LayerState(
                attention=CompressedSpec(
                    key_values=hyper.key_values(layer),
                    window_tokens=hyper.window_tokens,
                    compression=ratios[layer] if values else 0,
                    indexer_length=indexer if fine else 0,
                    state_values=values if layer < hyper.trunk_blocks else 0,
                ),
                recurrent=None,
            )
        )
    return tuple(states)
