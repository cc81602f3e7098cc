"""`moerun config`: every setting with its origin.

Ask the layers, decide nothing, tell each value and where it was set.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moerun.report.config_view import SettingRow
    from moerun.settings.description import LoadedSettings
    from moerun.settings.keys import Key

SCHEMA = 1
VARIABLES = {"MOERUN_<SETTING>": "any setting by its last name, such as MOERUN_VRAM_LIMIT=8G"}


def config(
    get: Annotated[
        str | None,
        typer.Option("--get", metavar="KEY", help="Print the value of one setting alone."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="With what this model asks for, too."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with values and origins.")
    ] = False,
) -> None:
    """Show every setting with its origin.

    Settings come from the defaults, config.yaml in the settings folder, ./moerun.yaml, the model
    that is used, MOERUN_* variables and flags; later ones win.
    """
    from moerun.report.config_view import config_lines, value_text

    loaded = _load(model)
    rows = _rows(loaded, _wanted_key(get) if get is not None else None)
    if as_json:
        _print_json(rows, is_one=get is not None)
    elif get is not None:
        typer.echo(value_text(rows[0].value))
    else:
        _print_lines(config_lines(rows))
        _tell(_places())
    for note in loaded.notes:
        _tell(f"Warning: {note}")


def _load(model: str | None) -> "LoadedSettings":
    """Return the settings of all layers, with that of a model when one is named."""
    if model is None:
        from moerun.settings.load import load_settings

        return load_settings()
    from moerun.cli.options import PlacementFlags
    from moerun.cli.planning_steps import profile_of_name, read_settings
    from moerun.store.library import require_model

    require_model(model)
    return read_settings(PlacementFlags(), profile_of_name(model))


def _wanted_key(name: str) -> "Key":
    from moerun.errors import UsageError
    from moerun.settings.keys import KEYS, closest_name, find_key

    key = find_key(name)
    if key is not None:
        return key
    names = tuple(name for key in KEYS for name in (key.short, key.name))
    match = closest_name(name, names)
    hint = f"did you mean '{match}'?" if match else "`moerun config` lists all settings"
    raise UsageError(f"'{name}' is not a setting", hint=hint)


def _rows(loaded: "LoadedSettings", only: "Key | None") -> "tuple[SettingRow, ...]":
    from moerun.report.config_view import SettingRow
    from moerun.settings.keys import KEYS

    return tuple(
        SettingRow(key=key.name, value=key.show(loaded.settings), origin=loaded.origin(key.name))
        for key in KEYS
        if only is None or key is only
    )


def _print_json(rows: "tuple[SettingRow, ...]", *, is_one: bool) -> None:
    import json

    document: dict[str, Any] = {"schema": SCHEMA}
    if is_one:
        row = rows[0]
        document |= {"key": row.key, "value": row.value, "origin": row.origin}
    else:
        document["settings"] = {row.key: {"value": row.value, "origin": row.origin} for row in rows}
    typer.echo(json.dumps(document, indent=2))


def _print_lines(lines: tuple[Any, ...]) -> None:
    from moerun.report.console import open_console, print_lines

    print_lines(open_console(), lines)


def _places() -> str:
    """Name the file of the user, whether or not it is there."""
    from moerun.places import config_folder
    from moerun.settings.load import USER_FILE

    path = config_folder() / USER_FILE
    state = "" if path.exists() else " (not there)"
    return f"Your settings: {path}{state}"


def _tell(text: str) -> None:
    typer.echo(text, err=True)
