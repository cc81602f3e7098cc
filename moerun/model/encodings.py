"""How ggml packs numbers: block and byte sizes of every tensor type, and the labels of file types.

The table is written out because importing `gguf` loads numpy, which costs 0.2 s of a command that
may take 0.5 s in all. Belief: GGML_TYPE_* and LLAMA_FTYPE_* - ggml/include/ggml.h, include/llama.h
@ llama-cpp-python 0.3.36 - checked against `gguf.constants` by tests/test_encodings.py.

Knows: names, blocks, bytes.
Does not know: files, tensors, or what the engine computes with them.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One tensor type: `block_values` numbers take `block_bytes` bytes."""

    name: str
    block_values: int
    block_bytes: int

    @property
    def is_block_quantized(self) -> bool:
        """Whether numbers share scales in blocks."""
        return self.block_values > 1


def _encoding(name: str, block_values: int, block_bytes: int) -> Encoding:
    return Encoding(name=name, block_values=block_values, block_bytes=block_bytes)


ENCODINGS: Final[dict[int, Encoding]] = {
    0: _encoding("F32", 1, 4),
    1: _encoding("F16", 1, 2),
    2: _encoding("Q4_0", 32, 18),
    3: _encoding("Q4_1", 32, 20),
    6: _encoding("Q5_0", 32, 22),
    7: _encoding("Q5_1", 32, 24),
    8: _encoding("Q8_0", 32, 34),
    9: _encoding("Q8_1", 32, 40),
    10: _encoding("Q2_K", 256, 84),
    11: _encoding("Q3_K", 256, 110),
    12: _encoding("Q4_K", 256, 144),
    13: _encoding("Q5_K", 256, 176),
    14: _encoding("Q6_K", 256, 210),
    15: _encoding("Q8_K", 256, 292),
    16: _encoding("IQ2_XXS", 256, 66),
    17: _encoding("IQ2_XS", 256, 74),
    18: _encoding("IQ3_XXS", 256, 98),
    19: _encoding("IQ1_S", 256, 50),
    20: _encoding("IQ4_NL", 32, 18),
    21: _encoding("IQ3_S", 256, 110),
    22: _encoding("IQ2_S", 256, 82),
    23: _encoding("IQ4_XS", 256, 136),
    24: _encoding("I8", 1, 1),
    25: _encoding("I16", 1, 2),
    26: _encoding("I32", 1, 4),
    27: _encoding("I64", 1, 8),
    28: _encoding("F64", 1, 8),
    29: _encoding("IQ1_M", 256, 56),
    30: _encoding("BF16", 1, 2),
    34: _encoding("TQ1_0", 256, 54),
    35: _encoding("TQ2_0", 256, 66),
    39: _encoding("MXFP4", 32, 17),
    40: _encoding("NVFP4", 64, 36),
    41: _encoding("Q1_0", 128, 18),
    42: _encoding("Q2_0", 64, 18),
}

REMOVED_ENCODINGS: Final[dict[int, str]] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

BY_NAME: Final[dict[str, Encoding]] = {encoding.name: encoding for encoding in ENCODINGS.values()}

FILE_TYPES: Final[dict[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


def row_bytes(encoding: str, values: int) -> int:
    """Return the bytes of a row of `values` numbers; ValueError when it is not whole blocks."""
    known = BY_NAME.get(encoding)
    if known is None:
        raise ValueError(f"'{encoding}' is not a tensor type that ggml knows")
    if values % known.block_values:
        raise ValueError(
            f"{values} values are not whole blocks of {known.block_values} ({encoding})"
        )
    return values // known.block_values * known.block_bytes
