"""Whether zstd would bring experts to memory sooner: how far weights shrink, and how fast.

The weights are those of the demo's experts, which were trained, quantized anew into encodings
that gguf can write. Compressed bytes have to be read and then unpacked by a processor that is
wanted for the experts themselves, so they arrive sooner only from storage slower than the rate
that is printed: what is saved of a byte, times the rate at which it is unpacked.

Needs the package zstandard: `pip install zstandard`.

Knows: encodings, ratios and rates.
Does not know: storage, or what the product does.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding
from gguf import quants

from benchmarks.streaming_models import DEMO

ENCODINGS: Final = (
    Encoding.BF16,
    Encoding.F16,
    Encoding.Q8_0,
    Encoding.Q5_0,
    Encoding.Q4_0,
    Encoding.MXFP4,
)
LEVELS: Final = (1, 9, 19)
_SPAN_S: Final = 0.5
_ROW: Final = 256
_MEGABYTE: Final = 1_000_000


def expert_weights() -> np.ndarray[Any, Any]:
    """Return the demo's experts in rows of 256 values."""
    reader = gguf.GGUFReader(str(DEMO))
    parts = [
        quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        for tensor in reader.tensors
        if "_exps" in tensor.name
    ]
    return np.concatenate(parts).reshape(-1, _ROW)


def lines() -> Iterator[str]:
    """Yield one line for each encoding and level."""
    import zstandard

    weights = expert_weights()
    for encoding in ENCODINGS:
        content = quants.quantize(weights, encoding).tobytes()
        for level in LEVELS:
            packed = zstandard.ZstdCompressor(level=level).compress(content)
            unpacker = zstandard.ZstdDecompressor()
            started_s, rounds = time.perf_counter(), 0
            while (span_s := time.perf_counter() - started_s) < _SPAN_S:
                unpacker.decompress(packed)
                rounds += 1
            bytes_per_s = rounds * len(content) / span_s
            saved = max(0.0, 1 - len(packed) / len(content))
            yield (
                f"{encoding.name:6} level {level:2}: {saved:6.1%} saved, unpacked at "
                f"{bytes_per_s / _MEGABYTE:6,.0f} MB/s, sooner below "
                f"{saved * bytes_per_s / _MEGABYTE:5,.0f} MB/s"
            )


def main() -> int:
    """Print the table."""
    try:
        for line in lines():
            print(line, flush=True)
    except ModuleNotFoundError as error:
        print(f"Error: {error}; pip install zstandard", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
