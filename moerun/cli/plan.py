"""`moerun plan`: where a model would go, from its header alone.

Ask the header and the machine, decide, tell; nothing is loaded.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags
from moerun.errors import UsageError

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.model.catalog import CatalogEntry
    from moerun.model.description import Model
    from moerun.planning.plan import Plan
    from moerun.planning.strategy import Strategy
    from moerun.settings.description import LoadedSettings

VARIABLES = {
    **placement_variables(),
    "MOERUN_MODELS": "folder of models that can be named",
    "CUDA_VISIBLE_DEVICES": "which NVIDIA GPUs there are",
}


@with_placement_flags(can_imagine_machine=True)
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name or a path, or an entry of the catalogue; all of them without it.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add every decision and its reason.")
    ] = False,
    advise: Annotated[
        bool,
        typer.Option("--advise", help="Compare the quantizations of a model of the catalogue."),
    ] = False,
    fits: Annotated[
        bool, typer.Option("--fits", help="Without MODEL: only those that memory holds whole.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Ask the engine for its buffers, in a dry run on what is here."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    *,
    flags: PlacementFlags,
) -> None:
    """Show where a model would go, without loading it.

    Models of the catalogue are planned before any download, by their published shape; those of
    Hugging Face and of registries (hf.co/user/repo:QUANT) by their headers, a few MB of each.
    On a machine without a GPU, --vram plans for such a GPU.
    """
    if exact and (model is None or advise):
        raise UsageError("--exact: name one model that is on this disk")
    if model is None:
        if advise:
            raise UsageError("--advise: say which model's quantizations to compare")
        _plan_all(flags, only_fitting=fits, as_json=as_json)
        return
    if fits:
        raise UsageError("--fits: this chooses among all models; leave out MODEL")
    if advise:
        _advise(model, flags, as_json=as_json)
    elif exact:
        _show_exact(model, flags, explains=explain, as_json=as_json)
    else:
        show_plan(model, flags, explains=explain, as_json=as_json)


def show_plan(
    name: str, flags: PlacementFlags, *, explains: bool = False, as_json: bool = False
) -> None:
    """Plan one model and print the plan; nothing is loaded."""
    from moerun.cli.exact_plan import formula_note
    from moerun.cli.planning_steps import (
        machine_to_plan_for,
        model_to_plan,
        profile_of_name,
        read_settings,
    )
    from moerun.planning.planner import plan_placement

    loaded = read_settings(flags, profile_of_name(name))
    model, entry = model_to_plan(name)
    # Of the catalogue, or at a host: no disk holds it yet.
    path = Path(model.files[0].path)
    machine = machine_to_plan_for(flags, loaded, path if entry is None and path.exists() else None)
    placement = plan_placement(model, machine, loaded.settings.strategy)
    if as_json:
        from moerun.report.catalog_view import catalog_facts
        from moerun.report.json_view import plan_document, write_document

        document = plan_document(model, machine, placement)
        if entry:
            document["catalog"] = catalog_facts(entry, model)
        typer.echo(write_document(document))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.plan_view import plan_lines

        console = open_console()
        page = page_of(console)
        print_lines(console, plan_lines(model, machine, placement, page, explains=explains))
    _tell_notes(loaded, machine)
    if note := formula_note(placement, machine, is_elsewhere=flags.machine_file is not None):
        typer.echo(f"Note: {note}", err=True)
    if entry:
        _tell_of_entry(entry, model, placement, machine, loaded.settings.strategy)


def _show_exact(name: str, flags: PlacementFlags, *, explains: bool, as_json: bool) -> None:
    """Plan one model by the engine's dry run, and print how far the formulas were off."""
    from moerun.cli.exact_plan import exact_lines, plan_exactly, refuse_imagined
    from moerun.cli.planning_steps import (
        profile_of_name,
        read_named_model,
        read_settings,
        with_limits_checked,
    )
    from moerun.worker.look import look_with_workers

    loaded = read_settings(flags, profile_of_name(name))
    model = read_named_model(name)
    path = Path(model.files[0].path)
    machine = look_with_workers(loaded.settings.workers, model_path=path)
    refuse_imagined(machine, flags)
    machine = with_limits_checked(machine, loaded)
    found = plan_exactly(model, machine, loaded.settings.strategy)
    if as_json:
        from moerun.report.json_view import plan_document, write_document
        from moerun.report.run_document import buffer_facts

        document = plan_document(model, machine, found.plan)
        document["formula_beside_dry_run"] = buffer_facts(found.rows)
        typer.echo(write_document(document))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.plan_view import plan_lines

        console = open_console()
        page = page_of(console)
        print_lines(console, plan_lines(model, machine, found.plan, page, explains=explains))
        for line in exact_lines(found, machine, path):
            typer.echo(line)
    _tell_notes(loaded, machine)


def _tell_of_entry(
    entry: "CatalogEntry", model: "Model", plan: "Plan", machine: "Machine", strategy: "Strategy"
) -> None:
    """Say on standard error that nothing was read, and what would suit the machine better."""
    from moerun.cli.planning_steps import advice_beside
    from moerun.report.advice_view import advice_hint
    from moerun.report.catalog_view import origin_sentence
    from moerun.report.plain import printable

    typer.echo(f"Note: {printable(origin_sentence(entry, model))}", err=True)
    if model.quantization != entry.recommended:
        return  # somebody who names a quantization has chosen
    advice = advice_beside(entry, model, plan, machine, strategy)
    if advice and (hint := advice_hint(entry.name, advice)):
        typer.echo(f"Hint: {printable(hint)}", err=True)


def _advise(name: str, flags: PlacementFlags, *, as_json: bool) -> None:
    """Plan every quantization of an entry of the catalogue, and recommend one."""
    from moerun.cli.planning_steps import (
        advice_for,
        entry_to_advise_on,
        machine_to_plan_for,
        read_settings,
    )
    from moerun.report.advice_view import advice_facts, advice_lines

    loaded = read_settings(flags)
    entry = entry_to_advise_on(name)
    machine = machine_to_plan_for(flags, loaded)
    advice = advice_for(entry, machine, loaded.settings.strategy)
    if as_json:
        from moerun.report.json_view import advice_document, write_document

        typer.echo(write_document(advice_document(entry.name, advice_facts(advice), machine)))
    else:
        from moerun.report.console import open_console, page_of, print_lines

        console = open_console()
        print_lines(console, advice_lines(entry.title, advice, page_of(console)))
    _tell_notes(loaded, machine)


def _plan_all(flags: PlacementFlags, *, only_fitting: bool, as_json: bool) -> None:
    from moerun.cli.plan_rows import rows_of_all
    from moerun.cli.planning_steps import machine_to_plan_for, read_settings

    loaded = read_settings(flags)
    machine = machine_to_plan_for(flags, loaded)
    rows = rows_of_all(machine, loaded.settings.strategy, only_fitting=only_fitting)
    if as_json:
        from moerun.report.json_view import models_document, write_document

        typer.echo(write_document(models_document(rows, machine)))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.tables import model_lines

        console = open_console()
        print_lines(console, model_lines(rows, page_of(console)))
        if not rows:
            typer.echo("No model fits in memory whole; `moerun plan` lists all.", err=True)
    _tell_notes(loaded, machine)


def _tell_notes(loaded: "LoadedSettings", machine: "Machine") -> None:
    """Print notes to standard error, after the answer."""
    from moerun.report.plain import printable

    sys.stdout.flush()
    for note in (*loaded.notes, *machine.notes):
        typer.echo(f"Note: {printable(note)}", err=True)
