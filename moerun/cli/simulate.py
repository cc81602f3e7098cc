"""`moerun simulate`: what a cache or slots of any size would hit, from a recorded trace.

Ask the trace, the model and its disk; replay; tell.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moerun.units import TIB

if TYPE_CHECKING:
    from moerun.experts.layout import ExpertLayout
    from moerun.experts.simulate import Disk, FixedMemory, Question, SimulatedPolicy
    from moerun.model.description import Model

_MOST_SIZES: Final = 32
_PLENTY_BYTES: Final = 64 * TIB  # a plan for it tells what is needed beside experts


def simulate(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A file that `moerun trace` wrote.")
    ],
    *,
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="SIZE[,SIZE]",
            help="Host memory of the whole process: 8G,16G,24G; else a ladder of shares.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME[,NAME]",
            help="lru, frequency, and belady, the bound for all; else the three.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Count its KV cache and buffers, and measure the disk it lies on.",
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option("--disk", metavar="RATE", help="What the disk reads: 1.5GB/s."),
    ] = None,
    compute_ms: Annotated[
        float | None,
        typer.Option(
            "--compute-ms", metavar="N", min=0.0, help="What computing a token takes, in RAM."
        ),
    ] = None,
    slots: Annotated[
        str | None,
        typer.Option(
            "--slots",
            metavar="N[,N]",
            help="Slots in VRAM instead: experts of each layer, 32,64 or 25%,50%.",
        ),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram", metavar="SIZE[,SIZE]", help="Slots in VRAM instead: as many as 4G,8G hold."
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="RATE", help="With slots: what reaches the GPU: 25GB/s."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="RATE", help="With slots: what the CPU reads of RAM."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="RATE", help="With slots: what the GPU reads of VRAM."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Replay recorded routing for sizes of RAM, or slots in VRAM.

    The policies are the ones that stream experts while a model runs; `moerun trace` records the
    routing of your own prompts.
    """
    _check_sides(
        of_slots={"--link": link, "--memory": memory, "--device": device},
        of_ram={"--ram": ram, "--disk": disk},
        has_slots=slots is not None or vram is not None,
    )
    if slots is not None or vram is not None:
        from moerun.cli.simulate_slots import simulate_slots

        simulate_slots(
            trace,
            slots=slots,
            vram=vram,
            policies=policies_of(policy),
            rates=(device, link, memory),
            model=model,
            compute_ms=compute_ms,
            as_json=as_json,
        )
        return
    from moerun.experts.simulate import Question
    from moerun.experts.simulate import simulate as replay_all
    from moerun.experts.trace import read_trace
    from moerun.report.notices import tell
    from moerun.report.plain import printable

    question = Question(
        ram_bytes=None if ram is None else sizes_of(ram, flag="--ram"),
        policies=policies_of(policy),
        disk=None if disk is None else _stated_disk(disk),
        compute_s=None if compute_ms is None else compute_ms / 1e3,
    )
    recorded = read_trace(trace)
    if model is not None:
        question = _with_model(question, model)
    done = replay_all(recorded, question)
    tell(*(printable(f"Note: {note}") for note in done.notes))
    if as_json:
        from moerun.report.json_view import write_document
        from moerun.report.simulate_view import simulation_document

        typer.echo(write_document(simulation_document(done)))
        return
    from moerun.report.console import open_console, page_of, print_lines
    from moerun.report.simulate_view import simulation_lines

    console = open_console()
    print_lines(console, simulation_lines(done, page_of(console)))


def _check_sides(
    *,
    of_slots: Mapping[str, str | None],
    of_ram: Mapping[str, str | None],
    has_slots: bool,
) -> None:
    """Refuse an option that would say nothing: rates without slots, RAM and disk beside them."""
    from moerun.errors import UsageError

    for name, value in (of_ram if has_slots else of_slots).items():
        if value is not None and has_slots:
            raise UsageError(f"{name} is of a cache in RAM, and --slots or --vram asks for slots")
        if value is not None:
            raise UsageError(f"{name} is of slots in VRAM; ask for these with --slots or --vram")


def sizes_of(text: str, *, flag: str) -> tuple[int, ...]:
    """Return the sizes of a list; UsageError with the flag's name."""
    from moerun.errors import UsageError
    from moerun.units import parse_bytes

    words = words_of(text, flag=flag, example="8G,16G,24G")
    try:
        return tuple(parse_bytes(word) for word in words)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def words_of(text: str, *, flag: str, example: str) -> list[str]:
    """Return the entries of a list; UsageError where there are none, or too many."""
    from moerun.errors import UsageError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not 0 < len(words) <= _MOST_SIZES:
        raise UsageError(
            f"{flag}: {len(words)} sizes are given; give 1 to {_MOST_SIZES}, such as {example}"
        )
    return words


def rate_of(text: str, *, flag: str) -> float:
    """Return a rate in bytes per second; UsageError with the flag's name."""
    from moerun.errors import UsageError
    from moerun.units import parse_bytes

    try:
        rate = parse_bytes(text.strip().removesuffix("/s"))
    except ValueError:
        rate = 0
    if rate < 1:
        raise UsageError(f"{flag}: '{text}' is not a rate; write for example 1.5GB/s or 600MB/s")
    return float(rate)


def policies_of(text: str | None) -> "tuple[SimulatedPolicy, ...]":
    """Return the policies that were named, each once; all of them where none was."""
    from moerun.errors import UsageError
    from moerun.experts.simulate import SimulatedPolicy

    if text is None:
        return tuple(SimulatedPolicy)
    known = {policy.value: policy for policy in SimulatedPolicy}
    words = [word.strip().lower() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UsageError(f"--policy: '{word}' is none of {', '.join(known)}")
    return tuple(known[word] for word in dict.fromkeys(words))


def _stated_disk(text: str) -> "Disk":
    from moerun.experts.simulate import Disk

    rate = rate_of(text, flag="--disk")
    return Disk(read_bytes_per_s=rate, origin="as stated (--disk)")


def _with_model(question: "Question", name: str) -> "Question":
    """Return the question with what a model's header, its plan and its disk tell."""
    from moerun.cli.planning_steps import read_named_model
    from moerun.experts.layout import page_slot_bytes
    from moerun.experts.trace import routed_layout

    model = read_named_model(name)
    layout = routed_layout(model)
    return replace(
        question,
        slot_bytes=page_slot_bytes(layout),
        read_bytes=layout.slot_bytes,
        expert_counts=layout.expert_counts,
        fixed=_planned(model),
        disk=question.disk or _measured_disk(layout),
    )


def _planned(model: "Model") -> "FixedMemory":
    """Return what a plan of the settings, on this machine without its GPUs, needs for the rest."""
    from moerun.cli.options import PlacementFlags
    from moerun.cli.planning_steps import machine_to_plan_for, read_settings
    from moerun.experts.simulate import fixed_memory
    from moerun.machine.hypothetical import with_ram
    from moerun.planning.planner import plan_placement
    from moerun.planning.strategy import DEFAULT_CONTEXT_TOKENS, Toggle

    flags = PlacementFlags()
    loaded = read_settings(flags)
    machine = machine_to_plan_for(flags, loaded, Path(model.files[0].path))
    strategy = loaded.settings.strategy
    context_tokens = strategy.context_tokens
    if context_tokens is None and not strategy.context_is_largest:
        # Memory that experts could use does not make the context longer.
        trained = model.train_context_tokens or DEFAULT_CONTEXT_TOKENS
        context_tokens = min(trained, DEFAULT_CONTEXT_TOKENS)
    strategy = replace(
        strategy,
        context_tokens=context_tokens,
        ram_limit=None,
        vram_limit=None,
        expert_residency=None,
        pins=(),
        extra_buffers=Toggle.OFF,
    )
    roomy = with_ram(replace(machine, gpus=()), _PLENTY_BYTES)
    return fixed_memory(plan_placement(model, roomy, strategy))


def _measured_disk(layout: "ExpertLayout") -> "Disk | None":
    """Return what the storage under the model reads in pieces of an expert; None with a note."""
    from moerun.errors import ProbeFailed
    from moerun.experts.simulate import Disk
    from moerun.machine.bandwidth import measure_reading
    from moerun.report.notices import tell
    from moerun.report.plain import printable

    pieces = sorted(tensor.expert_bytes for tensor in layout.tensors)
    try:
        rate = measure_reading(
            [file.path for file in layout.files], piece_bytes=pieces[len(pieces) // 2]
        )
    except ProbeFailed as error:
        tell(printable(f"Note: the disk was not measured: {error.message}; pass --disk RATE"))
        return None
    return Disk(
        read_bytes_per_s=rate.read_bytes_per_s,
        origin=(
            f"measured: {rate.threads} threads read pieces of "
            f"{rate.piece_bytes:,} bytes of the model past the page cache"
        ),
    )
