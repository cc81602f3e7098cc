"""`moerun plan`: where a model would go, from its header alone.

Ask the header and the machine, decide, tell; nothing is loaded.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.planning.strategy import Strategy
    from moerun.report.tables import ModelRow
    from moerun.settings.description import LoadedSettings
    from moerun.store.names import ModelAtHand

VARIABLES = {
    **placement_variables(),
    "MOERUN_MODELS": "folder of models that can be named",
    "CUDA_VISIBLE_DEVICES": "which NVIDIA GPUs there are",
}


@with_placement_flags(can_imagine_machine=True)
def plan(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A name or a path; all models at hand without it."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add every decision and its reason.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    *,
    flags: PlacementFlags,
) -> None:
    """Show where a model would go, without loading it.

    On a machine without a GPU, --vram plans for such a GPU.
    """
    if model is None:
        _plan_all(flags, as_json=as_json)
    else:
        show_plan(model, flags, explains=explain, as_json=as_json)


def show_plan(
    name: str, flags: PlacementFlags, *, explains: bool = False, as_json: bool = False
) -> None:
    """Plan one model and print the plan; nothing is loaded."""
    from moerun.cli.planning_steps import machine_to_plan_for, read_named_model, read_settings
    from moerun.planning.planner import plan_placement

    loaded = read_settings(flags)
    model = read_named_model(name)
    machine = machine_to_plan_for(flags, loaded, Path(model.files[0].path))
    placement = plan_placement(model, machine, loaded.settings.strategy)
    if as_json:
        from moerun.report.json_view import plan_document, write_document

        typer.echo(write_document(plan_document(model, machine, placement)))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.plan_view import plan_lines

        console = open_console()
        page = page_of(console)
        print_lines(console, plan_lines(model, machine, placement, page, explains=explains))
    _tell_notes(loaded, machine)


def _plan_all(flags: PlacementFlags, *, as_json: bool) -> None:
    from moerun.cli.planning_steps import machine_to_plan_for, read_settings
    from moerun.store.names import models_at_hand

    loaded = read_settings(flags)
    machine = machine_to_plan_for(flags, loaded)
    strategy = loaded.settings.strategy
    rows = tuple(_row(at_hand, machine, strategy) for at_hand in models_at_hand())
    if as_json:
        from moerun.report.json_view import models_document, write_document

        typer.echo(write_document(models_document(rows, machine)))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.tables import model_lines

        console = open_console()
        print_lines(console, model_lines(rows, page_of(console)))
        if not rows:
            typer.echo("No models are at hand; give the path of a .gguf file.", err=True)
    _tell_notes(loaded, machine)


def _row(at_hand: "ModelAtHand", machine: "Machine", strategy: "Strategy") -> "ModelRow":
    """Plan one model; what stands in the way becomes its verdict."""
    from moerun.errors import ModelError, PlanError
    from moerun.model.gguf_header import read_model
    from moerun.planning.planner import plan_placement
    from moerun.planning.summary import summarize
    from moerun.report.tables import ModelRow

    name, path = at_hand.name, str(at_hand.path)
    try:
        model = read_model(at_hand.path)
    except ModelError as error:
        return ModelRow(name=name, path=path, verdict="refused", error=error.message)
    try:
        placement = plan_placement(model, machine, strategy)
    except PlanError as error:
        return ModelRow(
            name=name,
            path=path,
            verdict="too large",
            file_bytes=model.file_bytes,
            error=error.message,
        )
    sums = summarize(model, placement)
    return ModelRow(
        name=name,
        path=path,
        verdict=str(sums.verdict),
        file_bytes=model.file_bytes,
        vram_bytes=sums.vram_bytes,
        ram_bytes=sums.ram_bytes,
        ssd_bytes=sums.ssd_bytes,
        context_tokens=placement.context_tokens,
    )


def _tell_notes(loaded: "LoadedSettings", machine: "Machine") -> None:
    """Print notes to standard error, after the answer."""
    from moerun.report.plain import printable
    from moerun.settings.load import later_notice

    later = later_notice(loaded.settings)
    sys.stdout.flush()
    for note in (*loaded.notes, *((later,) if later else ()), *machine.notes):
        typer.echo(f"Note: {printable(note)}", err=True)
