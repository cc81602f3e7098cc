"""How long planning takes for 94 layers and four devices, the median of many.

`python -m benchmarks.planning [--rounds N] [--json FILE]` plans the shape of Qwen3-235B on four
cards of equal and of different sizes, with the context free (every rung of the ladder is a
placement of its own) and fixed. Nothing is read or loaded meanwhile. One thread plans, so the
limit is on its processor time, which other programs on the machine do not stretch; wall time is
printed beside it.

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
    processor_s: float
    wall_s: float


def time_plan(sizes_gib: Sequence[int], context_tokens: int | None, *, rounds: int) -> Timing:
    """Plan once to warm up and then `rounds` times."""
    model = real_model(MODEL)
    cards = [a_gpu(index, free=size * GIB) for index, size in enumerate(sizes_gib)]
    machine = a_machine(gpus=cards, ram=64 * GIB)
    wall, processor = [], []
    for _ in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        plan_placement(model, machine, Strategy(context_tokens=context_tokens))
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return Timing(
        devices_gib=tuple(sizes_gib),
        context_tokens=context_tokens,
        rounds=rounds,
        processor_s=statistics.median(processor[1:]),
        wall_s=statistics.median(wall[1:]),
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
            f"94 layers, {sizes} GiB, context {context}: "
            f"{timing.processor_s * 1000:.1f} ms of one processor (limit {LIMIT_S * 1000:g}), "
            f"{timing.wall_s * 1000:.1f} ms on the wall\n"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in timings], indent=1) + "\n")
    return int(max(timing.processor_s for timing in timings) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
