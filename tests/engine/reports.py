"""What the engine reports of architectures that it builds from keys alone.

Knows: which it can build, how the child that does it is run.
Does not know: what moerun makes of the same keys.
"""

import json
import subprocess
import sys
from functools import cache
from typing import Any

from moerun.model.architectures import KNOWN, SPARSE
from moerun.model.tensor_names import Operation, meaning
from tests.model_keys import VOCABULARY, KeyValue, model_keys
from tests.sparse_gguf import TensorShape

# what the engine cannot build from keys alone, and why
NOT_FROM_KEYS = {
    "apertus": "needs activation keys outside its own prefix",
    "bert": "needs token types",
    "chameleon": "half implemented in the engine",
    "jina-bert-v2": "an encoder whose shapes follow from its tensors",
    "jina-bert-v3": "needs token types",
    "nomic-bert": "needs token types",
    "nomic-bert-moe": "needs token types",
    "plm": "its head sizes are fixed by its tensors",
    "rwkv6": "its head sizes are fixed by its tensors",
    "rwkv6qwen2": "its head sizes are fixed by its tensors",
    "t5": "an encoder and a decoder",
    "t5encoder": "an encoder",
}
FROM_KEYS = sorted(KNOWN - set(NOT_FROM_KEYS))


@cache
def reports() -> dict[str, dict[str, Any]]:
    """Return the engine's report for each architecture; one that aborts has none."""
    found: dict[str, dict[str, Any]] = {}
    left = list(FROM_KEYS)
    while left:
        child = subprocess.run(
            [sys.executable, "-m", "tests.engine.header_model", *left],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        found |= {report["architecture"]: report for report in lines}
        if child.returncode == 0:
            break
        left = left[len(lines) + 1 :]
    return found


def rows(report: dict[str, Any]) -> dict[str, TensorShape]:
    """Return the tensors of a report by name, in half precision where the engine takes it."""
    half = (Operation.MATRIX, Operation.EXPERT_MATRIX, Operation.LOOKUP)
    found: dict[str, TensorShape] = {}
    for name, extents in report["tensors"]:
        last = max((i for i, extent in enumerate(extents) if extent > 1), default=0)
        encoding = "F16" if meaning(name).operation in half else "F32"
        found[name] = (name, tuple(extents[: last + 1]), encoding)
    return found


def file_keys(architecture: str) -> dict[str, KeyValue]:
    """Return all keys of the file, those of the vocabulary included."""
    keys: dict[str, KeyValue] = {"general.architecture": architecture}
    for name, value in model_keys(architecture, sparse=architecture in SPARSE).items():
        keys[f"{architecture}.{name}"] = value
    return keys | {
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(VOCABULARY)],
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
    }
