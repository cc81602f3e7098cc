"""`moerun rm`: remove models of the own store, and the blobs that none names any more.

Ask what runs, remove, tell.
"""

from typing import Annotated

import typer

VARIABLES = {"MOERUN_MODELS": "folder of your own models"}


def remove(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names of models of your own.")
    ],
) -> None:
    """Remove models of your own.

    Only what `moerun list` shows with the source moerun is removed; other programs' stores and
    files of yours are left alone. Ends at the first that cannot be removed.
    """
    from moerun.places import models_folder
    from moerun.report.list_view import short_size
    from moerun.report.plain import printable
    from moerun.store.own_store import OwnStore
    from moerun.store.removal import reference_to_remove
    from moerun.store.write_faults import told_as_refusals

    store = OwnStore(models_folder())
    for name in models:
        with told_as_refusals(store.root):
            removed = store.remove(reference_to_remove(name, store))
        freed = f", {short_size(removed.freed_bytes)} freed" if removed.freed_bytes else ""
        typer.echo(f"deleted '{printable(removed.name)}'{freed}")
