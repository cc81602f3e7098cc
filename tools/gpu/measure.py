"""Measure a model at every residency beside the engine's own fit, and write the table.

`python -m tools.gpu.measure [--free 8,24] [--model FILE] [--docs docs/gpu.md] [--cpu]` writes a
model whose experts exceed the largest free memory (or takes one), brings the card's free memory
down with ballast, and loads it in processes of their own: experts on the card as far as they fit
(all of them, without ballast), on the processor, three shares between, as moerun plans by itself,
and as `llama-fit-params` of the same build says. With `--cpu` everything runs on a small model
without a card, to try the script.

Knows: what is compared, and that each side gets the same free memory.
Does not know: CUDA's calls, or how a table looks.
"""

import argparse
import json
import mmap
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.codec import from_plain, to_plain
from moerun.engine.arguments import EngineArgs, EngineDeviceRef, Override, engine_args
from moerun.engine.look import look_at_machine
from moerun.errors import MoerunError, PlanError
from moerun.machine.description import HOST, DeviceId, Machine, is_gpu
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import ExpertResidency, Strategy
from tools.gpu.build import NOT_DONE
from tools.gpu.children import figures_of
from tools.gpu.cuda import CudaError, CudaMemory, ballast
from tools.gpu.table import Report, Row, Transfers, table_lines, write_table

GIB: Final = 1 << 30
CONTEXT_TOKENS: Final = 4096
STEP_S: Final = 300.0  # the last row may take _ANSWER_TIMEOUT_S more
SHARES: Final = (0.25, 0.5, 0.75)
_ANSWER_TIMEOUT_S: Final = 240
# 27 GiB of experts: 48 layers of 128 with 8 used, the shape of the usual models of this size.
LARGE: Final = SyntheticShape(
    layers=48, width=2048, heads=32, head_length=64, expert_ff=768, experts=128, experts_used=8
)
SMALL: Final = SyntheticShape(layers=2, width=256, expert_ff=64, experts=8, experts_used=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One placement to measure: what it is called, and the arguments it comes to."""

    name: str
    args: EngineArgs
    plan: Plan | None


def ways(model: Model, machine: Machine, fit: Callable[[], str] | None) -> Iterator[Way | Row]:
    """Yield the placements; a row instead where one cannot be planned."""
    layers = len(model.layers)
    asked = [
        ("as many experts as fit", Strategy(expert_residency=ExpertResidency(vram_fraction=1.0))),
        *(
            (
                f"at most {share * 100:.0f}% of the experts",
                Strategy(expert_residency=ExpertResidency(vram_fraction=share)),
            )
            for share in SHARES
        ),
        ("experts on the processor", Strategy(cpu_expert_layers=layers)),
        ("moerun's own plan", Strategy()),
    ]
    for name, wish in asked:
        try:
            strategy = replace(wish, context_tokens=CONTEXT_TOKENS)
            plan = plan_placement(model, machine, strategy)
            yield Way(name=name, args=engine_args(plan, model, machine), plan=plan)
        except PlanError as error:
            yield Row(placement=name, failure=error.message)
    if fit is None:
        return
    try:
        yield Way(name="the engine's own fit", args=fitted(fit(), model, machine), plan=None)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        yield Row(placement="the engine's own fit", failure=str(error))


def fitted(said: str, model: Model, machine: Machine) -> EngineArgs:
    """Return the arguments that `llama-fit-params` printed; ValueError when they are not plain.

    Belief: it prints `-c N -ngl N [-ts A,B] [-ot "PATTERN=BUFFER,..."]` —
    tools/fit-params/fit-params.cpp @ 0.3.36 — checked by tests/test_gpu_tools.py.
    """
    words = shlex.split(said.strip().splitlines()[-1]) if said.strip() else []
    values = dict(zip(words[::2], words[1::2], strict=False))
    if not {"-c", "-ngl"} <= values.keys():
        raise ValueError(f"the engine's fit said {said.strip()!r}")
    layers = int(values["-ngl"])
    devices = tuple(
        EngineDeviceRef(id=gpu.id, engine_name=gpu.engine_name or "") for gpu in machine.gpus
    )
    by_name = {device.engine_name: device.id for device in devices}
    strategy = Strategy(context_tokens=CONTEXT_TOKENS)
    bare = engine_args(plan_placement(model, replace(machine, gpus=()), strategy), model, machine)
    return replace(
        bare,
        devices=devices,
        n_gpu_layers=len(model.layers) + 1 if layers < 0 else layers,
        tensor_split=tuple(float(part) for part in values.get("-ts", "").split(",") if part),
        overrides=tuple(_overrides(values.get("-ot", ""), by_name)),
    )


def _overrides(text: str, by_name: dict[str, DeviceId]) -> Iterator[Override]:
    # A comma may be part of a pattern, so each entry ends at `=BUFFER` before a comma or the end.
    for pattern, buffer in re.findall(r"(.+?)=(\w+)(?:,|$)", text):
        yield Override(pattern=pattern, device=by_name.get(buffer, HOST))


def measured(way: Way, model: Model, *, free_bytes: int | None, is_small: bool) -> Row:
    """Load and answer in a process of its own; its failure becomes the row's."""
    planned, share = None, None
    if way.plan is not None:
        planned = sum(way.plan.ledger.used_bytes(device) for device in way.plan.devices)
        on_cards = sum(way.plan.expert_bytes(model, device) for device in way.plan.devices)
        share = on_cards / max(1, model.expert_bytes)
    row = Row(
        placement=way.name, free_bytes=free_bytes, planned_bytes=planned, expert_fraction=share
    )
    order = {
        "args": to_plain(way.args),
        "prompt_tokens": 64 if is_small else 1024,
        "answer_tokens": 8 if is_small else 64,
    }
    found, failure = figures_of(
        "tools.gpu.answer", order, timeout_s=_ANSWER_TIMEOUT_S, late="no answer"
    )
    return replace(row, failure=failure, **found)


def transfers(memory: CudaMemory, path: Path, expert_bytes: int) -> Transfers:
    """Measure pinned copies of experts, and reading each past the page cache and copying it."""
    piece = -(-expert_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    count = min(64, path.stat().st_size // piece)
    target = memory.allocate(piece)
    file = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    try:
        with memory.pinned(piece) as address:
            memory.copy_s(target, address, [piece])
            copied_s = memory.copy_s(target, address, [piece] * 256)
            buffer = (_bytes_at(address, piece),)
            started = time.perf_counter()
            for number in range(count):
                os.preadv(file, buffer, number * piece)
                memory.copy_s(target, address, [piece])
            read_s = (time.perf_counter() - started) / max(1, count)
    finally:
        os.close(file)
        memory.release(target)
    return Transfers(
        expert_bytes=expert_bytes,
        pinned_bytes_per_s=piece * 256 / copied_s,
        storage_to_card_s=read_s,
    )


def _bytes_at(address: int, size_bytes: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def fit_command(program: Path, model: Path) -> Callable[[], str]:
    """Return what asks the engine's own fit for the memory that is free now."""

    def ask() -> str:
        command = [str(program), "-m", str(model), "-c", str(CONTEXT_TOKENS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return ask


def _kept(path: Path | None) -> dict[str, Any]:
    """Return the rows that earlier steps measured."""
    if path is None or not path.exists():
        return {}
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known


def _keep(path: Path | None, known: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")


def run(options: argparse.Namespace) -> Report | None:
    """Measure what was asked for and is not known yet; None when the step's time is over."""
    until_s = time.monotonic() + options.step_s
    known = _kept(options.rows)
    shape = SMALL if options.cpu else LARGE
    path: Path = options.model or options.work / "model.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synthetic_model(path, shape)
    model = read_model(path)
    fit = fit_command(options.fit, path) if options.fit is not None else None
    rows: list[Row] = []
    found: Transfers | None = None
    memory = None if options.cpu else CudaMemory()
    for free_gib in (None,) if memory is None else (None, *options.free):
        with ExitStack() as stack:
            free = None
            if memory is not None and free_gib is not None:
                held = ballast(memory, leaving_bytes=int(free_gib * GIB))
                free = stack.enter_context(held)
            machine = look_at_machine(model_path=path, asks_always=True)
            for way in ways(model, machine, fit):
                name = way.placement if isinstance(way, Row) else way.name
                key = f"{free_gib} {name}"
                if key not in known:
                    if time.monotonic() > until_s:
                        return None
                    if isinstance(way, Row):
                        row = replace(way, free_bytes=free)
                    else:
                        row = measured(way, model, free_bytes=free, is_small=options.cpu)
                    known[key] = to_plain(row)
                    _keep(options.rows, known)
                    sys.stderr.write(f"{row}\n")
                rows.append(from_plain(Row, known[key]))
    if memory is not None:
        found = transfers(memory, path, shape.expert_bytes)
    machine = look_at_machine(asks_always=True)
    cards = ", ".join(gpu.name for gpu in machine.gpus if is_gpu(gpu.id)) or "no card"
    processor = machine.host.processor or platform.machine()
    return Report(
        hardware=f"{cards}; {processor}, {machine.host.physical_cores} cores, "
        f"{machine.host.total_bytes / GIB:.0f} GiB",
        command="python -m tools.gpu.measure " + shlex.join(options.given),
        model=f"{path.name}, {model.file_bytes / GIB:.1f} GiB",
        rows=tuple(rows),
        transfers=found,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into the document that is named."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.measure", description=__doc__)
    parser.add_argument("--free", type=_sizes, default=(8.0, 24.0), help="GiB left free, as 8,24")
    parser.add_argument("--model", type=Path, help="a model; a synthetic one otherwise")
    parser.add_argument("--work", type=Path, default=Path("/tmp/moerun-gpu"))
    parser.add_argument("--fit", type=Path, help="the built llama-fit-params")
    parser.add_argument("--rows", type=Path, help="a file that keeps rows between steps")
    parser.add_argument("--step-s", type=float, default=STEP_S, help="begin no row after this")
    parser.add_argument("--docs", type=Path, help="the document with the table")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal without a card")
    options = parser.parse_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        report = run(options)
    except (CudaError, MoerunError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    if report is None:
        sys.stderr.write("not done yet; run it again\n")
        return NOT_DONE
    sys.stdout.write("\n".join(table_lines(report)) + "\n")
    if options.docs is not None:
        write_table(options.docs, report)
    return 0


def _sizes(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
