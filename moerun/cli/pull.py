"""`moerun pull`: download models, or what is missing of them.

Ask the host, check the room, fetch, tell.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from moerun.report.pull_view import PullRow
    from moerun.store.pull import Pulled, PullOrder

SCHEMA: Final = 1
_MOST_CONNECTIONS: Final = 16
VARIABLES = {
    "HF_TOKEN": "token for repositories that want one; goes to that host alone",
    "HF_ENDPOINT": "address of the hub instead of https://huggingface.co",
    "HF_HUB_CACHE": "folder of files from Hugging Face",
    "HF_HUB_OFFLINE": "1 asks nobody",
    "MOERUN_REGISTRY": "address of a mirror of https://registry.ollama.ai",
    "MOERUN_MODELS": "folder of models from Ollama registries",
    "HTTPS_PROXY": "proxy for all that is asked",
}


def pull(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Names: qwen3-30b-a3b, hf.co/user/repo:Q4_K_M, qwen3:30b.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")
    ] = False,
    connections: Annotated[
        str | None,
        typer.Option(
            "--connections", metavar="N", help="Connections for each file, 1 to 16. [default: 4]"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Download models; what an earlier pull left is gone on with.

    Ctrl-C keeps what has arrived. Every file is checked against the digest that its host promised
    before it is put in its place.
    """
    documents = []
    count = _count(connections)
    for name in models:
        if dry_run:
            documents.append(_describe(name, as_json=as_json))
        else:
            documents.append(_fetch(name, count, is_quiet=quiet or as_json, as_json=as_json))
    if as_json:
        import json

        typer.echo(json.dumps({"schema": SCHEMA, "models": documents}, indent=2))


def _count(text: str | None) -> int:
    """Return how many connections are asked for; as text it spares the start an import."""
    from moerun.errors import UsageError
    from moerun.store.download import CONNECTIONS

    if text is None:
        return CONNECTIONS
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST_CONNECTIONS:
        raise UsageError(
            f"--connections: '{text}' is not a number from 1 to {_MOST_CONNECTIONS}",
        )
    return int(text)


def _fetch(name: str, connections: int, *, is_quiet: bool, as_json: bool) -> dict[str, object]:
    """Pull one model, show how far it is, and return what was done."""
    from moerun.report.pull_view import PullView, decimal
    from moerun.runner.interruption import terminations
    from moerun.store.pull import carry_out, order_pull
    from moerun.store.remote_names import remote_reference

    reference = remote_reference(name)
    with terminations():
        order = order_pull(reference)
        with PullView(sys.stderr, is_shown=not is_quiet) as view:
            pulled = carry_out(order, view, connections=connections)
    if not as_json:
        fetched = f"{decimal(pulled.fetched_bytes)} fetched" if pulled.fetched_bytes else "was here"
        typer.echo(f"{pulled.name}: {fetched}, {pulled.model_path}")
    return _document(pulled)


def _describe(name: str, *, as_json: bool) -> dict[str, object]:
    """Say what a pull of one model would do."""
    from moerun.report.pull_view import order_document, order_lines
    from moerun.store.pull import check_room, order_pull
    from moerun.store.remote_names import remote_reference

    order = order_pull(remote_reference(name))
    rows, folder = rows_of(order), str(order.folder)
    if not as_json:
        for line in order_lines(order.name, rows, folder=folder, free_bytes=order.free_bytes):
            typer.echo(line)
    check_room(order)
    return order_document(order.name, rows, folder=folder, free_bytes=order.free_bytes)


def rows_of(order: "PullOrder") -> "tuple[PullRow, ...]":
    """Return the files of an order as they are shown."""
    from moerun.report.pull_view import PullRow

    return tuple(
        PullRow(
            name=step.file.name,
            size_bytes=step.file.size_bytes,
            missing_bytes=step.missing_bytes,
            path=str(step.shown_at or step.blob),
        )
        for step in order.steps
    )


def _document(pulled: "Pulled") -> dict[str, object]:
    return {
        "name": pulled.name,
        "path": str(pulled.model_path),
        "size_bytes": pulled.size_bytes,
        "fetched_bytes": pulled.fetched_bytes,
        "files": [str(path) for path in pulled.paths],
    }
