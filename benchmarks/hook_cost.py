"""What listening to the router costs: the same model with and without the hook, in one run.

`python -m benchmarks.hook_cost [--layers 48] [--json FILE]` writes a model of many narrow layers,
whose own work is next to nothing, decodes with both in turn, round by round, and prints the
difference for each token with its spread. A third way wants the router's input and weights too.

Knows: what is timed: the engine room's decoding of single tokens, the supplier doing nothing.
Does not know: what is cheap enough.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.engine.arguments import EngineArgs
from moerun.engine.decode import Decoder
from moerun.engine.interface import MappedFile, Routing
from moerun.engine.llama import LlamaEngine
from moerun.planning.strategy import LoadMode, Toggle

CONTEXT_TOKENS = 1024
PROMPT = tuple(range(260, 276))
PARTS = ("gate", "up", "down")
WITHOUT, WITH, WITH_ALL = "without", "with the hook", "with input and weights"

Decode = Callable[[int], float]
"""Decodes so many tokens after the prompt and returns seconds for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One way of listening against none; the ratio is of tokens per second."""

    way: str
    ms_per_token: float
    us_smallest: float
    us_median: float
    us_largest: float
    ratio_smallest: float
    ratio_median: float
    ratio_largest: float


class Idle:
    """Listens and does nothing."""

    def __init__(self, layers: int, *, wants_all: bool) -> None:
        self.streamed: Mapping[str, int] = {
            f"blk.{layer}.ffn_{part}_exps.weight": layer
            for layer in range(layers)
            for part in PARTS
        }
        self.wants_hidden = self.wants_weights = wants_all

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        """Nothing is mapped away."""

    def supply(self, routing: Routing) -> None:
        """All is in memory."""

    def supply_layer(self, layer: int) -> None:
        """No layer hides its choice."""
        raise AssertionError(f"the choice of layer {layer} was not heard")

    def check(self) -> None:
        """Every token may leave."""

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def decoding(path: Path, supplier: Idle | None, *, threads: int) -> Iterator[Decode]:
    """Load the model and decode with it."""
    arguments = EngineArgs(
        model_path=str(path),
        devices=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        context_tokens=CONTEXT_TOKENS,
        batch_tokens=64,
        ubatch_tokens=64,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.ON,
        extra_buffers=False,
        load_mode=LoadMode.MMAP,
        threads=threads,
    )
    session = LlamaEngine(log_sink=None).load(arguments, supplier=supplier)
    decoder = Decoder(session.loaded)

    def decode(tokens: int) -> float:
        decoder.evaluate(list(PROMPT))
        started_s = time.perf_counter()
        for step in range(tokens):
            decoder.advance(260 + step % 64)
        return (time.perf_counter() - started_s) / tokens

    yield decode
    session.close()


def measure(path: Path, layers: int, *, rounds: int, tokens: int, threads: int) -> tuple[Cost, ...]:
    """Run all ways in turn, each round beginning with another, and return what each adds."""
    suppliers = {
        WITHOUT: None,
        WITH: Idle(layers, wants_all=False),
        WITH_ALL: Idle(layers, wants_all=True),
    }
    with ExitStack() as stack:
        ways = {
            name: stack.enter_context(decoding(path, supplier, threads=threads))
            for name, supplier in suppliers.items()
        }
        for decode in ways.values():
            decode(tokens)
        names = list(ways)
        timed: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for step in range(len(names)):
                name = names[(number + step) % len(names)]
                timed[name].append(ways[name](tokens))
    return tuple(_cost(name, timed[name], timed[WITHOUT]) for name in (WITH, WITH_ALL))


def _cost(way: str, mine: list[float], plain: list[float]) -> Cost:
    added = [(a - b) * 1e6 for a, b in zip(mine, plain, strict=True)]
    ratios = [b / a for a, b in zip(mine, plain, strict=True)]
    return Cost(
        way=way,
        ms_per_token=statistics.median(mine) * 1e3,
        us_smallest=min(added),
        us_median=statistics.median(added),
        us_largest=max(added),
        ratio_smallest=min(ratios),
        ratio_median=statistics.median(ratios),
        ratio_largest=max(ratios),
    )


def narrow_options(program: str) -> argparse.Namespace:
    """Return what the command line says of a measurement on the narrow model."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_narrow_model(folder: str, layers: int) -> Path:
    """Write a model whose own work is next to nothing, and return its file."""
    shape = SyntheticShape(
        layers=layers,
        width=128,
        heads=2,
        kv_heads=1,
        expert_ff=32,
        experts=128,
        experts_used=8,
        vocabulary=512,
    )
    return write_synthetic_model(Path(folder) / "narrow.gguf", shape)


def main() -> None:
    """Measure and print; the document goes to a file if one is named."""
    options = narrow_options("hook_cost")
    with tempfile.TemporaryDirectory() as folder:
        path = write_narrow_model(folder, options.layers)
        costs = measure(
            path,
            options.layers,
            rounds=options.rounds,
            tokens=options.tokens,
            threads=options.threads,
        )
    print(f"{options.layers} layers, {options.rounds} rounds of {options.tokens} tokens")
    print(f"  {'':24}{'ms/token':>10}{'added us, min/median/max':>30}{'rate, min/median/max':>26}")
    for cost in costs:
        added = f"{cost.us_smallest:.0f} / {cost.us_median:.0f} / {cost.us_largest:.0f}"
        rate = f"{cost.ratio_smallest:.3f} / {cost.ratio_median:.3f} / {cost.ratio_largest:.3f}"
        print(f"  {cost.way:24}{cost.ms_per_token:10.3f}{added:>30}{rate:>26}")
    if options.json is not None:
        document = {"schema": 1, "layers": options.layers, "costs": [asdict(c) for c in costs]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
