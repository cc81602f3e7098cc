"""A GGUF being drafted: keys, random tensors in real encodings, and the writing of the file.

Knows: how values of one seed become tensors of an encoding, and what the GGUF writer wants.
Does not know: architectures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding
from numpy.typing import NDArray

Value = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]

# Layers take turns, so that a file holds several encodings of experts and no two layers are alike.
WIDE_ENCODINGS = (Encoding.Q4_K, Encoding.Q8_0, Encoding.Q6_K, Encoding.Q4_0)
NARROW_ENCODINGS = (Encoding.Q8_0, Encoding.Q5_1, Encoding.MXFP4, Encoding.Q4_0)

# Standard deviation of what uniformly random blocks decode to when their scale is 1: measured
# with gguf.quants.dequantize, checked by tests/test_tiny_models.py.
BLOCK_SPREAD = {Encoding.Q4_K: 260.0, Encoding.Q6_K: 1370.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a tiny model; widths are multiples of 256 so that K-quants fit."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_length: int = 64
    dense_ff: int = 256
    expert_ff: int = 64
    experts: int = 8
    experts_used: int = 2
    vocabulary: int = 320
    context_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class DraftTensor:
    """A tensor in numpy's order of dimensions (ggml's reversed), already encoded."""

    name: str
    data: NDArray
    encoding: Encoding


class Draft:
    """Keys and tensors of one model, in the order of the file."""

    def __init__(self, architecture: str, shape: Shape, *, seed: int, tied_output: bool) -> None:
        self.architecture = architecture
        self.shape = shape
        self.tied_output = tied_output
        self.tensors: list[DraftTensor] = []
        self.values: dict[str, Value] = {}
        self._random = np.random.default_rng([seed, *architecture.encode()])

    def keys(self, values: Mapping[str, Value]) -> None:
        """Set keys of the architecture, without its prefix; later calls win."""
        self.values |= {f"{self.architecture}.{key}": value for key, value in values.items()}

    def plain_keys(self, values: Mapping[str, Value]) -> None:
        """Set keys that no architecture prefixes."""
        self.values |= values

    def vector(self, name: str, *shape: int, centre: float = 1.0, spread: float = 0.1) -> None:
        """Add an F32 tensor of small variation around `centre` (ggml's order of dimensions)."""
        values = self._random.standard_normal(shape[::-1], dtype=np.float32) * spread + centre
        self.tensors.append(DraftTensor(name, values.astype(np.float32), Encoding.F32))

    def matrix(
        self, name: str, *shape: int, encoding: Encoding | None = None, gain: float = 1.0
    ) -> None:
        """Add weights that keep the scale of their input; `shape` in ggml's order."""
        columns = shape[0]
        if encoding is None:
            encoding = Encoding.F32 if columns % 32 else Encoding.Q8_0
        data = self._encoded(shape[::-1], encoding, spread=gain / columns**0.5)
        self.tensors.append(DraftTensor(name, data, encoding))

    def experts(self, name: str, *shape: int, turn: int, encoding: Encoding | None = None) -> None:
        """Add the stacked matrices of all experts, encoded by `turn` unless it is given."""
        choices = NARROW_ENCODINGS if shape[0] % 256 else WIDE_ENCODINGS
        self.matrix(name, *shape, encoding=encoding or choices[turn % len(choices)])

    def _encoded(self, shape: tuple[int, ...], encoding: Encoding, *, spread: float) -> NDArray:
        if encoding in BLOCK_SPREAD:
            return self._random_blocks(shape, encoding, spread=spread)
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(spread)
        return values if encoding is Encoding.F32 else gguf.quants.quantize(values, encoding)

    def _random_blocks(
        self, shape: tuple[int, ...], encoding: Encoding, *, spread: float
    ) -> NDArray:
        """Return valid blocks of an encoding that the writer's package cannot quantise to."""
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[encoding]
        count = int(np.prod(shape)) // block_values
        blocks = self._random.integers(0, 256, (count, block_bytes), dtype=np.uint8)
        scale = np.float16(spread / BLOCK_SPREAD[encoding])
        if encoding is Encoding.Q4_K:
            # d, then dmin: 7.5 is the mean of 4-bit values, so that weights centre on zero.
            blocks[:, :4] = np.array([scale, scale * 7.5], np.float16).view(np.uint8)
        else:
            blocks[:, -2:] = np.array([scale], np.float16).view(np.uint8)
        return blocks.reshape(*shape[:-1], shape[-1] // block_values * block_bytes)

    def write(self, path: Path, *, shards: int) -> Path:
        """Write the file, or its shards, and return the one that the engine is given."""
        per_shard = -(-len(self.tensors) // shards) if shards > 1 else 0
        writer = gguf.GGUFWriter(path, self.architecture, split_max_tensors=per_shard)
        for key, value in self.values.items():
            _add_value(writer, key, value)
        for tensor in self.tensors:
            raw = None if tensor.encoding is Encoding.F32 else tensor.encoding
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if shards == 1:
            return path
        return path.with_name(f"{path.stem}-00001-of-{shards:05}.gguf")


def _add_value(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    # bool before int: True is an int to Python, and another type to GGUF.
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
