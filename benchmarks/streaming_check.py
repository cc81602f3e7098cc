"""Whether the synthetic model routes like the recorded one: `python -m benchmarks.streaming_check`.

Both scripts are run through moerun's own engine room with the routing recorded; the simulator
replays it through LRU, as it does the recorded trace where one is named. Accuracy of foretelling
is the product's counter, with as many experts foretold as a token uses.

Knows: which figures make routing alike.
Does not know: how it was made so, or speed.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.streaming import default_folder
from benchmarks.streaming_job import Job, Side, Streaming
from benchmarks.streaming_models import BenchmarkModel, open_model
from benchmarks.streaming_ours import Ours
from benchmarks.streaming_side import carry_out
from moerun.experts.routes import Phase, Trace
from moerun.experts.simulate import SimulatedPolicy, replay, traced_slots
from moerun.experts.trace import read_trace
from moerun.planning.strategy import StreamingMode

FRACTIONS = (0.1, 0.3, 0.5)
PROMPT_TOKENS, DECODED_TOKENS = 28, 128  # of the recorded trace
ROOM_BYTES = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """LRU's hit rates by the share held, reuse from token to token, and foresight."""

    hit_fractions: tuple[float, ...]
    reused_fraction: float
    foretold_fraction: float | None = None


def likeness_of(trace: Trace, foretold_fraction: float | None = None) -> Likeness:
    """Return the figures of a trace."""
    slot_bytes = traced_slots(trace)
    all_bytes = trace.header.expert_count * sum(slot_bytes.values())
    hits = tuple(
        replay(
            trace,
            SimulatedPolicy.LRU,
            slot_bytes=slot_bytes,
            cache_bytes=int(all_bytes * fraction),
        ).decode.hit_fraction
        or 0.0
        for fraction in FRACTIONS
    )
    return Likeness(
        hit_fractions=hits,
        reused_fraction=_reused_fraction(trace),
        foretold_fraction=foretold_fraction,
    )


def _reused_fraction(trace: Trace) -> float:
    """Return the share of a decoded token's experts that the decoded token before used too."""
    reused = used = 0
    before: dict[int, frozenset[int]] = {}
    for each in trace.passes:
        if each.phase is not Phase.DECODE:
            continue
        for choice in each.choices:
            now = frozenset(choice.experts)
            if choice.layer in before:
                reused += len(now & before[choice.layer])
                used += len(now)
            before[choice.layer] = now
    return reused / used


def run_script(model: BenchmarkModel, folder: Path, *, threads: int = 1) -> Likeness:
    """Run a model's script with all experts in memory, and return what its routing is like."""
    prompt, decoded = model.script(PROMPT_TOKENS, DECODED_TOKENS)
    trace_path = str(folder / f"{model.name}.csv")
    job = Job(
        side=Side.OURS,
        model_path=str(model.path),
        prompt=prompt,
        decoded=decoded,
        threads=threads,
        context_tokens=256,
        ubatch_tokens=64,
        limit_bytes=model.size_bytes + ROOM_BYTES,
        streaming=Streaming(mode=StreamingMode.CACHE, preload_experts=8),
        state_folder=str(folder),
        trace_path=trace_path,
    )
    outcome = carry_out(job, Ours(job))
    ahead = None if outcome.sample is None else outcome.sample.preloading
    accuracy = None if ahead is None else ahead.accuracy_fraction
    return likeness_of(read_trace(trace_path), accuracy)


def _line(name: str, found: Likeness) -> str:
    rates = "".join(f"{100 * fraction:8.1f}" for fraction in found.hit_fractions)
    ahead = "" if found.foretold_fraction is None else f"{100 * found.foretold_fraction:10.1f}"
    return f"{name:24}{rates}{100 * found.reused_fraction:10.1f}{ahead}"


def main() -> None:
    """Print the figures of a recorded trace, if one is named, and of both scripts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming_check")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--trace", type=Path, help="a recorded trace to compare with")
    options = parser.parse_args()
    rates = "".join(f"{100 * fraction:6.0f} %" for fraction in FRACTIONS)
    print(f"{'LRU with so many held':24}{rates}{'reused':>10}{'foretold':>10}")
    if options.trace is not None:
        print(_line("recorded", likeness_of(read_trace(options.trace))))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("skewed", "uniform"):
            model = open_model(name, options.folder)
            print(_line(name, run_script(model, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
