"""Four answers at once beside one, through a runner and by the bare engine, in one run.

`python -m benchmarks.parallel [--api] [--json FILE] [--model FILE]` measures the tokens per second
of one sequence and of four, by a bare loop over `llama_decode` and by moerun's runner, or with
`--api` by `moerun serve`, with as many requests in flight. Every round takes all four ways in turn,
each round in another order, and the ratio of each kind is of two ways of the same round. What is
judged is moerun's ratio of four to one over the bare engine's.

Knows: what is timed: the tokens after the first of every answer, each answer by its own clock.
Does not know: what is fast enough.
"""

import argparse
import ctypes
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from llama_cpp import llama_cpp as low_level

from benchmarks.decode_overhead import Spread, spread
from benchmarks.served import TimedAnswer, served, timed_completion
from benchmarks.synthetic_model import write_synthetic_model
from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import GenerationRequest, GenerationResult, Sampling
from moerun.planning.strategy import LoadMode, Toggle
from moerun.runner.parent import Runner

LEAST_RATIO = 0.9
CONTEXT_TOKENS, BATCH_TOKENS = 2048, 512
PROMPTS = tuple(f"What is a mixture of {word} experts?" for word in ("two", "four", "ten", "no"))

Rate = Callable[[int, int], float]
"""Decodes so many tokens in each of so many sequences, and returns tokens per second of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured; ratios are of four sequences to one, and of moerun's to the bare."""

    model: str
    size_gb: float
    tokens: int
    rounds: int
    threads: int
    tokens_per_s: dict[str, Spread]
    ratio_runner: Spread
    ratio_bare: Spread
    runner_over_bare: Spread


def measure(path: Path, *, tokens: int, rounds: int, threads: int, is_api: bool) -> Result:
    """Run every way in turn, so that whatever else the machine does hits all alike."""
    through = through_the_server if is_api else through_the_runner
    with ExitStack() as stack:
        runner = stack.enter_context(through(path, threads))
        bare = stack.enter_context(through_a_bare_loop(path, threads))
        ways = [("moerun 1", runner, 1), ("moerun 4", runner, 4)]
        ways += [("bare 1", bare, 1), ("bare 4", bare, 4)]
        timed: dict[str, list[float]] = {name: [] for name, _, _ in ways}
        for _, way, count in ways:
            way(count, tokens // 4)  # warms caches and the branch of every first call
        for number in range(rounds):
            for step in range(len(ways)):
                name, way, count = ways[(number + step) % len(ways)]
                timed[name].append(way(count, tokens))
    mine = [b / a for a, b in zip(timed["moerun 1"], timed["moerun 4"], strict=True)]
    theirs = [b / a for a, b in zip(timed["bare 1"], timed["bare 4"], strict=True)]
    return Result(
        model=path.name,
        size_gb=path.stat().st_size / 1e9,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        tokens_per_s={name: spread(values) for name, values in timed.items()},
        ratio_runner=spread(mine),
        ratio_bare=spread(theirs),
        runner_over_bare=spread([a / b for a, b in zip(mine, theirs, strict=True)]),
    )


@contextmanager
def through_the_runner(path: Path, threads: int) -> Iterator[Rate]:
    """Decode as a server does: threads of one parent, each with its own request."""
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
        sequences=4,
    )
    with tempfile.TemporaryDirectory() as folder, Runner(log_folder=Path(folder)) as runner:
        runner.load(arguments)
        never_ends = _end_bias(path)

        def rate(count: int, tokens: int) -> float:
            results: list[GenerationResult] = []

            def ask(index: int) -> None:
                request = GenerationRequest(
                    prompt=PROMPTS[index],
                    sampling=Sampling(temperature=0.0, logit_bias=never_ends),
                    maximum_tokens=tokens + 1,
                )
                results.append(runner.generate(request))

            threads_of_all = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
            for thread in threads_of_all:
                thread.start()
            for thread in threads_of_all:
                thread.join()
            assert all(result.answer_tokens == tokens + 1 for result in results), "one ended early"
            # Pieces of text are no measure: a token may be a part of a character.
            return sum((r.answer_tokens - 1) / r.answer_s for r in results)

        yield rate


@contextmanager
def through_the_server(path: Path, threads: int) -> Iterator[Rate]:
    """Decode with as many clients of a server, loaded as the bare engine is."""
    settings = {
        "MODELS": str(path.parent),
        "CONTEXT": str(CONTEXT_TOKENS),
        "BATCH": str(BATCH_TOKENS),
        "UBATCH": str(BATCH_TOKENS),
        "THREADS": str(threads),
        "FLASH_ATTENTION": "on",
        "EXTRA_BUFFERS": "off",
        "LOAD_MODE": "mmap",
    }
    ends = tuple(token for token, _ in _end_bias(path))
    with served(4, {f"MOERUN_{name}": value for name, value in settings.items()}) as server:

        def rate(count: int, tokens: int) -> float:
            answers: list[TimedAnswer] = []

            def ask(index: int) -> None:
                answers.append(
                    timed_completion(
                        server.url, path.stem, PROMPTS[index], tokens=tokens + 1, ends=ends
                    )
                )

            threads_of_all = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
            for thread in threads_of_all:
                thread.start()
            for thread in threads_of_all:
                thread.join()
            assert len(answers) == count, "an answer failed"
            return sum(answer.tokens_per_s for answer in answers)

        yield rate


@contextmanager
def through_a_bare_loop(path: Path, threads: int) -> Iterator[Rate]:
    """Decode with a batch of one token for each sequence, and a greedy sampler."""
    model_parameters = low_level.llama_model_default_params()
    model_parameters.use_extra_bufts = False
    model_parameters.n_gpu_layers = 0
    model = low_level.llama_model_load_from_file(str(path).encode(), model_parameters)
    parameters = low_level.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT_TOKENS, BATCH_TOKENS, 512
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = 1
    parameters.n_seq_max, parameters.kv_unified = 4, True
    context = low_level.llama_init_from_model(model, parameters)
    vocabulary = low_level.llama_model_get_vocab(model)
    sampler = low_level.llama_sampler_init_greedy()
    batch = low_level.llama_batch_init(BATCH_TOKENS, 0, 1)

    def run(rows: list[tuple[int, int, int, bool]]) -> None:
        for row, (token, position, sequence, wants) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = wants
        batch.n_tokens = len(rows)
        status = low_level.llama_decode(context, batch)
        assert status == 0, f"llama_decode gave {status}"

    def rate(count: int, tokens: int) -> float:
        low_level.llama_memory_clear(low_level.llama_get_memory(context), True)
        lengths, newest = [], []
        for sequence in range(count):
            prompt = _tokens(vocabulary, PROMPTS[sequence])
            last = len(prompt) - 1
            run([(token, i, sequence, i == last) for i, token in enumerate(prompt)])
            newest.append(int(low_level.llama_sampler_sample(sampler, context, -1)))
            lengths.append(len(prompt))
        started_s = time.perf_counter()
        for step in range(tokens):
            run([(newest[s], lengths[s] + step, s, True) for s in range(count)])
            newest = [
                int(low_level.llama_sampler_sample(sampler, context, s)) for s in range(count)
            ]
        return count * tokens / (time.perf_counter() - started_s)

    yield rate
    low_level.llama_batch_free(batch)
    low_level.llama_sampler_free(sampler)
    low_level.llama_free(context)
    low_level.llama_model_free(model)


def _end_bias(path: Path) -> tuple[tuple[int, float], ...]:
    """Return what keeps a model from ending an answer."""
    parameters = low_level.llama_model_default_params()
    parameters.vocab_only = True
    model = low_level.llama_model_load_from_file(str(path).encode(), parameters)
    vocabulary = low_level.llama_model_get_vocab(model)
    size = low_level.llama_vocab_n_tokens(vocabulary)
    ends = [t for t in range(size) if low_level.llama_vocab_is_eog(vocabulary, t)]
    low_level.llama_model_free(model)
    return tuple((token, -100.0) for token in ends)


def _tokens(vocabulary: object, text: str) -> list[int]:
    data = text.encode()
    array = (low_level.llama_token * 256)()
    count = low_level.llama_tokenize(
        ctypes.cast(vocabulary, ctypes.c_void_p),  # type: ignore[arg-type]
        data, len(data), array, 256, True, True,
    )  # fmt: skip
    return list(array[:count])


def table(result: Result) -> str:
    """Return a few lines to read."""
    rows = [(f"{name}, tokens/s", s) for name, s in result.tokens_per_s.items()]
    rows += [
        ("moerun, four / one", result.ratio_runner),
        ("bare, four / one", result.ratio_bare),
        ("moerun's ratio / bare's", result.runner_over_bare),
    ]
    lines = [
        f"{result.model}, {result.size_gb:.2f} GB: {result.rounds} rounds of {result.tokens} "
        f"tokens on {result.threads} threads",
        f"  {'':28}{'min':>10}{'median':>10}{'max':>10}",
    ]
    lines += [f"  {name:28}{s.smallest:10.3f}{s.median:10.3f}{s.largest:10.3f}" for name, s in rows]
    is_met = "met" if result.runner_over_bare.median >= LEAST_RATIO else "NOT met"
    return "\n".join([*lines, f"  at least {LEAST_RATIO} in the median: {is_met}"])


def main() -> None:
    """Measure and print the table; the document goes to a file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--model", type=Path, help="use this model, not a synthetic one")
    parser.add_argument("--api", action="store_true", help="ask `moerun serve`, not the runner")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = options.model or write_synthetic_model(Path(name) / "synthetic.gguf")
        result = measure(
            path,
            tokens=options.tokens,
            rounds=options.rounds,
            threads=options.threads,
            is_api=options.api,
        )
    print(table(result))
    if options.json is not None:
        document = {"schema": 1, "result": asdict(result)}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
