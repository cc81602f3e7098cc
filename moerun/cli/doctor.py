"""`moerun doctor`: the machine as a plan sees it, and whether the engine is what it should be.

Ask the engine and the machine, decide nothing, tell all of it.
"""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moerun.engine.self_check import SelfCheck
    from moerun.machine.description import Machine


def doctor(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document, which `plan --machine` reads."),
    ] = False,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            "--workers",
            "--worker",
            metavar="HOST:PORT[=SIZE]",
            help="Workers to look at, in place of those in the settings; repeatable.",
        ),
    ] = None,
) -> None:
    """Look at the machine and at the engine.

    Shows GPUs, memory, processor and storage as a plan sees them, tells whether experts can be
    streamed, and checks that the engine computes what it should. Exits with 6 when the engine is
    missing or not as it should be.
    """
    from moerun.engine.self_check import run_self_check
    from moerun.errors import EngineError

    machine = _look(tuple(workers or ()))
    check = run_self_check()
    if as_json:
        _print_json(machine, check)
    else:
        _print_lines(machine, check)
    if not check.is_sound:
        raise typer.Exit(EngineError.exit_code)


def _look(workers: tuple[str, ...]) -> "Machine":
    """Return the machine; settings that cannot be used are a note, for a doctor must not fail."""
    from dataclasses import replace

    from moerun.errors import ConfigError
    from moerun.settings.load import load_settings
    from moerun.worker.look import look_with_workers

    flags = {"workers": workers}
    try:
        loaded = load_settings(flags)
    except ConfigError as error:
        if workers:
            raise  # they were typed here, and can be mended here
        machine = look_with_workers((), asks_always=True)
        note = f"the settings cannot be used: {error.message}"
        return replace(machine, notes=(note, *machine.notes))
    machine = look_with_workers(loaded.settings.workers, asks_always=True)
    return replace(machine, notes=(*loaded.notes, *machine.notes))


def _print_json(machine: "Machine", check: "SelfCheck") -> None:
    import json

    from moerun.codec import to_plain
    from moerun.machine.document import machine_document
    from moerun.planning.obstacles import streaming_ability

    document = machine_document(machine, check)
    document["self_check"]["is_sound"] = check.is_sound
    document["streaming"] = to_plain(streaming_ability(machine))
    typer.echo(json.dumps(document, indent=2))


def _print_lines(machine: "Machine", check: "SelfCheck") -> None:
    from moerun.planning.obstacles import streaming_ability
    from moerun.report.console import open_console, print_lines
    from moerun.report.doctor_view import CheckLine, doctor_lines

    checks = tuple(
        CheckLine(name=finding.name, is_ok=finding.is_ok, detail=finding.detail)
        for finding in check.findings
    )
    lines = doctor_lines(
        machine,
        engine_version=check.engine_version,
        checks=checks,
        streaming=streaming_ability(machine),
    )
    print_lines(open_console(), lines)
