"""Bytes of what a layer keeps between tokens, exactly as the engine allocates them.

Beliefs, all @ llama-cpp-python 0.3.36 - checked against the engine's own log, byte by byte, by
tests/engine/test_state_bytes.py:
the context is padded to 256 cells, per sequence unless the cache is unified -
src/llama-context.cpp; a windowed layer holds its window and one micro-batch, padded to 256 -
src/llama-kv-cache-iswa.cpp; latent attention and the indexer beside it keep no values, and
without flash attention all value rows are as wide as the widest - src/llama-kv-cache.cpp,
llama-kv-cache-dsa.cpp, llama-memory-hybrid-idx.cpp; DeepSeek-V4 keeps streams per sequence, also
when unified - src/llama-kv-cache-dsv4.cpp; recurrent rows are F32, one per sequence -
src/llama-memory-recurrent.cpp.

Knows: cells and bytes.
Does not know: architectures, devices, or how much context is wanted.
"""

from typing import Final, assert_never

from moerun.model.description import AttentionSpec, CompressedSpec, LatentSpec, Layer, Model
from moerun.model.encodings import BY_NAME, row_bytes

CELL_PADDING: Final = 256
F32_BYTES: Final = 4


def kv_bytes(
    layer: Layer,
    *,
    context_tokens: int,
    ubatch_tokens: int,
    key_encoding: str = "F16",
    value_encoding: str = "F16",
    sequences: int = 1,
    swa_full: bool = False,
    unified: bool = False,
    flash_attention: bool = True,
) -> int:
    """Return the bytes of a layer's key-value cache; 0 when it has none.

    `context_tokens` are shared by all sequences. ValueError when a row of the cache is not whole
    blocks of the encoding, which the engine refuses too.
    """
    spec = layer.attention
    if spec is None:
        return 0
    per_sequence, streams = sequence_cells(
        context_tokens=context_tokens, sequences=sequences, unified=unified
    )
    if isinstance(spec, CompressedSpec):
        return _compressed_bytes(
            spec,
            cells=per_sequence,
            ubatch_tokens=min(ubatch_tokens, context_tokens),
            encoding=key_encoding,
            sequences=sequences,
            swa_full=swa_full,
        )
    cells = per_sequence
    if spec.window_tokens is not None and not swa_full:
        shared_by = sequences if unified else 1
        window = spec.window_tokens * shared_by + min(ubatch_tokens, context_tokens)
        cells = _padded(min(per_sequence, window))
    token_bytes = _token_bytes(spec, key_encoding, value_encoding, flash_attention)
    # the indexer keeps every token, also where the keys themselves are windowed
    indexer_bytes = _indexer_token_bytes(spec, key_encoding, value_encoding)
    return (token_bytes * cells + indexer_bytes * per_sequence) * streams


def kv_encoding_problem(
    model: Model, *, key_encoding: str, value_encoding: str, flash_attention: bool = True
) -> str | None:
    """Return why the engine would refuse these cache encodings, None when it takes them.

    Belief: `llama_init_from_model` - src/llama-context.cpp - checked by
    tests/engine/test_state_bytes.py.
    """
    value_blocks = BY_NAME[value_encoding]
    if not flash_attention and value_blocks.is_block_quantized:
        return f"{value_encoding} values need flash attention, which is off"
    for layer in model.layers:
        spec = layer.attention
        if isinstance(spec, LatentSpec | CompressedSpec) and key_encoding != value_encoding:
            return (
                f"{model.architecture} keeps keys and values as one, and {key_encoding} and "
                f"{value_encoding} differ"
            )
        for what, encoding, length in _head_lengths(spec, key_encoding, value_encoding):
            if length % BY_NAME[encoding].block_values:
                return (
                    f"{what} of layer {layer.index} have {length} numbers for each head, not "
                    f"whole blocks of {BY_NAME[encoding].block_values} ({encoding})"
                )
    return None


def _head_lengths(
    spec: AttentionSpec | LatentSpec | CompressedSpec | None,
    key_encoding: str,
    value_encoding: str,
) -> tuple[tuple[str, str, int], ...]:
    match spec:
        case None:
            return ()
        case AttentionSpec():
            return (
                ("keys", key_encoding, spec.key_length),
                ("values", value_encoding, spec.value_length),
            )
        case LatentSpec():
            return (("keys", key_encoding, spec.latent_length + spec.rope_length),)
        case CompressedSpec():
            return (("keys", key_encoding, spec.key_values),)
        case _:
            assert_never(spec)


def recurrent_bytes(layer: Layer, *, sequences: int = 1) -> int:
    """Return the bytes of a layer's recurrent state, which no context makes larger."""
    spec = layer.recurrent
    if spec is None:
        return 0
    return (spec.convolution_values + spec.state_values) * F32_BYTES * max(1, sequences)


def sequence_cells(
    *, context_tokens: int, sequences: int = 1, unified: bool = False
) -> tuple[int, int]:
    """Return the cells of one stream of the cache, and how many streams there are."""
    total = _padded(context_tokens)
    if unified:
        return total, 1
    return _padded(total // sequences), sequences


def _token_bytes(
    spec: AttentionSpec | LatentSpec,
    key_encoding: str,
    value_encoding: str,
    flash_attention: bool,
) -> int:
    match spec:
        case LatentSpec():
            return row_bytes(key_encoding, spec.latent_length + spec.rope_length)
        case AttentionSpec():
            values = spec.kv_heads * spec.value_length
            if not flash_attention:
                values = max(values, spec.widest_value_values)
            return row_bytes(key_encoding, spec.kv_heads * spec.key_length) + row_bytes(
                value_encoding, values
            )
        case _:
            assert_never(spec)


def _indexer_token_bytes(
    spec: AttentionSpec | LatentSpec, key_encoding: str, value_encoding: str
) -> int:
    match spec:
        case LatentSpec():
            return row_bytes(key_encoding, spec.indexer_length)
        case AttentionSpec():
            return row_bytes(key_encoding, spec.indexer_key_length) + row_bytes(
                value_encoding, spec.indexer_value_length
            )
        case _:
            assert_never(spec)


def _compressed_bytes(
    spec: CompressedSpec,
    *,
    cells: int,
    ubatch_tokens: int,
    encoding: str,
    sequences: int,
    swa_full: bool,
) -> int:
    window_cells = cells
    if not swa_full:
        window_cells = _padded(min(cells, spec.window_tokens + ubatch_tokens))
    token_bytes = row_bytes(encoding, spec.key_values)
    size_bytes = token_bytes * window_cells
    if spec.compression:
        compressed_cells = _padded(max(1, -(-cells // spec.compression)))
        indexer_bytes = row_bytes(encoding, spec.indexer_length)
        size_bytes += (token_bytes + indexer_bytes) * compressed_cells
    return (size_bytes + spec.state_values * F32_BYTES) * sequences


def _padded(cells: int) -> int:
    return -(-cells // CELL_PADDING) * CELL_PADDING
