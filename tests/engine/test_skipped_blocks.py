"""Which tensors of blocks for speculative decoding the engine skips, by its own log."""

import re
from pathlib import Path

import llama_cpp
import pytest

from moerun.model.description import TensorUse
from moerun.model.gguf_header import read_model
from tests.engine.header_model import Probe, without_devices
from tests.engine.reports import file_keys, reports, rows
from tests.model_keys import VOCABULARY
from tests.sparse_gguf import TensorShape, write_sparse

pytestmark = pytest.mark.engine

SKIPPED = re.compile(r"unused tensor (\S+)")
# the others need a last block of another shape than their trunk has
CHECKED = (
    "cohere2moe",
    "deepseek2",
    "deepseek32",
    "deepseek4",
    "exaone4",
    "glm-dsa",
    "glm4",
    "glm4moe",
    "hy_v3",
    "mimo2",
    "mistral4",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "step35",
)


def write_with_predictions(path: Path, architecture: str) -> Path:
    """Write a model whose last block predicts further tokens."""
    keys = file_keys(architecture)
    keys[f"{architecture}.nextn_predict_layers"] = 1
    types = keys.get(f"{architecture}.attention.indexer.types")
    if isinstance(types, list):
        keys[f"{architecture}.attention.indexer.types"] = types[:-1]
    width, blocks = keys[f"{architecture}.embedding_length"], keys[f"{architecture}.block_count"]
    assert isinstance(width, int)
    assert isinstance(blocks, int)
    tensors = {
        name: row
        for name, row in rows(reports()[architecture]).items()
        if not name.endswith(".scale") and not name.endswith("input_scale")
        if not name.startswith("rope_f")
    }
    parts: list[TensorShape] = [
        ("eh_proj", (2 * width, width), "F16"),
        ("enorm", (width,), "F32"),
        ("hnorm", (width,), "F32"),
        ("shared_head_norm", (width,), "F32"),
    ]
    if architecture != "exaone4":
        parts += [(n, (width, VOCABULARY), "F16") for n in ("embed_tokens", "shared_head_head")]
    for part, shape, encoding in parts:
        name = f"blk.{blocks - 1}.nextn.{part}.weight"
        tensors[name] = (name, shape, encoding)
    return write_sparse(path, keys, list(tensors.values()))


@pytest.mark.parametrize("architecture", CHECKED)
def test_what_the_engine_skips_is_marked_so(architecture: str, tmp_path: Path):
    path = write_with_predictions(tmp_path / "m.gguf", architecture)
    probe = Probe()
    parameters = without_devices()
    parameters.no_alloc = True
    parameters.load_mode = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    log = "".join(probe.lines)
    # the callback dies with the probe: give the log back first
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), None)
    assert model, log[-500:]
    llama_cpp.llama_model_free(model)
    skipped = {t.name for t in read_model(path).tensors if t.use is TensorUse.SKIPPED}
    assert skipped == set(SKIPPED.findall(log))
    assert skipped
