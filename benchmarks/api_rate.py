"""Tokens per second through the API beside the runner's own: `python -m benchmarks.api_rate`.

Writes a synthetic model of 1.4 GB, starts `moerun serve` with it, and loads it a second time in a
runner by the server's own loader, so that both have the same plan. Then both decode the same greedy
tokens in turn, round by round, and what each round's client saw is compared: the server's over the
runner's. It must hold that the median is at least 0.97.

Knows: what is timed: the tokens after the first, from the first piece to the end of the answer.
Does not know: how the server does it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.decode_overhead import Spread, spread
from benchmarks.served import END_BIAS, TimedAnswer, served, timed_completion
from benchmarks.synthetic_model import END_TOKEN, write_synthetic_model
from moerun.engine.interface import AnswerPart, GenerationRequest, Sampling
from moerun.server.local_loader import LoaderSettings, LocalLoader, LocalModel
from moerun.server.runners import LoadWishes, ServedModel
from moerun.settings.load import load_settings

LEAST_RATIO = 0.97
PARALLEL = 4
PROMPT = "What is a mixture of experts?"

Way = Callable[[int], TimedAnswer]
"""Decodes so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured; the ratio is of the server to the runner in the same round."""

    size_gb: float
    tokens: int
    rounds: int
    api_tokens_per_s: Spread
    runner_tokens_per_s: Spread
    ratio: Spread
    is_met: bool


def measure(path: Path, *, tokens: int, rounds: int) -> Result:
    """Run both in turn, each round in the other order."""
    timed: dict[str, list[float]] = {"api": [], "runner": []}
    with served(PARALLEL, {"MOERUN_MODELS": str(path.parent)}) as server:
        loaded = _load_beside(path)
        try:
            ways: dict[str, Way] = {
                "api": lambda count: timed_completion(
                    server.url, path.stem, PROMPT, tokens=count, ends=(END_TOKEN,)
                ),
                "runner": lambda count: _timed_by_runner(loaded, count),
            }
            first = {name: way(8) for name, way in ways.items()}  # loads, and warms caches
            if first["api"].text != first["runner"].text:
                raise SystemExit("the server and the runner do not say the same")
            for number in range(rounds):
                for name in sorted(ways, reverse=number % 2 == 0):
                    timed[name].append(ways[name](tokens).tokens_per_s)
        finally:
            loaded.close()
    ratios = spread([a / b for a, b in zip(timed["api"], timed["runner"], strict=True)])
    return Result(
        size_gb=path.stat().st_size / 1e9,
        tokens=tokens,
        rounds=rounds,
        api_tokens_per_s=spread(timed["api"]),
        runner_tokens_per_s=spread(timed["runner"]),
        ratio=ratios,
        is_met=ratios.median >= LEAST_RATIO,
    )


def _load_beside(path: Path) -> LocalModel:
    loader = LocalLoader(LoaderSettings(settings=load_settings(), parallel=PARALLEL))
    model = ServedModel(name=path.stem, path=str(path), modified_at_s=path.stat().st_mtime)
    return loader.load(model, LoadWishes(), loader.room())


def _timed_by_runner(loaded: LocalModel, tokens: int) -> TimedAnswer:
    request = GenerationRequest(
        prompt=PROMPT,
        sampling=Sampling(temperature=0.0, logit_bias=((END_TOKEN, END_BIAS),)),
        maximum_tokens=tokens,
    )
    parts: list[tuple[float, str]] = []

    def note(part: AnswerPart) -> None:
        parts.append((time.perf_counter(), part.text))

    result = loaded.generate(request, on_part=note, number=loaded.reserve_number())
    ended_s = time.perf_counter()
    text = "".join(said for _, said in parts)
    return TimedAnswer(text=text, tokens=result.answer_tokens, after_first_s=ended_s - parts[0][0])


def table(result: Result) -> str:
    """Return a few lines to read."""
    rows = (
        ("through the API, tokens/s", result.api_tokens_per_s),
        ("runner alone, tokens/s", result.runner_tokens_per_s),
        ("API / runner", result.ratio),
    )
    lines = [
        f"{result.size_gb:.2f} GB: {result.rounds} rounds of {result.tokens} tokens",
        f"  {'':28}{'min':>10}{'median':>10}{'max':>10}",
    ]
    lines += [f"  {name:28}{s.smallest:10.3f}{s.median:10.3f}{s.largest:10.3f}" for name, s in rows]
    verdict = "met" if result.is_met else "NOT met"
    return "\n".join([*lines, f"  at least {LEAST_RATIO} in the median: {verdict}"])


def main() -> None:
    """Measure and print the table; the document goes to a file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api_rate")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = write_synthetic_model(Path(name) / "synthetic.gguf")
        result = measure(path, tokens=options.tokens, rounds=options.rounds)
    print(table(result))
    if options.json is not None:
        document = {"schema": 1, "result": asdict(result)}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
