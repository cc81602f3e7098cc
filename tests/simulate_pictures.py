"""A simulation with round numbers, drawn: the pictures that tests/snapshots pins.

`python -m tests.simulate_pictures` writes them anew; look at the difference before you commit it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moerun.experts.routes import Phase
from moerun.experts.simulate import Disk, Question, SimulatedPolicy, Simulation, simulate
from moerun.report.console import ASCII, Page
from moerun.report.simulate_view import simulation_lines
from tests.plan_pictures import drawn
from tests.traces import a_pass, a_trace

FOLDER = Path(__file__).parent / "snapshots"
MIB = 1 << 20


def a_picture_simulation(*, compute_s: float | None = None) -> Simulation:
    """Return 40 answer tokens of four layers of eight experts, two used, replayed."""
    passes = [a_pass(*[(0, 1, 2, 3)] * 4, phase=Phase.PREFILL, tokens=5)]
    passes += [a_pass(*[(step % 5, 5 + step % 3)] * 4) for step in range(40)]
    trace = a_trace(passes, expert_bytes=32 * MIB)
    header = replace(trace.header, model_name="Picture\x1b[31m.gguf", shared_bytes=256 * MIB)
    return simulate(
        replace(trace, header=header, notes=("line 9 was cut off",)),
        Question(
            ram_bytes=tuple(size * MIB for size in (512, 768, 1024, 4096)),
            policies=tuple(SimulatedPolicy),
            disk=Disk(read_bytes_per_s=1.5e9, origin="as stated (--disk)"),
            compute_s=compute_s,
        ),
    )


def picture(page: Page, *, compute_s: float | None = None) -> str:
    return drawn(simulation_lines(a_picture_simulation(compute_s=compute_s), page), page)


PICTURES: dict[str, Callable[[], str]] = {
    "simulate_80": lambda: picture(Page(columns=80), compute_s=0.02),
    "simulate_60": lambda: picture(Page(columns=60)),
    "simulate_pipe": lambda: picture(Page(wraps=False)),
    "simulate_ascii": lambda: picture(Page(columns=80, glyphs=ASCII)),
}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.txt").write_text(draw(), encoding="utf-8")
