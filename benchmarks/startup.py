"""How long `moerun --help` and `moerun plan` take from the shell, median of many.

`python -m benchmarks.startup [--rounds N] [--json FILE]` writes a sparse file in the shape of
Qwen3-235B (94 layers, a vocabulary of 151,936 tokens, 142 GiB of which some 6 MB are on disk) and
runs each command again and again as a process of its own, the bare interpreter beside it. Wall
time is what a person waits; processor time tells whether a slow wall time was the machine's.

Knows: what is run, and how times are summed up.
Does not know: what is fast enough; docs/figures.md does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.real_shapes import write_sparse_gguf

MODEL = "qwen3-235b-a22b-142gib"
ENTRIES = ("qwen3-30b-a3b", "deepseek-v3", "glm-4.5")  # of the catalogue; the last has most tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall times of one command, and its median time on the processor."""

    command: str
    rounds: int
    median_s: float
    smallest_s: float
    largest_s: float
    processor_s: float


def time_command(label: str, command: Sequence[str], *, rounds: int, folder: Path) -> Timing:
    """Run a command once to fill the caches and then `rounds` times."""
    environment = {**os.environ, "MOERUN_STATE_DIR": str(folder), "MOERUN_CONFIG_DIR": str(folder)}
    times, processor_times = [], []
    for _ in range(rounds + 1):
        used, started = _children_s(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        times.append(time.perf_counter() - started)
        processor_times.append(_children_s() - used)
        if done.returncode:
            raise RuntimeError(f"{label} failed: {done.stderr.decode(errors='replace')}")
    del times[0], processor_times[0]
    return Timing(
        command=label,
        rounds=rounds,
        median_s=statistics.median(times),
        smallest_s=min(times),
        largest_s=max(times),
        processor_s=statistics.median(processor_times),
    )


def _children_s() -> float:
    """Return the processor time of all children that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def measure(rounds: int) -> tuple[Timing, ...]:
    """Return the timings of the bare interpreter, of the help and of a plan."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = str(write_sparse_gguf(folder / "model.gguf", MODEL))
        python = [sys.executable]
        moerun = [*python, "-m", "moerun"]
        script = Path(sys.executable).with_name("moerun")
        if script.exists():
            moerun = [str(script)]
        commands = (
            ("python -c pass", [*python, "-c", "pass"]),
            ("moerun --help", [*moerun, "--help"]),
            ("moerun plan MODEL", [*moerun, "plan", model, "--vram", "24G", "--ram", "64G"]),
            ("moerun plan MODEL --json", [*moerun, "plan", model, "--json"]),
            *(
                (f"moerun plan {name}", [*moerun, "plan", name, "--vram", "24G", "--ram", "64G"])
                for name in ENTRIES
            ),
            ("moerun plan", [*moerun, "plan", "--vram", "24G", "--ram", "64G"]),
        )
        return tuple(
            time_command(label, command, rounds=rounds, folder=folder)
            for label, command in commands
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timings = measure(options.rounds)
    print(f"{'command':28}{'median':>9}{'smallest':>10}{'largest':>9}{'processor':>11}   rounds")
    for timing in timings:
        figures = f"{timing.median_s:8.3f}s{timing.smallest_s:9.3f}s{timing.largest_s:8.3f}s"
        figures += f"{timing.processor_s:10.3f}s"
        print(f"{timing.command:28}{figures}{timing.rounds:9}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=2))


if __name__ == "__main__":
    main()
