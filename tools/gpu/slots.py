"""Slots for experts against the best static placement in the same share of VRAM, in one run.

`python -m tools.gpu.slots [--shares 25,50,75] [--model FILE] [--docs docs/gpu.md] [--cpu]` writes a
model whose tokens route like recorded ones (`benchmarks/streaming_routing.py`), and decodes one
script of them with as many whole layers of experts on the card as the share allows, and with slots
in the same share, in turn. What is compared is decoding after the slots have filled. With `--cpu` a
worker on loopback stands in for the card, and the model is small: that rehearses the script, and
its figures mean nothing.

Knows: what is compared, and that both sides get the same share.
Does not know: how a placement is run, or how a table stands in a document.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.streaming_models import FIRST_SKEWED, FIRST_UNIFORM, routed_vocabulary
from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.codec import from_plain, to_plain
from moerun.engine.arguments import engine_args
from moerun.engine.look import look_at_machine
from moerun.engine.rpc_worker import loopback_worker
from moerun.errors import MoerunError, PlanError
from moerun.experts.order import streaming_order
from moerun.machine.description import Machine
from moerun.machine.workers import parse_worker, with_workers
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import ExpertResidency, Strategy, StreamingMode, Toggle
from moerun.worker.survey import survey_workers
from tools.gpu.build import NOT_DONE
from tools.gpu.children import figures_of
from tools.gpu.table import write_between

GIB: Final = 1 << 30
BEGIN: Final = "<!-- slots -->"
END: Final = "<!-- /slots -->"
AIMED_RATIO: Final = 1.3  # at half of the experts
STEP_S: Final = 300.0
_RUN_TIMEOUT_S: Final = 240
_CONTEXT_TOKENS: Final = 2048
_PROMPT_TOKENS: Final = 28
_SEED: Final = 1
STATIC, SLOTS = "whole layers", "slots"
# 27 GiB of experts: 48 layers of 128 with 8 used, the shape of the usual models of this size.
LARGE: Final = SyntheticShape(
    layers=48, width=2048, heads=32, head_length=64, expert_ff=768, experts=128, experts_used=8
)
SMALL: Final = SyntheticShape(layers=4, width=256, expert_ff=256, experts=64, experts_used=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRow:
    """One run; absent figures could not be had, `failure` says why there are none."""

    share: float
    way: str
    expert_fraction: float | None = None
    planned_bytes: int | None = None
    seen_bytes: int | None = None
    decode_tokens_per_s: float | None = None
    hit_fraction: float | None = None
    uploads_per_token: float | None = None
    upload_ms_per_token: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The tokens that are fed: a prompt, those that fill the slots, those whose time counts."""

    prompt: tuple[int, ...]
    filling: tuple[int, ...]
    timed: tuple[int, ...]


def a_script(*, is_small: bool) -> Script:
    """Return tokens in the order in which they route like a recorded answer."""
    filling, timed = (32, 32) if is_small else (192, 256)
    tokens = tuple(range(FIRST_SKEWED, FIRST_UNIFORM))
    first, second = _PROMPT_TOKENS, _PROMPT_TOKENS + filling
    return Script(
        prompt=tokens[:first], filling=tokens[first:second], timed=tokens[second : second + timed]
    )


def strategies(share: float) -> dict[str, Strategy]:
    """Return what is asked of the planner for one share of the experts, by way."""
    common = Strategy(
        context_tokens=_CONTEXT_TOKENS,
        expert_residency=ExpertResidency(vram_fraction=share),
        extra_buffers=Toggle.OFF,
        flash_attention=Toggle.ON,
    )
    return {
        STATIC: replace(common, streaming=StreamingMode.OFF),
        SLOTS: replace(common, streaming=StreamingMode.SLOTS),
    }


def measured(model: Model, machine: Machine, script: Script, *, share: float, way: str) -> SlotRow:
    """Plan one side and run it in a process of its own; its failure becomes the row's."""
    row = SlotRow(share=share, way=way)
    try:
        plan = plan_placement(model, machine, strategies(share)[way])
    except PlanError as error:
        return replace(row, failure=error.message)
    row = replace(
        row,
        expert_fraction=_held_fraction(plan, model),
        planned_bytes=sum(plan.ledger.used_bytes(device) for device in plan.devices),
    )
    order = streaming_order(plan, model, machine, state_folder=None)
    given = {
        "args": to_plain(engine_args(plan, model, machine)),
        "order": None if order is None else to_plain(order),
        **{name: list(getattr(script, name)) for name in ("prompt", "filling", "timed")},
    }
    found, failure = figures_of(
        "tools.gpu.slots_run", given, timeout_s=_RUN_TIMEOUT_S, late="not done"
    )
    return replace(row, failure=failure, **found)


def _held_fraction(plan: Plan, model: Model) -> float:
    """Return the share of all experts that finds room on cards."""
    on_cards = sum(plan.expert_bytes(model, device) for device in plan.devices)
    in_slots = plan.slots.total_bytes if plan.slots is not None else 0
    return (on_cards + in_slots) / max(1, model.expert_bytes)


def lines(rows: Sequence[SlotRow], *, hardware: str, command: str, model: str) -> list[str]:
    """Return the section of the document: where it was measured, the table, the verdict."""
    found = [
        f"Hardware: {hardware}. Model: {model}.",
        f"Command: `{command}`.",
        "",
        "| share asked | experts in VRAM | share held | planned | seen by NVML | decode | hits "
        "| uploads a token |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
    ]
    return [*found, *_verdicts(rows)]


def _verdicts(rows: Sequence[SlotRow]) -> Iterator[str]:
    rates = {(row.share, row.way): row.decode_tokens_per_s for row in rows}
    for share in dict.fromkeys(row.share for row in rows):
        static, slots = rates.get((share, STATIC)), rates.get((share, SLOTS))
        if not static or not slots:
            continue
        aim = f" (the aim is {AIMED_RATIO})" if share == 0.5 else ""
        ratio = f"{slots / static:.2f} times as fast as whole layers{aim}"
        yield f"At {share:.0%} slots decode {ratio}."


def _line(row: SlotRow) -> str:
    if row.failure is not None:
        figures = [row.failure.replace("|", "/").replace("\n", " "), "-", "-"]
    else:
        figures = [
            _told(row.decode_tokens_per_s, "{:.1f} tok/s"),
            _told(row.hit_fraction, "{:.1%}"),
            _told(row.uploads_per_token, "{:.1f}"),
        ]
        if row.upload_ms_per_token is not None:
            figures[2] += f", {row.upload_ms_per_token:.2f} ms"
    cells = [
        f"{row.share:.0%}",
        row.way,
        _told(row.expert_fraction, "{:.0%}"),
        _size(row.planned_bytes),
        _size(row.seen_bytes),
        *figures,
    ]
    return f"| {' | '.join(cells)} |"


def _told(figure: float | None, form: str) -> str:
    return "-" if figure is None else form.format(figure)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / GIB:.2f} GiB"


def run(options: argparse.Namespace) -> tuple[list[SlotRow], Machine, Model] | None:
    """Measure what is not known yet; None when the step's time is over."""
    until_s = time.monotonic() + options.step_s
    shape = SMALL if options.cpu else LARGE
    path: Path = options.model or options.work / "routed.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_synthetic_model(part, shape, routed=routed_vocabulary(shape, seed=_SEED))
        part.replace(path)
    model, script = read_model(path), a_script(is_small=options.cpu)
    known: dict[str, Any] = {}
    if options.rows is not None and options.rows.exists():
        known = json.loads(options.rows.read_text(encoding="utf-8"))
    rows = []
    with ExitStack() as stack:
        machine = look_at_machine(model_path=path, asks_always=True)
        if options.cpu:
            machine = _with_stand_in(machine, stack.enter_context(loopback_worker(threads=1)))
        for share in options.shares:
            for way in (STATIC, SLOTS):
                key = f"{share} {way}"
                if key not in known:
                    if time.monotonic() > until_s:
                        return None
                    row = measured(model, machine, script, share=share, way=way)
                    known[key] = to_plain(row)
                    sys.stderr.write(f"{row}\n")
                    if options.rows is not None:
                        options.rows.write_text(json.dumps(known, indent=1), encoding="utf-8")
                rows.append(from_plain(SlotRow, known[key]))
    return rows, machine, model


def _with_stand_in(machine: Machine, worker: str) -> Machine:
    survey = survey_workers((parse_worker(f"{worker}=1g"),), engine_version=None)
    return with_workers(replace(machine, gpus=()), survey.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into the document that is named."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.slots", description=__doc__)
    parser.add_argument("--shares", type=_shares, default=(0.25, 0.5, 0.75), help="as 25,50,75")
    parser.add_argument("--model", type=Path, help="a model; a synthetic one otherwise")
    parser.add_argument("--work", type=Path, default=Path("/tmp/moerun-gpu"))
    parser.add_argument("--rows", type=Path, help="a file that keeps rows between steps")
    parser.add_argument("--step-s", type=float, default=STEP_S, help="begin no row after this")
    parser.add_argument("--docs", type=Path, help="the document with the table")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal without a card")
    options = parser.parse_args(arguments)
    try:
        found = run(options)
    except MoerunError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    if found is None:
        sys.stderr.write("not done yet; run it again\n")
        return NOT_DONE
    rows, machine, model = found
    given = list(sys.argv[1:] if arguments is None else arguments)
    section = lines(
        rows,
        hardware=f"{', '.join(gpu.name for gpu in machine.gpus) or 'no card'}; "
        f"{machine.host.physical_cores} cores, {machine.host.total_bytes / GIB:.0f} GiB",
        command="python -m tools.gpu.slots " + shlex.join(given),
        model=f"{model.name}, {model.file_bytes / GIB:.1f} GiB, routed like recorded answers",
    )
    sys.stdout.write("\n".join(section) + "\n")
    if options.docs is not None:
        write_between(options.docs, section, begin=BEGIN, end=END)
    return 0


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) / 100 for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
