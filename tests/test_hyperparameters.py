from pathlib import Path

import pytest

from moerun.errors import UnsupportedModel
from moerun.model.description import AttentionSpec
from moerun.model.gguf_header import read_model
from tests.model_files import a_model_file, a_models_tensors
from tests.model_keys import KeyValue


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("block_count", None, "has no qwen3moe.block_count, which the engine needs"),
        ("block_count", 0, "has 0 layers, and the engine takes 1 to 512"),
        ("block_count", 513, "has 513 layers"),
        ("block_count", "2", "qwen3moe.block_count as string, and the engine reads one uint32"),
        ("context_length", None, "has no qwen3moe.context_length"),
        ("context_length", 0, "a context length of 0"),
        ("embedding_length", None, "has no qwen3moe.embedding_length"),
        ("embedding_length", 0, "an embedding length of 0"),
        ("attention.head_count", 0, "no attention heads"),
        ("attention.head_count", None, "no attention heads"),
        ("attention.head_count", [4, 4, 4], "3 values in .*head_count, and 2 layers"),
        ("attention.head_count", [4, -4], "a negative number in"),
        ("attention.head_count", [4.0, 4.0], "items of float32"),
        ("expert_count", 1025, "has 1025 experts, and the engine takes at most 1024"),
        ("expert_count", 1, "has 1 experts and claims to use 2"),
        ("expert_count", 0, "has 0 experts and claims to use 2"),
        ("expert_used_count", 0, "has 4 experts and claims to use 0"),
        ("expert_group_count", 3, "4 experts in 3 groups"),
        ("expert_group_count", 4, "4 experts in 4 groups"),
        ("nextn_predict_layers", 3, "has 2 layers and claims 3 of them for drafts"),
        ("nextn_predict_layers", 2, "holds only blocks for speculative decoding"),
        ("rope.scaling.type", "bent", "'bent', and the engine knows linear, longrope"),
    ],
)
def test_a_key_that_the_engine_stops_at(
    key: str, value: KeyValue | None, sentence: str, tmp_path: Path
):
    path = a_model_file(tmp_path, keys={f"qwen3moe.{key}": value})
    with pytest.raises(UnsupportedModel, match=sentence):
        read_model(path)


def test_a_sparse_architecture_needs_experts(tmp_path: Path):
    keys: dict[str, KeyValue | None] = {
        "qwen3moe.expert_count": None,
        "qwen3moe.expert_used_count": None,
    }
    with pytest.raises(UnsupportedModel, match="has no experts"):
        read_model(a_model_file(tmp_path, keys=keys))


def test_lengths_of_keys_and_values_default_to_the_width_of_a_head(tmp_path: Path):
    keys: dict[str, KeyValue | None] = {
        "qwen3moe.attention.key_length": None,
        "qwen3moe.attention.value_length": None,
        "qwen3moe.attention.head_count": 2,
    }
    spec = read_model(a_model_file(tmp_path, keys=keys)).layers[0].attention
    assert isinstance(spec, AttentionSpec)
    assert (spec.key_length, spec.value_length) == (128, 128)


def test_heads_may_differ_by_layer(tmp_path: Path):
    keys: dict[str, KeyValue | None] = {"qwen3moe.attention.head_count_kv": [1, 2]}
    specs = [layer.attention for layer in read_model(a_model_file(tmp_path, keys=keys)).layers]
    assert all(isinstance(spec, AttentionSpec) for spec in specs)
    assert [spec.kv_heads for spec in specs if isinstance(spec, AttentionSpec)] == [1, 2]
    widest = {s.widest_value_values for s in specs if isinstance(s, AttentionSpec)}
    assert widest == {128}


def windows(architecture: str, layers: int, tmp_path: Path, **keys: KeyValue) -> list[int | None]:
    """Return the window of each layer of a small model of an architecture."""
    from tests.model_files import a_models_keys
    from tests.sparse_gguf import write_sparse

    all_keys = a_models_keys(architecture)
    all_keys[f"{architecture}.block_count"] = layers
    for key, value in keys.items():
        all_keys[f"{architecture}.attention.{key}"] = value
    path = write_sparse(tmp_path / "w.gguf", all_keys, a_models_tensors(layers))
    specs = [layer.attention for layer in read_model(path).layers]
    return [spec.window_tokens if isinstance(spec, AttentionSpec) else None for spec in specs]


def test_every_second_layer_of_gpt_oss_has_a_window(tmp_path: Path):
    assert windows("gpt-oss", 4, tmp_path, sliding_window=128) == [128, None, 128, None]


def test_chunks_of_llama4_are_windows_whether_told_or_not(tmp_path: Path):
    chunked = [8192, 8192, 8192, None]
    assert windows("llama4", 4, tmp_path) == chunked
    assert windows("llama4", 4, tmp_path, sliding_window=77) == chunked
    assert windows("llama4", 4, tmp_path, sliding_window=0) == [None] * 4


def test_smallthinker_begins_with_a_full_layer(tmp_path: Path):
    assert windows("smallthinker", 5, tmp_path, sliding_window=9) == [
        None,
        4096,
        4096,
        4096,
        None,
    ]
    assert windows("smallthinker", 5, tmp_path) == [None] * 5


def test_a_list_of_windows_wins_over_the_period(tmp_path: Path):
    found = windows(
        "olmo2", 3, tmp_path, sliding_window=64, sliding_window_pattern=[True, False, False]
    )
    assert found == [64, None, None]
    assert windows("olmo2", 3, tmp_path, sliding_window=64, sliding_window_pattern=3) == [
        64,
        64,
        None,
    ]


def test_a_window_that_no_layer_uses_would_abort_the_engine(tmp_path: Path):
    with pytest.raises(UnsupportedModel, match="a window of 64 tokens and no layer that uses it"):
        windows("mimo2", 2, tmp_path, sliding_window=64, sliding_window_pattern=[False, False])


def test_an_architecture_may_need_the_list(tmp_path: Path):
    with pytest.raises(UnsupportedModel, match="has no list of windowed layers"):
        windows("mimo2", 2, tmp_path, sliding_window=64)


def test_exaone4_has_windows_only_with_64_layers(tmp_path: Path):
    assert windows("exaone4", 4, tmp_path, sliding_window=64) == [None] * 4
