import pytest

from moerun.model.description import (
    AttentionSpec,
    CompressedSpec,
    LatentSpec,
    Layer,
    RecurrentSpec,
)
from moerun.model.state import kv_bytes, recurrent_bytes, sequence_cells

Spec = AttentionSpec | LatentSpec | CompressedSpec | None


def a_layer(attention: Spec = None, recurrent: RecurrentSpec | None = None) -> Layer:
    return Layer(index=0, tensors=(), attention=attention, recurrent=recurrent)


def plain(window_tokens: int | None = None) -> Layer:
    """Return a layer that keeps 2 keys of 4 and 2 values of 3 numbers: 28 bytes in F16."""
    return a_layer(
        AttentionSpec(kv_heads=2, key_length=4, value_length=3, window_tokens=window_tokens)
    )


def test_the_context_is_padded_to_256_cells():
    assert sequence_cells(context_tokens=1) == (256, 1)
    assert sequence_cells(context_tokens=257) == (512, 1)
    assert sequence_cells(context_tokens=1000, sequences=4) == (256, 4)
    assert sequence_cells(context_tokens=1000, sequences=4, unified=True) == (1024, 1)


def test_keys_and_values_of_every_cell():
    assert kv_bytes(plain(), context_tokens=512, ubatch_tokens=64) == 512 * 28


def test_a_window_holds_its_tokens_and_a_micro_batch():
    size = kv_bytes(plain(100), context_tokens=4096, ubatch_tokens=200)
    assert size == 512 * 28  # 100 + 200 in whole pads
    assert kv_bytes(plain(100), context_tokens=256, ubatch_tokens=200) == 256 * 28
    full = kv_bytes(plain(100), context_tokens=4096, ubatch_tokens=200, swa_full=True)
    assert full == 4096 * 28


def test_sequences_that_share_a_cache_share_its_windows_too():
    own = kv_bytes(plain(100), context_tokens=4096, ubatch_tokens=56, sequences=4)
    shared = kv_bytes(plain(100), context_tokens=4096, ubatch_tokens=56, sequences=4, unified=True)
    assert own == 4 * 256 * 28
    assert shared == 512 * 28  # 4 * 100 + 56


def test_no_micro_batch_is_larger_than_the_context():
    assert kv_bytes(plain(100), context_tokens=300, ubatch_tokens=9999) == 512 * 28


def test_a_latent_has_no_values():
    layer = a_layer(LatentSpec(latent_length=512, rope_length=64))
    assert kv_bytes(layer, context_tokens=256, ubatch_tokens=1) == 256 * 576 * 2


def test_an_indexer_keeps_every_token_also_beside_a_window():
    layer = a_layer(LatentSpec(latent_length=30, rope_length=2, window_tokens=10, indexer_length=8))
    size = kv_bytes(layer, context_tokens=1024, ubatch_tokens=10)
    assert size == 256 * 32 * 2 + 1024 * 8 * 2


def test_without_flash_attention_values_are_as_wide_as_the_widest():
    layer = a_layer(AttentionSpec(kv_heads=1, key_length=4, value_length=4, widest_value_values=16))
    assert kv_bytes(layer, context_tokens=256, ubatch_tokens=1) == 256 * 16
    padded = kv_bytes(layer, context_tokens=256, ubatch_tokens=1, flash_attention=False)
    assert padded == 256 * (8 + 32)


def test_quantized_keys_are_whole_blocks():
    layer = a_layer(AttentionSpec(kv_heads=1, key_length=64, value_length=64))
    size = kv_bytes(
        layer,
        context_tokens=256,
        ubatch_tokens=1,
        key_encoding="Q8_0",
        value_encoding="Q4_0",
    )
    assert size == 256 * (2 * 34 + 2 * 18)
    with pytest.raises(ValueError, match="not whole blocks of 32"):
        kv_bytes(plain(), context_tokens=256, ubatch_tokens=1, key_encoding="Q8_0")


def test_compressed_layers_keep_a_window_and_what_stands_for_the_rest():
    spec = CompressedSpec(
        key_values=64, window_tokens=100, compression=4, indexer_length=32, state_values=10
    )
    size = kv_bytes(a_layer(spec), context_tokens=4096, ubatch_tokens=100, sequences=2)
    window = 256 * 128  # 200 tokens of 64 F16 numbers, padded
    compressed = 512 * (128 + 64)  # 2,048 tokens for each sequence, 4 in one
    assert size == 2 * (window + compressed + 10 * 4)


def test_recurrent_state_is_one_f32_row_for_each_sequence():
    layer = a_layer(recurrent=RecurrentSpec(convolution_values=3, state_values=5))
    assert recurrent_bytes(layer) == 32
    assert recurrent_bytes(layer, sequences=3) == 96
    assert kv_bytes(layer, context_tokens=256, ubatch_tokens=1) == 0
    assert recurrent_bytes(plain()) == 0
