"""How long a header takes to read, beside `gguf.GGUFReader` on the same file, in one run.

`python -m benchmarks.header_read` writes a sparse file shaped like a model of 94 layers with a
vocabulary of 151,936 tokens and as many merges, and prints seconds as median and spread.

Knows: what is timed and how often.
Does not know: how headers are read, or what would be fast enough (the Makefile's `bench` says).
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from moerun.model.gguf_header import read_model
from tests.real_shapes import write_sparse_gguf

MODEL = "qwen3-235b-a22b-142gib"
ROUNDS = 7


def main() -> None:
    """Write the file, time each way of reading it, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_sparse_gguf(Path(folder) / "model.gguf", MODEL)
        print(f"{MODEL}: {path.stat().st_size / 2**30:.1f} GiB (sparse), {ROUNDS} rounds")
        show("moerun.read_model", [timed(lambda: read_model(path)) for _ in range(ROUNDS)])
        read = f"from moerun.model.gguf_header import read_model; read_model({str(path)!r})"
        show("the same with the start of Python", [started(read) for _ in range(ROUNDS)])
        show("Python alone", [started("") for _ in range(ROUNDS)])
        theirs = f"import gguf; gguf.GGUFReader({str(path)!r})"
        show("gguf.GGUFReader with the start of Python", [started(theirs)])


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def started(source: str) -> float:
    """Return the seconds that a new interpreter takes for some lines."""
    return timed(lambda: subprocess.run([sys.executable, "-c", source], check=True))


def show(what: str, seconds: list[float]) -> None:
    """Print the median and the spread of some timings."""
    middle = statistics.median(seconds)
    print(f"{what:42} {middle:6.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})")


if __name__ == "__main__":
    main()
