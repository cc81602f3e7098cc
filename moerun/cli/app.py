"""The door of the program: `moerun`, its verbs, and what every failure looks like.

Knows: exit codes, broken pipes, Ctrl-C, the log of a fault, `--version`.
Does not know: what any verb does; verbs are imported when they are called.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException

from moerun.cli.chat_flags import attach_values
from moerun.cli.verbs import VerbGroup
from moerun.errors import EXIT_BUG, EXIT_INTERRUPTED, MoerunError
from moerun.report.notices import tell
from moerun.report.plain import error_lines, printable

DEBUG_VARIABLE: Final = "MOERUN_DEBUG"
_NAME: Final = "moerun"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_HELP_NAMES: Final = ["-h", "--help"]

app = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": _HELP_NAMES},
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of moerun and its engine.")
    ] = False,
) -> None:
    """Run Mixture-of-Experts models that are larger than the machine's memory."""
    if version:
        from moerun.cli.version import version_lines

        typer.echo("\n".join(version_lines()))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None, *, program: typer.Typer = app) -> int:
    """Run one command line and return its exit code; only faults of the interpreter get out.

    `program` is what the command line is for; tests hand in one that fails.
    """
    given = attach_values(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        code = _run(program, given)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (MoerunError, TyperException) as error:
        return _report(error)
    except typer.Abort:  # end of input, or Ctrl-C, at a question
        return EXIT_INTERRUPTED
    except OSError as error:
        return _report_full_disk(error) if error.errno in _FULL else _report_fault(error)
    except Exception as error:
        return _report_fault(error)
    return code


def _prepare_streams() -> None:
    """Let a terminal of few characters show the rest as escapes; a closed stream is an empty one.

    Python gives None for a stream that was closed before it started.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for the whole run
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole run
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(program: typer.Typer, arguments: list[str]) -> int:
    """Parse and run. Not by `app()`, which would show errors its own way and exit 1 on a pipe."""
    command = typer.main.get_command(program)
    try:
        with command.make_context(_NAME, arguments) as context:
            command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    return 0


def _report(error: MoerunError | TyperException) -> int:
    """Print an expected failure to standard error and return its code."""
    _show_traceback_if_asked()
    if isinstance(error, MoerunError):
        tell(*error_lines(error))
    else:
        tell(f"Error: {printable(error.format_message())}", *_help_hint(error))
    return error.exit_code


def _help_hint(error: TyperException) -> tuple[str, ...]:
    context = getattr(error, "ctx", None)
    if context is None:
        return ()
    return (f"Hint: '{context.command_path} --help' lists what there is",)


def _report_full_disk(error: OSError) -> int:
    """Print that something could not be written; what is left in the buffer goes nowhere."""
    _show_traceback_if_asked()
    where = printable(str(error.filename)) if error.filename else "the output"
    tell(f"Error: {where} could not be written: {error.strerror}; free some space there")
    _drop_output()
    return MoerunError.exit_code


def _report_fault(error: Exception) -> int:
    """Write the traceback of a fault of our own to a log and print one sentence."""
    from moerun.cli.fault_log import write_fault_log

    _show_traceback_if_asked()
    what = printable(f"{type(error).__name__}: {error}")[:200]
    try:
        place = f"the details are in {printable(str(write_fault_log(error)))}"
    except (MoerunError, OSError) as trouble:
        place = f"its log could not be written ({printable(str(trouble))}); "
        place += f"{DEBUG_VARIABLE}=1 shows the details"
    tell(f"Error: moerun met a fault of its own ({what}); {place}")
    return EXIT_BUG


def _show_traceback_if_asked() -> None:
    if os.environ.get(DEBUG_VARIABLE, "").strip().lower() not in ("", "0", "false", "no"):
        import traceback

        tell(*traceback.format_exc().rstrip().splitlines())


def _drop_output() -> None:
    """Point standard output nowhere, so that the interpreter's last flush fails on nothing."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
