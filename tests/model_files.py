"""Small files of one sparse model with numbers that a person can follow, to be changed by tests.

Two layers, width 256, 4 heads on 2 key-value heads of 64, 4 experts of which 2 are used.

Knows: one model's keys and tensors.
Does not know: what is read from them.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.model_keys import KeyValue
from tests.sparse_gguf import TensorShape, write_sparse

WIDTH, LAYERS, EXPERTS, VOCABULARY = 256, 2, 4, 64


def a_models_keys(architecture: str = "qwen3moe") -> dict[str, KeyValue]:
    numbers: dict[str, KeyValue] = {
        "block_count": LAYERS,
        "context_length": 4096,
        "embedding_length": WIDTH,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_count": EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": 256,
    }
    return {
        "general.architecture": architecture,
        "general.name": "a model",
        "general.file_type": 15,
        **{f"{architecture}.{key}": value for key, value in numbers.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCABULARY)],
    }


def a_models_tensors(layers: int = LAYERS) -> list[TensorShape]:
    rows: list[TensorShape] = [
        ("token_embd.weight", (WIDTH, VOCABULARY), "Q4_K"),
        ("output_norm.weight", (WIDTH,), "F32"),
        ("output.weight", (WIDTH, VOCABULARY), "Q6_K"),
    ]
    for layer in range(layers):
        block = f"blk.{layer}."
        rows += [
            (block + "attn_norm.weight", (WIDTH,), "F32"),
            (block + "attn_q.weight", (WIDTH, 256), "Q4_K"),
            (block + "attn_k.weight", (WIDTH, 128), "Q4_K"),
            (block + "attn_v.weight", (WIDTH, 128), "Q6_K"),
            (block + "attn_output.weight", (256, WIDTH), "Q4_K"),
            (block + "ffn_norm.weight", (WIDTH,), "F32"),
            (block + "ffn_gate_inp.weight", (WIDTH, EXPERTS), "F32"),
            (block + "ffn_gate_exps.weight", (WIDTH, 256, EXPERTS), "Q4_K"),
            (block + "ffn_up_exps.weight", (WIDTH, 256, EXPERTS), "Q4_K"),
            (block + "ffn_down_exps.weight", (256, WIDTH, EXPERTS), "Q6_K"),
        ]
    return rows


def a_model_file(
    folder: Path,
    *,
    architecture: str = "qwen3moe",
    keys: Mapping[str, KeyValue | None] | None = None,
    tensors: Mapping[str, TensorShape | None] | None = None,
    name: str = "model.gguf",
) -> Path:
    """Write the model with some keys and tensors changed, added, or left out (None)."""
    all_keys = dict(a_models_keys(architecture))
    for key, value in (keys or {}).items():
        if value is None:
            del all_keys[key]
        else:
            all_keys[key] = value
    rows = {row[0]: row for row in a_models_tensors()}
    for tensor, row in (tensors or {}).items():
        if row is None:
            del rows[tensor]
        else:
            rows[tensor] = row
    return write_sparse(folder / name, all_keys, list(rows.values()))
