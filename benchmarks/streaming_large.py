"""A file of 142 GiB in the shape of Qwen3-235B-A22B that takes some 200 MB of disk.

Experts and attention are holes, so they add nothing; embeddings, norms, routers and a part of the
output are there. Every token therefore routes by its own random embedding, nearly uniformly: each
one asks for other experts than the last, and the file's true size is streamed. What holes cannot
show is the disk's rate.

Knows: which tensors need values for a router to choose and for logits to differ.
Does not know: how the file is used.
"""

from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from moerun.model.description import Tensor
from moerun.model.gguf_header import read_model
from tests.real_shapes import write_sparse_gguf

LARGE: Final = "qwen3-235b-a22b-142gib"
FIRST_TOKEN, TOKENS = 1000, 512  # those that have an embedding
OUTPUT_ROWS: Final = 4096
# Bytes of a block of 256 values - ggml/src/ggml-common.h @ 0.3.36
Q4_K_BYTES, Q6_K_BYTES = 144, 210


def write_large_model(path: Path, *, seed: int) -> Path:
    """Write the file and return its path."""
    write_sparse_gguf(path, LARGE)
    model = read_model(path)
    random = np.random.default_rng(seed)
    with path.open("r+b") as file:
        for tensor in model.loaded_tensors:
            _fill(file, tensor, random)
    return path


def _fill(file: BinaryIO, tensor: Tensor, random: np.random.Generator) -> None:
    """Write what a router or the logits need of a tensor."""
    width = tensor.shape[0]
    first_row, values = 0, None
    if tensor.encoding == "F32" and len(tensor.shape) == 1:
        values = np.ones(width, np.float32).view(np.uint8)
    elif tensor.name.endswith("ffn_gate_inp.weight"):
        weights = random.standard_normal(tensor.shape[::-1], dtype=np.float32) / width**0.5
        values = weights.astype(np.float32).view(np.uint8)
    elif tensor.name == "token_embd.weight":
        _expect(tensor, "Q4_K")
        first_row, values = FIRST_TOKEN, _q4_k(TOKENS * width // 256, random)
    elif tensor.name == "output.weight":
        _expect(tensor, "Q6_K")
        values = _q6_k(OUTPUT_ROWS * width // 256, random)
    if values is not None:
        row_bytes = tensor.size_bytes // tensor.shape[-1] if len(tensor.shape) > 1 else 0
        file.seek(tensor.offset_bytes + first_row * row_bytes)
        file.write(values.tobytes())


def _expect(tensor: Tensor, encoding: str) -> None:
    if tensor.encoding != encoding:
        raise ValueError(f"{tensor.name} is {tensor.encoding}; this file was of {encoding}")


def _q4_k(blocks: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return blocks of random values about zero: the least is taken off as 7.5 steps."""
    found = random.integers(0, 256, (blocks, Q4_K_BYTES), dtype=np.uint8)
    found[:, :4] = np.array([0.004, 0.03], np.float16).view(np.uint8)
    return found


def _q6_k(blocks: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return blocks of random values about zero."""
    found = random.integers(0, 256, (blocks, Q6_K_BYTES), dtype=np.uint8)
    found[:, -2:] = np.array([0.00001], np.float16).view(np.uint8)
    return found
