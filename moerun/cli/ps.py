"""`moerun ps`: the models in memory, those of the server and those of a `run` of its own.

Ask the server and the records of runners, tell as a table.
"""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from moerun.report.ps_view import RunningModel
    from moerun.runner.records import RunnerRecord

SCHEMA: Final = 1
VARIABLES: Final[dict[str, str]] = {"MOERUN_HOST": "address of the server"}


def ps(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only names that begin so.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the models in memory.

    Those of the server come first, the one that stays longest before others; then those of a run
    without a server, which end with it.
    """
    import json

    from moerun.codec import to_plain
    from moerun.places import state_folder
    from moerun.report.ps_view import ps_lines
    from moerun.runner.records import read_records

    served = _served()
    shown = {model.pid for model in served}
    records = read_records(state_folder()).records
    rows = [*served, *(_of_record(record) for record in records if record.pid not in shown)]
    rows = [row for row in rows if row.name.lower().startswith(prefix.lower())]
    if as_json:
        document = {"schema": SCHEMA, "models": [to_plain(row) for row in rows]}
        typer.echo(json.dumps(document, indent=2))
        return
    for line in ps_lines(rows, now_s=time.time()):
        sys.stdout.write(f"{line}\n")


def _served() -> "list[RunningModel]":
    """Return what the server has in memory; nothing when none runs."""
    from moerun.errors import ServeError
    from moerun.places import state_folder
    from moerun.server.client import find_client, require_ok

    client = find_client(state_folder())
    if client is None:
        return []
    try:
        answer = require_ok(*client.ask("GET", "/api/ps"))
    except ServeError as error:
        from moerun.cli.open_model import warn

        warn(error.message)
        return []
    return [_of_server(row) for row in answer["models"]]


def _of_server(row: dict[str, Any]) -> "RunningModel":
    from datetime import datetime

    from moerun.report.ps_view import RunningModel

    return RunningModel(
        name=str(row["name"]),
        digest=str(row["digest"]),
        size_bytes=int(row["size"]),
        vram_bytes=int(row["size_vram"]),
        context_tokens=int(row["context_length"]),
        expires_at_s=datetime.fromisoformat(str(row["expires_at"])).timestamp(),
        pid=int(row.get("pid", 0)),
    )


def _of_record(record: "RunnerRecord") -> "RunningModel":
    from moerun.machine.description import HOST, SSD
    from moerun.report.ps_view import RunningModel

    devices = {device for device, _ in record.labels} - {HOST, SSD}
    vram_bytes = sum(record.ledger.used_bytes(device) for device in devices)
    sample = record.last_sample
    host_bytes = record.ledger.used_bytes(HOST) if sample is None else sample.resident_bytes
    return RunningModel(
        name=record.model_name,
        digest="",
        size_bytes=host_bytes + vram_bytes,
        vram_bytes=vram_bytes,
        context_tokens=record.context_tokens,
        expires_at_s=None,
        pid=record.pid,
    )
