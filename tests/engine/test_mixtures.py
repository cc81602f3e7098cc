"""The catalogue's encodings against the engine's own quantizer, tensor by tensor.

Files of true shape are written as holes, and the quantizer says in a dry run what it would make
of each tensor.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.model.catalog import catalog_entry
from moerun.model.catalog_model import derived_model
from moerun.model.mixtures import QUANTIZATIONS, file_type_of
from tests.model_keys import KeyValue
from tests.sparse_gguf import write_sparse

pytestmark = pytest.mark.engine

# one entry of each architecture, the smallest
ENTRIES = (
    "deepseek-v2-lite", "ernie-4.5-21b-a3b", "glm-4.5-air", "gpt-oss-20b", "granite-3.1-3b-a800m",
    "hunyuan-a13b", "lfm2-8b-a1b", "ling-mini-2.0", "llama-4-scout", "minimax-m2", "mixtral-8x7b",
    "nemotron-3-nano-30b-a3b", "olmoe-1b-7b", "phi-3.5-moe", "qwen3-30b-a3b", "qwen3-next-80b-a3b",
    "qwen3.5-35b-a3b",
)  # fmt: skip
LABELS = tuple(sorted(label for label in QUANTIZATIONS if file_type_of(label) == label))
# what loaders insist on, and what no size depends on
FURTHER_KEYS: dict[str, dict[str, KeyValue]] = {
    "bailingmoe2": {"expert_gating_func": 2},
    "granitemoe": {"logit_scale": 6.0},
    "lfm2moe": {"expert_gating_func": 2},
    "nemotron_h_moe": {"attention.layer_norm_epsilon": 1e-5},
    "qwen35moe": {"rope.dimension_sections": [11, 11, 10, 0]},
}


def quantizer_says(path: Path) -> dict[str, dict[str, str]]:
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.quantizer_child", str(path), *LABELS],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    answer: dict[str, dict[str, str]] = json.loads(child.stdout)
    return answer


@pytest.mark.parametrize("name", ENTRIES)
def test_every_tensor_gets_the_encoding_that_the_quantizer_gives_it(name: str, tmp_path: Path):
    entry = catalog_entry(name)
    architecture = entry.shape.architecture
    keys: dict[str, KeyValue] = {"general.architecture": architecture, "general.name": name}
    for key, value in {**FURTHER_KEYS.get(architecture, {}), **entry.shape.keys}.items():
        keys[f"{architecture}.{key}"] = list(value) if isinstance(value, tuple) else value
    whole = "F16"
    source = derived_model(name, whole)
    path = write_sparse(
        tmp_path / "source.gguf", keys, [(t.name, t.shape, t.encoding) for t in source.tensors]
    )
    for label, theirs in quantizer_says(path).items():
        ours = {tensor.name: tensor.encoding for tensor in derived_model(name, label).tensors}
        assert theirs == ours, label
