"""`moerun cp`: a second name for a model, which shares its files.

Ask which model is meant, name it anew, tell.
"""

from typing import Annotated

import typer

VARIABLES = {"MOERUN_MODELS": "folder of your own models"}


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a model at hand.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Its name of your own.")],
) -> None:
    """Give a model of your own a second name.

    A model of another store, or a file, becomes one of your own: as a second name of its files
    where the disk is the same, else as a copy.
    """
    from moerun.report.plain import printable
    from moerun.store.creation import copy_model

    copied = copy_model(source, target)
    typer.echo(f"copied '{printable(source)}' to '{printable(str(copied))}'")
