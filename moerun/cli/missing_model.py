"""A model that `run` names and that is not here: planned first, asked about, and then pulled.

Without a terminal to ask on, a download of more than 20 GB, or of a model that would stream from
SSD, is not begun without `--yes`; a model that does not fit is not downloaded at all.

Knows: when somebody is asked, and what is shown before.
Does not know: how files are fetched, or how a plan is made.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import typer

from moerun.cli.options import PlacementFlags

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.model.description import Model
    from moerun.planning.plan import Plan
    from moerun.store.profile import ModelProfile
    from moerun.store.pull import PullOrder

_ASKED_ABOVE_BYTES: Final = 20 * 10**9  # as decisions on commands have it


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingModel:
    """What would be fetched, and where it would lie on this machine."""

    name: str
    order: "PullOrder"
    model: "Model"
    machine: "Machine"
    plan: "Plan"

    @property
    def needs_ssd(self) -> bool:
        """Whether it would not lie in memory whole."""
        from moerun.planning.summary import Verdict, summarize

        return summarize(self.model, self.plan).verdict is Verdict.NEEDS_SSD


def find_missing(
    name: str, flags: PlacementFlags, profile: "ModelProfile | None" = None
) -> MissingModel | None:
    """Return what is to be fetched for a name, None when nothing is; asks hosts for no more.

    `profile` is what the model will carry, where that is known before it is here.
    Raises DoesNotFit for a model that would not run here, and ModelNotFound where neither this
    machine nor a host has one of that name.
    """
    from moerun.store.library import find_model

    if find_model(name) is not None:
        return None
    order, model = _at_host(name)
    machine, plan = _planned(model, flags, profile)
    return MissingModel(name=name, order=order, model=model, machine=machine, plan=plan)


def fetch_missing(missing: MissingModel, *, says_yes: bool, is_quiet: bool) -> str:
    """Ask where it is due, pull, and return the name by which the model is here now."""
    from moerun.report.pull_view import PullView, decimal
    from moerun.runner.interruption import terminations
    from moerun.store.library import find_model
    from moerun.store.pull import carry_out, check_room

    check_room(missing.order)
    _agree(missing, says_yes=says_yes, is_quiet=is_quiet)
    with terminations(), PullView(sys.stderr, is_shown=not is_quiet) as view:
        pulled = carry_out(missing.order, view)
    if not is_quiet:
        typer.echo(f"{pulled.name}: {decimal(pulled.fetched_bytes)} fetched", err=True)
    return missing.name if find_model(missing.name) is not None else str(pulled.model_path)


def show_missing(missing: MissingModel, *, as_json: bool) -> None:
    """Print what a run would fetch, and the plan it would begin with."""
    from moerun.cli.pull import rows_of
    from moerun.report.pull_view import order_document, order_lines
    from moerun.store.pull import check_room

    order = missing.order
    rows, folder = rows_of(order), str(order.folder)
    if as_json:
        from moerun.report.json_view import plan_document, write_document

        document: dict[str, Any] = plan_document(missing.model, missing.machine, missing.plan)
        document["download"] = order_document(
            order.name, rows, folder=folder, free_bytes=order.free_bytes
        )
        typer.echo(write_document(document))
    else:
        _print_plan(missing.model, missing.machine, missing.plan, sys.stdout)
        typer.echo("")
        for line in order_lines(order.name, rows, folder=folder, free_bytes=order.free_bytes):
            typer.echo(line)
    check_room(order)


def show_unasked(name: str, flags: PlacementFlags, *, trouble: str, as_json: bool) -> bool:
    """Print what is known of an entry of the catalogue whose host does not answer.

    False, and nothing printed, for any other name.
    """
    from moerun.cli.planning_steps import catalog_reference
    from moerun.model.catalog import catalog_entry
    from moerun.model.catalog_model import catalog_model
    from moerun.report.notices import tell
    from moerun.report.plain import printable
    from moerun.report.pull_view import decimal
    from moerun.store.hub_settings import read_hub_settings
    from moerun.store.pull import free_bytes_at
    from moerun.store.remote_names import remote_reference

    reference = catalog_reference(name)
    if reference is None:
        return False
    model = catalog_model(reference.entry, reference.quantization)
    machine, plan = _planned(model, flags)
    source, folder = str(remote_reference(name)), read_hub_settings().cache
    if as_json:
        from moerun.report.catalog_view import catalog_facts
        from moerun.report.json_view import plan_document, write_document

        document: dict[str, Any] = plan_document(model, machine, plan)
        document["catalog"] = catalog_facts(catalog_entry(reference.entry), model)
        document["download"] = {
            "name": source,
            "dry_run": True,
            "folder": str(folder),
            "free_bytes": free_bytes_at(folder),
            "size_bytes": model.file_bytes,
            "size_is_derived": True,
            "missing_bytes": None,
            "files": [],
            "error": trouble,
        }
        typer.echo(write_document(document))
        return True
    _print_plan(model, machine, plan, sys.stdout)
    typer.echo("")
    typer.echo(
        f"{source}: about {decimal(model.file_bytes)} (derived from the published configuration) "
        f"would be fetched to {folder}, where {decimal(free_bytes_at(folder))} are free"
    )
    tell(f"Note: the host was not asked what it has: {printable(trouble)}")
    return True


def _planned(
    model: "Model", flags: PlacementFlags, profile: "ModelProfile | None" = None
) -> "tuple[Machine, Plan]":
    """Return this machine, and where a model that is not here yet would lie on it."""
    from moerun.cli.planning_steps import machine_to_plan_for, read_settings
    from moerun.planning.planner import plan_placement

    settings = read_settings(flags, profile)
    machine = machine_to_plan_for(flags, settings)
    return machine, plan_placement(model, machine, settings.settings.strategy)


def _at_host(name: str) -> "tuple[PullOrder, Model]":
    """Return the files that a host has for a name, and what their headers say."""
    from moerun.cli.bare_names import asking_library, refuse_unlikely
    from moerun.model.catalog import catalog_names
    from moerun.model.catalog_model import catalog_model
    from moerun.store.pull import order_pull
    from moerun.store.references import CatalogReference, ShortName, parse_reference
    from moerun.store.remote_header import remote_model
    from moerun.store.remote_names import remote_reference

    said = parse_reference(name, catalog_names=catalog_names())
    refuse_unlikely(name, said)
    reference = remote_reference(name)
    if isinstance(said, CatalogReference):
        return order_pull(reference), catalog_model(said.entry, said.quantization)
    if not isinstance(said, ShortName):
        return order_pull(reference), remote_model(reference)
    with asking_library(name):
        return order_pull(reference), remote_model(reference)


def _agree(missing: MissingModel, *, says_yes: bool, is_quiet: bool) -> None:
    """Show and ask where it is due; PullError where nobody can be asked."""
    from moerun.errors import PullError
    from moerun.report.pull_view import decimal

    size_bytes, needs_ssd = missing.order.missing_bytes, missing.needs_ssd
    if needs_ssd and not is_quiet:
        _print_plan(missing.model, missing.machine, missing.plan, sys.stderr)
    if says_yes or not (needs_ssd or size_bytes > _ASKED_ABOVE_BYTES):
        return
    why = "would stream experts from SSD" if needs_ssd else "is a large download"
    said = f"{missing.order.name} ({decimal(size_bytes)} to fetch) {why}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise PullError(
            f"{said}, and there is no terminal to ask on",
            hint="--yes agrees; `moerun plan MODEL --advise` compares its quantizations",
        )
    if not typer.confirm(f"{said}. Download it?", default=not needs_ssd, err=True):
        typer.echo("Nothing was downloaded.", err=True)
        raise typer.Exit(1)


def _print_plan(model: "Model", machine: "Machine", plan: "Plan", stream: Any) -> None:
    from moerun.report.console import open_console, page_of, print_lines
    from moerun.report.plan_view import plan_lines

    console = open_console(stream)
    lines = plan_lines(model, machine, plan, page_of(console), explains=False)
    print_lines(console, lines)
