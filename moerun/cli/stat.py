"""`moerun stat`: what the running models use, and what their experts do.

Ask the records and the system, compare, tell.
"""

import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, assert_never

import typer

if TYPE_CHECKING:
    from moerun.runner.memory_report import MemoryReport
    from moerun.runner.records import RunnerRecord
    from moerun.runner.statistics import MemorySample

SCHEMA: Final = 1
_NOTHING: Final = "no model is running; `moerun run demo` in another terminal starts one"
_KEPT_SAMPLES: Final = 10_000


def stat(
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Memory by device, and what is streamed: with a map of the experts."
        ),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600.0, help="Between looks."),
    ] = 2.0,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document; with --watch one for each line."),
    ] = False,
    as_prometheus: Annotated[
        bool,
        typer.Option("--prometheus", help="Print all figures as Prometheus reads them, once."),
    ] = False,
) -> None:
    """Show the running models; with --memory what was planned, reported and is observed.

    On the host, private memory and the pages of the model's files are told apart: the system may
    drop the latter, and processes share them. Where experts stream, their tiers, hit rates, reads,
    waits and a map of layers by experts follow.
    """
    form = _form(as_json=as_json, as_prometheus=as_prometheus, repeats=watch)
    wishes = _Wishes(shows_memory=memory, form=form, repeats=watch)
    seen: dict[int, tuple[MemorySample, ...]] = {}
    told: set[str] = set()
    if not watch:
        _look(seen, told, wishes)
        return
    try:
        while True:
            _look(seen, told, wishes)
            time.sleep(interval)
    except KeyboardInterrupt:
        return


def print_memory(pids: frozenset[int]) -> bool:
    """Print the memory of these runners as `--memory` does; whether any of them was found."""
    from moerun.places import state_folder
    from moerun.runner.records import read_records

    seen: dict[int, tuple[MemorySample, ...]] = {}
    records = [record for record in read_records(state_folder()).records if record.pid in pids]
    reports = [(record, _report(record, seen)) for record in records]
    _print_views(reports, _Wishes(shows_memory=True, form=_Form.VIEW, repeats=False))
    return bool(records)


class _Form(StrEnum):
    """What is printed."""

    VIEW = "view"
    JSON = "json"
    PROMETHEUS = "prometheus"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """What is to be shown, and whether it is shown again and again."""

    shows_memory: bool
    form: "_Form"
    repeats: bool


def _form(*, as_json: bool, as_prometheus: bool, repeats: bool) -> "_Form":
    from moerun.errors import UsageError

    if not as_prometheus:
        return _Form.JSON if as_json else _Form.VIEW
    if as_json or repeats:
        other = "--json" if as_json else "--watch"
        raise UsageError(
            f"--prometheus and {other} cannot both be asked for",
            hint="a scraper asks again by itself; `--watch --json` prints a line for each look",
        )
    return _Form.PROMETHEUS


def _look(seen: "dict[int, tuple[MemorySample, ...]]", told: set[str], wishes: _Wishes) -> None:
    """Look once at every runner and print what was seen.

    `seen` keeps the earlier looks, `told` the notes that need not be told again.
    """
    from moerun.places import state_folder
    from moerun.report.notices import tell
    from moerun.report.plain import printable
    from moerun.runner.records import read_records

    read = read_records(state_folder())
    reports = [(record, _report(record, seen)) for record in read.records]
    for pid in set(seen) - {record.pid for record in read.records}:
        del seen[pid]
    match wishes.form:
        case _Form.JSON:
            _print_json(reports, wishes)
        case _Form.PROMETHEUS:
            from moerun.report.prometheus import prometheus_text

            typer.echo(prometheus_text(reports), nl=False)
        case _Form.VIEW:
            _print_views(reports, wishes)
        case _:
            assert_never(wishes.form)
    # Before each picture of a watch the terminal is cleared; beside documents once is enough.
    is_stream = wishes.form is _Form.JSON and wishes.repeats
    tell(*(printable(f"Note: {note}") for note in read.notes if note not in told))
    if is_stream:
        told.update(read.notes)
    elif not reports:
        tell(_NOTHING)


def _report(record: "RunnerRecord", seen: "dict[int, tuple[MemorySample, ...]]") -> "MemoryReport":
    """Compare a runner with its plan, by a look of now, else by the last it left itself."""
    from moerun.runner.memory_report import compare
    from moerun.runner.statistics import sample_process

    sample = sample_process(record.pid, model_paths=record.model_paths) or record.last_sample
    newest = (sample,) if sample is not None else ()
    samples = (*seen.get(record.pid, ()), *newest)[-_KEPT_SAMPLES:]
    seen[record.pid] = samples
    return compare(
        record.ledger,
        record.buffers,
        samples,
        earlier_peak=record.peak_sample,
        streaming=record.last_streaming,
    )


def _print_json(reports: "list[tuple[RunnerRecord, MemoryReport]]", wishes: _Wishes) -> None:
    import json

    runners = [
        _runner_document(record, report, shows_memory=wishes.shows_memory)
        for record, report in reports
    ]
    document: dict[str, Any] = {"schema": SCHEMA, "runners": runners}
    typer.echo(json.dumps(document, indent=None if wishes.repeats else 2))
    sys.stdout.flush()


def _runner_document(
    record: "RunnerRecord", report: "MemoryReport", *, shows_memory: bool
) -> dict[str, Any]:
    from moerun.codec import to_plain
    from moerun.report.streaming_document import streaming_document

    document = {
        "pid": record.pid,
        "model": record.model_name,
        "model_paths": list(record.model_paths),
        "mode": record.mode,
        "context_tokens": record.context_tokens,
        "load_mode": record.load_mode,
        "started_at_s": record.started_at_s,
        "engine_version": record.engine_version,
    }
    if not shows_memory:
        return document
    labels = dict(record.labels)
    devices = []
    for device in report.devices:
        plain = to_plain(device)
        for row, row_document in zip(device.rows, plain["rows"], strict=True):
            row_document["drift_fraction"] = row.drift_fraction
        devices.append({"label": labels.get(device.device, device.device), **plain})
    return document | {
        "devices": devices,
        "host": to_plain(report.host),
        "drift_fraction": report.drift_fraction,
        "streaming": streaming_document(record.last_streaming),
    }


def _print_views(reports: "list[tuple[RunnerRecord, MemoryReport]]", wishes: _Wishes) -> None:
    from moerun.report.console import is_coloured, open_console, page_of, print_lines
    from moerun.report.memory_view import memory_view, runner_lines
    from moerun.report.streaming_view import elsewhere_of, streaming_lines

    console = open_console()
    if wishes.repeats and console.is_terminal:
        console.clear()
    if not wishes.shows_memory:
        for line in runner_lines(reports, now_s=time.time()) if reports else ():
            console.print(line, soft_wrap=True)
    else:
        for index, (record, report) in enumerate(reports):
            page = page_of(console)
            view = memory_view(record, report, glyphs=page.glyphs, is_first=index == 0)
            console.print(view, soft_wrap=True)
            if record.last_streaming is not None:
                console.print()
                lines = streaming_lines(
                    record.last_streaming,
                    page,
                    is_coloured=is_coloured(console),
                    elsewhere=elsewhere_of(record, report),
                    labels={str(device): label for device, label in record.labels},
                )
                print_lines(console, lines)
    sys.stdout.flush()
