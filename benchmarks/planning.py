"""How long planning takes for 94 layers and four devices, the median of many.

`python -m benchmarks.planning [--rounds N] [--json FILE]` plans the shape of Qwen3-235B on four
cards of equal and of different sizes, with the context free (every rung of the ladder is a
placement of its own) and fixed. Nothing is read or loaded meanwhile.

Knows: the machines, and how times are summed up.
Does not know: what is fast enough beyond the limit it prints beside the times.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from tests.builders import GIB, a_gpu, a_machine
from tests.real_shapes import real_model

MODEL: Final = "qwen3-235b-a22b-142gib"
LIMIT_S: Final = 0.05
SIZES_GIB: Final = ((24, 24, 24, 24), (8, 12, 16, 24), (48, 24, 16, 8), (6, 6, 6, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of one plan."""

    devices_gib: tuple[int, ...]
    context_tokens: int | None
    rounds: int
    median_s: float
    largest_s: float


def time_plan(sizes_gib: Sequence[int], context_tokens: int | None, *, rounds: int) -> Timing:
    """Plan once to warm up and then `rounds` times."""
    model = real_model(MODEL)
    cards = [a_gpu(index, free=size * GIB) for index, size in enumerate(sizes_gib)]
    machine = a_machine(gpus=cards, ram=64 * GIB)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        plan_placement(model, machine, Strategy(context_tokens=context_tokens))
        times.append(time.perf_counter() - started)
    del times[0]
    return Timing(
        devices_gib=tuple(sizes_gib),
        context_tokens=context_tokens,
        rounds=rounds,
        median_s=statistics.median(times),
        largest_s=max(times),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Time all plans, print a line for each, and fail when one is beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    timings = [
        time_plan(sizes, tokens, rounds=options.rounds)
        for sizes in SIZES_GIB
        for tokens in (None, 8192)
    ]
    for timing in timings:
        sizes = "+".join(str(size) for size in timing.devices_gib)
        context = "free" if timing.context_tokens is None else f"{timing.context_tokens:,}"
        sys.stdout.write(
            f"94 layers, {sizes} GiB, context {context}: {timing.median_s * 1000:.1f} ms "
            f"(at most {timing.largest_s * 1000:.1f}; limit {LIMIT_S * 1000:g})\n"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in timings], indent=1) + "\n")
    return int(max(timing.median_s for timing in timings) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
