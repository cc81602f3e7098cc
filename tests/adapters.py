"""LoRA adapters for tests: files of random pairs for matrices of a model.

Knows: how an adapter file looks (convert_lora_to_gguf.py @ 0.3.36).
Does not know: what is checked with it.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

RANK = 4
# Of TinyShape: columns and rows.
TINY = {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(3)
    for name, shape in (
        ("attn_q", (128, 128)),
        ("attn_output", (128, 128)),
        ("ffn_gate_inp", (128, 8)),
    )
} | {"output.weight": (128, 320)}


def write_adapter(
    path: Path,
    matrices: Mapping[str, tuple[int, ...]],
    *,
    architecture: str = "qwen3moe",
    kind: str = "adapter",
    form: str = "lora",
    seed: int = 3,
) -> Path:
    """Write an adapter; `matrices` are columns, rows (and experts) of what it changes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", form)
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    chance = np.random.default_rng(seed)
    for name, (columns, rows, *experts) in matrices.items():
        first = chance.standard_normal((*experts, RANK, columns), dtype=np.float32)
        second = chance.standard_normal((*experts, rows, RANK), dtype=np.float32)
        writer.add_tensor(f"{name}.lora_a", first * np.float32(columns**-0.5))
        writer.add_tensor(f"{name}.lora_b", second * np.float32(0.2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
