"""`moerun create`: a model of one's own, from a Modelfile.

Ask the Modelfile, check what it sets, make the model, tell.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moerun.store.modelfile import Modelfile

SCHEMA = 1
VARIABLES = {"MOERUN_MODELS": "folder of your own models"}
_DEFAULT_FILE = "Modelfile"
_LARGEST_FILE_BYTES = 4 << 20  # licenses and examples are texts, weights are elsewhere


def create(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of your own to give.")],
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="The Modelfile; - is what is piped.")
    ] = _DEFAULT_FILE,
    is_quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    says_yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Agree to a large download of what FROM names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a model of a Modelfile: FROM, ADAPTER, PARAMETER, SYSTEM, TEMPLATE, MESSAGE, LICENSE.

    What FROM names is pulled when it is not here, as `moerun run` does.

    PARAMETER takes ollama's names, and moerun's settings: ram_limit, vram_limit,
    expert_residency, cpu_expert_layers and all others that `moerun config` lists.
    """
    from moerun.cli.planning_steps import check_model_settings
    from moerun.report.plain import printable
    from moerun.store.creation import create_model
    from moerun.store.modelfile import parse_modelfile
    from moerun.store.own_store import own_reference

    reference = own_reference(model)
    text, folder = _read(file)
    modelfile = parse_modelfile(text, name="Modelfile" if file == "-" else file)
    check_model_settings(modelfile.parameters, origin=file)
    _check_template(modelfile, file)
    modelfile = _with_source_here(
        modelfile, folder, says_yes=says_yes, is_quiet=is_quiet or as_json
    )
    line = _Line(is_shown=not is_quiet and not as_json and sys.stderr.isatty())
    try:
        manifest = create_model(reference, modelfile, folder=folder, progress=line.update)
    finally:
        line.finish()
    if as_json:
        import json

        document = {
            "schema": SCHEMA,
            "name": str(reference),
            "digest": manifest.digest,
            "size_bytes": manifest.size_bytes,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"created '{printable(str(reference))}'")


def _with_source_here(
    modelfile: "Modelfile", folder: Path, *, says_yes: bool, is_quiet: bool
) -> "Modelfile":
    """Pull what FROM names where it is not here, by the rules of `run`; files are left alone."""
    from dataclasses import replace

    from moerun.cli.missing_model import fetch_missing, find_missing
    from moerun.cli.options import PlacementFlags
    from moerun.store.creation import names_a_file
    from moerun.store.library import find_model
    from moerun.store.profile import ModelProfile

    source = modelfile.source
    if names_a_file(source, folder) or find_model(source, folder=folder) is not None:
        return modelfile
    wishes = ModelProfile(name="the Modelfile", parameters=modelfile.parameters)
    missing = find_missing(source, PlacementFlags(), wishes)
    if missing is None:
        return modelfile
    fetched = fetch_missing(missing, says_yes=says_yes, is_quiet=is_quiet)
    return replace(modelfile, source=fetched)


class _Line:
    """One line on the terminal that says how much was gone through."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._was_shown = False

    def update(self, gone_bytes: int) -> None:
        if self._is_shown:
            from moerun.report.list_view import short_size

            sys.stderr.write(f"\rhashing: {short_size(gone_bytes):>10}")
            sys.stderr.flush()
            self._was_shown = True

    def finish(self) -> None:
        if self._was_shown:
            sys.stderr.write("\r" + " " * 24 + "\r")
            sys.stderr.flush()


def _read(file: str) -> tuple[str, Path]:
    """Return the text of a Modelfile, and the folder at which its paths start."""
    from moerun.errors import UsageError

    if file == "-":
        return _text(sys.stdin.buffer.read(_LARGEST_FILE_BYTES + 1), "what is piped"), Path.cwd()
    path = Path(file).expanduser()
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LARGEST_FILE_BYTES + 1)
        return _text(raw, file), path.absolute().parent
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no file {file}", hint="name a Modelfile with -f, or pipe one in with -f -"
        ) from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error


def _text(raw: bytes, name: str) -> str:
    """Return the text of a Modelfile; one without end (/dev/zero, a pipe) is not read to it."""
    from moerun.errors import UsageError

    if len(raw) > _LARGEST_FILE_BYTES:
        raise UsageError(
            f"{name} has more than {_LARGEST_FILE_BYTES:,} bytes, so it is no Modelfile",
            hint="the weights are named by FROM; -f takes the text alone",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} cannot be read: it is not UTF-8") from error


def _check_template(modelfile: "Modelfile", file: str) -> None:
    """Refuse a template that could not be used."""
    from moerun.errors import UsageError
    from moerun.store.go_template import parse_template

    if modelfile.template is None:
        return
    try:
        parse_template(modelfile.template)
    except UsageError as error:
        raise UsageError(f"{file}: TEMPLATE: {error.message}", hint=error.hint) from error
