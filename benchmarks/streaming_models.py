"""The models that streaming is measured with, written once and kept between runs.

* `routed`: 5.2 GB, 24 layers of 128 experts of 1.6 MiB, 8 used, 321 MB of experts for each token.
  One file holds two scripts of routing: one half of its tokens routes like Qwen3-30B-A3B, the other
  half nearly uniformly (`streaming_routing`).
* `expert-2.7`, `-12.6`, `-25`: some 2 to 3 GB with experts of so many MiB (those of Qwen3-30B-A3B
  at Q4_K_M, of gpt-oss-120b, and of DeepSeek-V3 at Q4), for the time that a missing expert takes.
  They route like the first half of `routed`.
* `235b`: Qwen3-235B-A22B, 94 layers, 142 GiB, mostly holes (`streaming_large`): what it takes to
  load and run a file that no memory holds.

* `demo`: the model that is shipped. It is 7 MB, a tenth of what Python takes, so its limit has room
  for the process added, and experts get no more than the share. It shows that nothing is lost, not
  that anything is gained.

Nothing here is compressible but the holes of the last: a file system that packs or shares blocks
would make the disk look faster than it is.

Knows: shapes, files, and when a file may be used again.
Does not know: what is measured with them.
"""

import hashlib
import inspect
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

import moerun
from benchmarks import streaming_large, streaming_routing, synthetic_model
from benchmarks.streaming_large import LARGE, write_large_model
from benchmarks.streaming_routing import SKEWED, UNIFORM, embeddings, router
from benchmarks.synthetic_model import RoutedVocabulary, SyntheticShape, write_synthetic_model

ROUTED_SHAPE: Final = SyntheticShape(experts=128, experts_used=8, has_own_blocks=True)
SEED: Final = 1
# Token numbers from here on are scripts; below are the special ones and those of single bytes.
FIRST_SKEWED, FIRST_UNIFORM = 512, 2048

LATENCY_SHAPES: Final = {
    "expert-2.7": SyntheticShape(
        layers=12, experts=64, experts_used=8, expert_ff=864, has_own_blocks=True
    ),
    "expert-12.6": SyntheticShape(
        layers=6, width=2048, experts_used=4, expert_ff=2016, has_own_blocks=True
    ),
    "expert-25": SyntheticShape(
        layers=4, width=4096, experts_used=4, expert_ff=2016, has_own_blocks=True
    ),
}
DEMO: Final = Path(moerun.__file__).parent / "data" / "demo" / "demo.gguf"
DEMO_ROOM_BYTES: Final = 192 << 20
NAMES: Final = ("skewed", "uniform", "demo", *LATENCY_SHAPES, "235b")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkModel:
    """A file, and the tokens that the benchmark feeds: a prompt, then one after the other."""

    name: str
    path: Path
    first_token: int
    token_count: int
    process_room_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def script(
        self, prompt_tokens: int, decoded_tokens: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the prompt and the tokens after it; ValueError when there are not as many."""
        if prompt_tokens + decoded_tokens > self.token_count:
            raise ValueError(
                f"{self.name} has a script of {self.token_count} tokens, not "
                f"{prompt_tokens + decoded_tokens}"
            )
        tokens = range(self.first_token, self.first_token + prompt_tokens + decoded_tokens)
        return tuple(tokens[:prompt_tokens]), tuple(tokens[prompt_tokens:])


def open_model(name: str, folder: Path) -> BenchmarkModel:
    """Return a model by its name, and write its file if the folder has none that is the same."""
    match name:
        case "skewed" | "uniform":
            path = _kept(folder / "routed.gguf", ROUTED_SHAPE)
            first, end = (
                (FIRST_SKEWED, FIRST_UNIFORM)
                if name == "skewed"
                else (FIRST_UNIFORM, ROUTED_SHAPE.vocabulary)
            )
            return BenchmarkModel(name=name, path=path, first_token=first, token_count=end - first)
        case "demo":
            return BenchmarkModel(
                name=name,
                path=DEMO,
                first_token=300,
                token_count=1024,
                process_room_bytes=DEMO_ROOM_BYTES,
            )
        case "235b":
            path = _kept(folder / f"{LARGE}.gguf", LARGE)
            return BenchmarkModel(
                name=name,
                path=path,
                first_token=streaming_large.FIRST_TOKEN,
                token_count=streaming_large.TOKENS,
            )
        case _:
            shape = LATENCY_SHAPES[name]
            path = _kept(folder / f"{name}.gguf", shape)
            return BenchmarkModel(
                name=name,
                path=path,
                first_token=FIRST_SKEWED,
                token_count=FIRST_UNIFORM - FIRST_SKEWED,
            )


def routed_vocabulary(shape: SyntheticShape, *, seed: int) -> RoutedVocabulary:
    """Return embeddings with both scripts, and routers."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((shape.vocabulary, shape.width), dtype=np.float32)
    routers = tuple(router(shape.experts, shape.width, random) for _ in range(shape.layers))
    skewed, uniform = slice(FIRST_SKEWED, FIRST_UNIFORM), slice(FIRST_UNIFORM, None)
    rows[skewed] = embeddings(SKEWED, len(rows[skewed]), shape.width, random)
    rows[uniform] = embeddings(UNIFORM, len(rows[uniform]), shape.width, random)
    return RoutedVocabulary(embeddings=rows, routers=routers)


def _write(path: Path, shape: SyntheticShape | str) -> None:
    if isinstance(shape, str):
        write_large_model(path, seed=SEED)
    else:
        routed = routed_vocabulary(shape, seed=SEED)
        write_synthetic_model(path, shape, seed=SEED, routed=routed)


def _kept(path: Path, shape: SyntheticShape | str) -> Path:
    """Write a file unless it is there as this very program writes it, and return its path."""
    record = path.with_suffix(".json")
    wanted = fingerprint(shape)
    if path.exists() and record.exists():
        known = json.loads(record.read_text())
        if known == {"fingerprint": wanted, "size_bytes": path.stat().st_size}:
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    part = path.with_name(path.name + ".part")
    _write(part, shape)
    with part.open("rb") as file:  # dirty pages cannot be dropped, and would be read from memory
        os.fsync(file.fileno())
    part.replace(path)
    size_bytes = path.stat().st_size
    record.write_text(json.dumps({"fingerprint": wanted, "size_bytes": size_bytes}))
    return path


def fingerprint(shape: SyntheticShape | str) -> str:
    """Return what changes when the file would: its shape and the program that writes it."""
    rooms = (streaming_large,) if isinstance(shape, str) else (streaming_routing, synthetic_model)
    sources = "".join(map(inspect.getsource, rooms))
    facts = shape if isinstance(shape, str) else asdict(shape)
    text = json.dumps([facts, SEED, FIRST_SKEWED, FIRST_UNIFORM, sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
