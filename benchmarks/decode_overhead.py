"""Decoding through moerun beside plain llama-cpp-python, in one run on one machine.

`python -m benchmarks.decode_overhead [--json FILE]` writes a synthetic model of more than a
gigabyte, runs three ways of decoding it in turn, round by round, and prints the ratios of each
round with their spread; then the same for the small model, as microseconds for each token.

The ways: moerun's runner (a process, answers as events over a pipe), the class `Llama` of
llama-cpp-python, and a bare loop of `llama_decode` and a greedy sampler. All have the same
threads, context, micro-batch, flash attention, load mode and no repacking.

Knows: what is timed: the tokens after the first, from the moment that the first is there.
Does not know: what is fast enough.
"""

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llama_cpp
import psutil
from llama_cpp import llama_cpp as low_level

import moerun
from benchmarks.synthetic_model import write_synthetic_model
from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.planning.strategy import LoadMode, Toggle
from moerun.runner.parent import Runner
from tests.tiny_models import Shape, write_tiny_model

CONTEXT_TOKENS, BATCH_TOKENS = 1024, 512
PROMPT = "What is a mixture of experts?"
# The demo model's shape, for the time before the demo model is trained.
DEMO_SHAPE = Shape(layers=6, width=256, experts=16, vocabulary=2048)

Decode = Callable[[int], float]
"""Decodes up to that many tokens after the first, greedily, and returns seconds per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Several figures of one kind."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured of one model; overhead is of moerun over the bare loop."""

    model: str
    size_gb: float
    tokens: int
    rounds: int
    threads: int
    tokens_per_s: dict[str, Spread]
    ratio_to_llama_class: Spread
    ratio_to_bare_loop: Spread
    overhead_us_per_token: Spread


def measure(
    label: str, path: Path, *, tokens: int, rounds: int, threads: int, as_chat: bool = False
) -> Result:
    """Run every way in turn, so that whatever else the machine does hits all of them alike."""
    with ExitStack() as stack:
        ways: dict[str, Decode] = {
            "moerun": stack.enter_context(through_the_runner(path, threads, as_chat=as_chat)),
            "Llama": stack.enter_context(through_the_class(path, threads)),
            "bare loop": stack.enter_context(through_a_bare_loop(path, threads)),
        }
        for decode in ways.values():
            decode(tokens // 4)  # warms caches and the branch of every first call
        # Each round begins with another way: what comes first may find a cooler machine.
        names = list(ways)
        timed: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for step in range(len(names)):
                name = names[(number + step) % len(names)]
                timed[name].append(ways[name](tokens))
    mine, theirs, bare = (timed[name] for name in names)
    return Result(
        model=label,
        size_gb=path.stat().st_size / 1e9,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        tokens_per_s={name: spread([1 / s for s in timed[name]]) for name in names},
        ratio_to_llama_class=spread([b / a for a, b in zip(mine, theirs, strict=True)]),
        ratio_to_bare_loop=spread([b / a for a, b in zip(mine, bare, strict=True)]),
        overhead_us_per_token=spread([(a - b) * 1e6 for a, b in zip(mine, bare, strict=True)]),
    )


def spread(values: list[float]) -> Spread:
    """Return the smallest, the middle and the largest."""
    return Spread(smallest=min(values), median=statistics.median(values), largest=max(values))


@contextmanager
def through_the_runner(path: Path, threads: int, *, as_chat: bool) -> Iterator[Decode]:
    """Decode as `moerun run` does: a runner process, text as events.

    A trained model answers only what is asked in its own template, and ends its answers.
    """
    arguments = EngineArgs(
        model_path=str(path),
        devices=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        context_tokens=CONTEXT_TOKENS,
        batch_tokens=BATCH_TOKENS,
        ubatch_tokens=BATCH_TOKENS,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.ON,
        extra_buffers=False,
        load_mode=LoadMode.MMAP,
        threads=threads,
    )
    with tempfile.TemporaryDirectory() as folder, Runner(log_folder=Path(folder)) as runner:
        runner.load(arguments)

        def decode(tokens: int) -> float:
            request = GenerationRequest(
                messages=(Message(role="user", content=PROMPT),) if as_chat else (),
                prompt=PROMPT,
                sampling=Sampling(temperature=0.0, repeat_penalty=1.0),
                maximum_tokens=tokens + 1,
            )
            pieces: list[str] = []
            result = runner.generate(request, on_text=pieces.append)
            assert result.answer_tokens > 1, "the answer ended at once"
            return result.answer_s / (result.answer_tokens - 1)

        yield decode


@contextmanager
def through_the_class(path: Path, threads: int) -> Iterator[Decode]:
    """Decode with `llama_cpp.Llama.generate`, which most programs use."""
    defaults = low_level.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    with patch.object(low_level, "llama_model_default_params", without_repacking):
        model = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT_TOKENS,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            use_mmap=True,
            verbose=False,
        )

    def decode(tokens: int) -> float:
        model.reset()
        stream = model.generate(model.tokenize(PROMPT.encode()), temp=0.0)
        next(stream)
        started_s = time.perf_counter()
        for _ in range(tokens):
            next(stream)
        return (time.perf_counter() - started_s) / tokens

    yield decode
    model.close()


@contextmanager
def through_a_bare_loop(path: Path, threads: int) -> Iterator[Decode]:
    """Decode with `llama_decode` and a greedy sampler, nothing else."""
    parameters = low_level.llama_model_default_params()
    parameters.use_extra_bufts = False
    parameters.n_gpu_layers = 0
    model = low_level.llama_model_load_from_file(str(path).encode(), parameters)
    context_parameters = low_level.llama_context_default_params()
    context_parameters.n_ctx = CONTEXT_TOKENS
    context_parameters.n_batch = context_parameters.n_ubatch = BATCH_TOKENS
    context_parameters.n_threads = context_parameters.n_threads_batch = threads
    context_parameters.flash_attn_type = 1
    context = low_level.llama_init_from_model(model, context_parameters)
    sampler = low_level.llama_sampler_init_greedy()
    vocabulary = low_level.llama_model_get_vocab(model)
    prompt = (low_level.llama_token * 256)()
    text = PROMPT.encode()
    count = low_level.llama_tokenize(vocabulary, text, len(text), prompt, 256, True, True)

    def run(tokens: ctypes.Array[Any], length: int) -> int:
        batch = low_level.llama_batch_get_one(tokens, length)
        status = low_level.llama_decode(context, batch)
        assert status == 0, f"llama_decode gave {status}"
        return int(low_level.llama_sampler_sample(sampler, context, -1))

    def decode(tokens: int) -> float:
        low_level.llama_memory_clear(low_level.llama_get_memory(context), True)
        single = (low_level.llama_token * 1)(run(prompt, count))
        started_s = time.perf_counter()
        for _ in range(tokens):
            single[0] = run(single, 1)
        return (time.perf_counter() - started_s) / tokens

    yield decode
    low_level.llama_sampler_free(sampler)
    low_level.llama_free(context)
    low_level.llama_model_free(model)


def small_model(folder: Path) -> tuple[str, Path, bool]:
    """Return the embedded demo model, or one of its shape while there is none, and if it chats."""
    embedded = sorted((Path(moerun.__file__).parent / "data").rglob("*.gguf"))
    if embedded:
        return "the demo model", embedded[0], True
    path = write_tiny_model(folder / "small.gguf", "qwen3moe", shape=DEMO_SHAPE)
    return "random weights of the demo model's size", path, False


def table(result: Result) -> str:
    """Return a few lines to read."""
    lines = [
        f"{result.model}, {result.size_gb:.2f} GB: {result.rounds} rounds of {result.tokens} "
        f"tokens on {result.threads} threads",
        f"  {'':28}{'min':>10}{'median':>10}{'max':>10}",
    ]
    rows = [(f"{name}, tokens/s", s) for name, s in result.tokens_per_s.items()]
    rows += [
        ("moerun / Llama", result.ratio_to_llama_class),
        ("moerun / bare loop", result.ratio_to_bare_loop),
        ("overhead, us per token", result.overhead_us_per_token),
    ]
    lines += [f"  {name:28}{s.smallest:10.3f}{s.median:10.3f}{s.largest:10.3f}" for name, s in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure both models and print the tables; the document goes to a file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_overhead")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--model", type=Path, help="use this large model, not a synthetic one")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    options = parser.parse_args()
    amount = {"rounds": options.rounds, "threads": options.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = options.model or write_synthetic_model(folder / "synthetic.gguf")
        label, small, as_chat = small_model(folder)
        results = [
            measure(large.name, large, tokens=options.tokens, **amount),
            measure(label, small, tokens=options.tokens * 4, as_chat=as_chat, **amount),
        ]
    for result in results:
        print(table(result))
    if options.json is not None:
        document = {"schema": 1, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
