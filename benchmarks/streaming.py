"""moerun beside stock llama-cpp-python where a model does not fit: `make bench-stream`.

Fixed before any run, and why:

* The limit is a control group's around the whole child: Python, libraries, weights, caches, the
  kernel's part. `fits` is the model and 1 GiB, enough for all else.
* Both sides in one run, round by round, the side that begins taking turns; caches dropped before
  each child; the disk's read-ahead at 128 KB, the kernel's default, while it lasts.
* Same tokens, threads, context, micro-batch, flash attention; no repacking. Tokens are given, not
  sampled, so both sides compute the same, and the logits of every token are compared.
* Rates are of all decoded tokens, the cold ones too; the later half is beside them. Figures are
  medians, the smallest and largest next to them.
* What moerun learns of a model is forgotten between runs unless `--remember` is given: the same
  script again would flatter a memory of the experts it used.
* The policy's constants are the product's defaults; nothing here sets them but flags.

Run it on a machine that does nothing else: every program that reads the disk is in the figures.

Knows: which runs there are, and in which order.
Does not know: how a run is made, or how figures are laid out.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from benchmarks.streaming_child import ChildFailed, run_job
from benchmarks.streaming_disk import best_direct_rate
from benchmarks.streaming_job import Job, Run, Side, Streaming
from benchmarks.streaming_machine import Disk, Unmeasurable, alone, drop_caches
from benchmarks.streaming_models import NAMES, BenchmarkModel, open_model
from benchmarks.streaming_report import SCHEMA, Comparison, Round, comparison_lines, profile_lines
from moerun.codec import to_plain
from moerun.experts.order import PolicyName
from moerun.planning.strategy import StreamingMode

CONTEXT_TOKENS, UBATCH_TOKENS = 1024, 512
ANSWER_TOKENS: Final = 384  # an answer of a few paragraphs
FITS_ROOM_BYTES: Final = 1 << 30
READ_BYTES: Final = 557_056  # one matrix of an expert of the routed model
TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    folder: Path
    models: tuple[str, ...]
    limits: tuple[str, ...]
    sides: tuple[Side, ...]
    rounds: int
    prompt_tokens: int
    decoded_tokens: int
    threads: int
    streaming: Streaming
    has_profile: bool
    remembers: bool
    simulates: bool
    json_path: Path | None


def limit_bytes(label: str, model_bytes: int) -> int:
    """Return the bytes of a limit: `fits`, or percent of the model. ValueError otherwise."""
    if label == "fits":
        return model_bytes + FITS_ROOM_BYTES
    percent = float(label)
    if not 0 < percent <= 1000:
        raise ValueError(f"a limit is percent of the model, or `fits`, not {label}")
    return int(model_bytes * percent / 100)


class Bench:
    """Runs what the options say, and prints each comparison as soon as it is there."""

    def __init__(self, options: Options, state_folder: Path) -> None:
        self._options = options
        self._state_folder = state_folder
        self._compute_s: dict[str, float] = {}
        self._full_bytes: dict[str, int] = {}

    def compare(self, model: BenchmarkModel, label: str) -> Comparison:
        """Measure one model under one limit."""
        options = self._options
        prompt, decoded = model.script(options.prompt_tokens, options.decoded_tokens)
        share_bytes = limit_bytes(label, model.size_bytes)
        job = Job(
            side=Side.STOCK,
            model_path=str(model.path),
            prompt=prompt,
            decoded=decoded,
            threads=options.threads,
            context_tokens=CONTEXT_TOKENS,
            ubatch_tokens=UBATCH_TOKENS,
            limit_bytes=share_bytes + model.process_room_bytes,
            most_expert_bytes=share_bytes if model.process_room_bytes else None,
            streaming=options.streaming,
            state_folder=str(self._state_folder),
        )
        rounds = tuple(self._round(job, number) for number in range(options.rounds))
        comparison = Comparison(
            model=model.name,
            label=label if label == "fits" else f"{label} %",
            model_bytes=model.size_bytes,
            limit_bytes=job.limit_bytes,
            prompt_tokens=len(prompt),
            decoded_tokens=len(decoded),
            compute_s=None,
            full_bytes=None,
            rounds=rounds,
        )
        if label == "fits" and comparison.runs(Side.STOCK):
            rates = [outcome.later_tokens_per_s for outcome in comparison.outcomes(Side.STOCK)]
            self._compute_s[model.name] = 1 / statistics.median(rates)
            self._full_bytes[model.name] = max(r.peak_bytes for r in comparison.runs(Side.STOCK))
        return replace(
            comparison,
            compute_s=self._compute_s.get(model.name),
            full_bytes=self._full_bytes.get(model.name),
        )

    def _round(self, job: Job, number: int) -> Round:
        """Run each side once; every other round begins with the other one."""
        path = Path(job.model_path)
        drop_caches([path])
        rate = best_direct_rate(path, read_bytes=READ_BYTES)
        sides = list(self._options.sides)
        if number % 2:
            sides.reverse()
        runs: dict[Side, Run] = {}
        for side in sides:
            runs[side] = self._run(replace(job, side=side))
            _progress(side, number, runs[side])
        return Round(disk_bytes_per_s=rate, stock=runs.get(Side.STOCK), ours=runs.get(Side.OURS))

    def _run(self, job: Job) -> Run:
        with tempfile.TemporaryDirectory(dir=self._state_folder) as own:
            state = self._state_folder if self._options.remembers else Path(own)
            trace = str(Path(own) / "trace.csv") if self._options.simulates else None
            job = replace(job, state_folder=str(state), trace_path=trace)
            return run_job(job, limit_bytes=job.limit_bytes, timeout_s=TIMEOUT_S)


def _progress(side: Side, number: int, run: Run) -> None:
    outcome = run.outcome
    sys.stderr.write(
        f"  round {number + 1}, {side.value}: first token {outcome.first_token_s:.2f} s, "
        f"{outcome.tokens_per_s:.2f} tokens/s\n"
    )


def measure(options: Options) -> list[Comparison]:
    """Run everything and print it on the way."""
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as state:
        bench = Bench(options, Path(state))
        for name in options.models:
            model = open_model(name, options.folder)
            with Disk.below(model.path).read_ahead() as words:
                how = drop_caches([model.path])
                print(f"{model.path}: {words}; caches dropped by {how}", flush=True)
                for label in _fits_first(options.limits):
                    comparison = bench.compare(model, label)
                    comparisons.append(comparison)
                    lines = list(comparison_lines(comparison))
                    if options.has_profile:
                        lines += profile_lines(comparison)
                    print("\n".join(lines), flush=True)
    return comparisons


def _fits_first(labels: Sequence[str]) -> list[str]:
    """Return the limits with `fits` in front: it tells what computing alone takes."""
    return sorted(labels, key=lambda label: label != "fits")


def default_folder() -> Path:
    """Return where models are kept: never a temporary memory disk, which has no reads."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "moerun-bench"


def read_options(words: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming")
    add = parser.add_argument
    add("--folder", type=Path, default=default_folder(), help="where models are kept")
    add("--model", default="skewed,uniform", help=f"of {', '.join(NAMES)}, or a .gguf file")
    add("--limits", default="fits,40,50,60", help="percent of the model, or `fits`")
    add("--sides", default="stock,moerun")
    add("--rounds", type=int, default=3)
    add("--prompt", type=int, default=16, help="tokens of the prompt")
    add("--tokens", type=int, default=ANSWER_TOKENS, help="tokens that are decoded")
    add("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    add("--mode", type=StreamingMode, default=StreamingMode.AUTO, help="auto, cache or paging")
    add("--policy", type=PolicyName, help="lru or frequency")
    add("--preload", type=int, help="experts read ahead for each layer")
    add("--threads-readers", type=int, help="threads that read")
    add("--profile", action="store_true", help="say where the time of a token goes")
    add("--remember", action="store_true", help="keep what a run learned for the rounds after it")
    add(
        "--simulate", action="store_true", help="record the routing and replay it, which takes time"
    )
    add("--json", type=Path, help="write all figures to this file as well")
    given = parser.parse_args(words)
    return Options(
        folder=given.folder,
        models=tuple(given.model.split(",")),
        limits=tuple(given.limits.split(",")),
        sides=tuple(Side(side) for side in given.sides.split(",")),
        rounds=given.rounds,
        prompt_tokens=given.prompt,
        decoded_tokens=given.tokens,
        threads=given.threads,
        streaming=Streaming(
            mode=given.mode,
            policy=given.policy,
            preload_experts=given.preload,
            reader_threads=given.threads_readers,
        ),
        has_profile=given.profile,
        remembers=given.remember,
        simulates=given.simulate,
        json_path=given.json,
    )


def main() -> None:
    """Measure, print, and write the document if a file is named."""
    options = read_options(sys.argv[1:])
    try:
        with alone():
            comparisons = measure(options)
    except (ChildFailed, Unmeasurable) as error:
        sys.exit(f"Error: {error}")
    if options.json_path is not None:
        document = {"schema": SCHEMA, "comparisons": to_plain(comparisons)}
        options.json_path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
