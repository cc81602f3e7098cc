"""`moerun trace`: record which experts a model's router chooses for your own prompts.

Ask the prompts and the model; load as `run` does; answer and record; tell what was recorded.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags

if TYPE_CHECKING:
    from moerun.cli.open_model import OpenedModel

VARIABLES: Final = {
    "MOERUN_MODELS": "folder whose GGUF files can be named",
    **placement_variables(),
}
_SEED: Final = 1
_LONGEST_FILE_BYTES: Final = 32 << 20


@with_placement_flags()
def trace(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model at hand, or path of a GGUF.")
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Prompts, each a conversation of its own; else standard input, one a line.",
            show_default=False,
        ),
    ] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="A file with one prompt a line."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="FILE", help="Where to write; else MODEL.route.csv, here."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="Most tokens of each answer.")
    ] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    is_quiet: Annotated[
        bool, typer.Option("--quiet", help="Print no progress and no hints.")
    ] = False,
    flags: PlacementFlags,
) -> None:
    """Record which experts your own prompts use.

    The answers are sampled with a fixed seed and not shown. `moerun simulate` replays the file
    for sizes of RAM. Ctrl-C ends the recording and keeps what was recorded.
    """
    from moerun.cli.open_model import opened_model, require_text, say
    from moerun.cli.planning_steps import read_named_model
    from moerun.errors import EXIT_INTERRUPTED
    from moerun.experts.trace import routed_layout, start_trace, trace_header

    texts = _prompts(tuple(prompts or ()), file)
    recorded = read_named_model(model)
    require_text(recorded)
    header = trace_header(recorded, routed_layout(recorded))
    target = _target(output, recorded.files[0].path, is_forced=force)
    with _kept_when_done(target) as part:
        start_trace(part, header)
        with opened_model(model, flags, is_quiet=is_quiet, trace_path=str(part)) as opened:
            is_whole = _answer_all(opened, texts, tokens, is_quiet=is_quiet)
    _tell(target, as_json=as_json)
    if not is_quiet and not as_json:
        say(f"Hint: `moerun simulate {target}` replays it for sizes of RAM")
    if not is_whole:
        raise typer.Exit(EXIT_INTERRUPTED)


def _prompts(words: tuple[str, ...], file: str | None) -> tuple[str, ...]:
    """Return the prompts of the command line, then those of the file, else of standard input."""
    from moerun.errors import UsageError

    texts = [word for word in words if word.strip()]
    if file is not None:
        texts += _lines(_file_bytes(file))
    elif not words and not sys.stdin.isatty():
        texts += _lines(sys.stdin.buffer.read(_LONGEST_FILE_BYTES + 1))
    if not texts:
        raise UsageError(
            "there is no prompt whose routing could be recorded",
            hint='give prompts as arguments, such as moerun trace MODEL "What is rain?", or a '
            "file with one a line as --file",
        )
    return tuple(texts)


def _file_bytes(path: str) -> bytes:
    from moerun.errors import UsageError

    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--file: {path} cannot be read ({reason})") from error


def _lines(data: bytes) -> list[str]:
    from moerun.errors import UsageError

    if len(data) > _LONGEST_FILE_BYTES:
        raise UsageError(f"the prompts have more than {_LONGEST_FILE_BYTES >> 20} MiB together")
    return [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]


def _target(output: str | None, model_path: str, *, is_forced: bool) -> Path:
    """Return where the trace is to be; UsageError where something is that must stay."""
    from moerun.errors import UsageError

    target = Path(f"{Path(model_path).stem}.route.csv" if output is None else output)
    if not output and output is not None:
        raise UsageError("--output: '' is not the path of a file")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file with --output")
    if target.exists() and not is_forced:
        raise UsageError(
            f"{target} is there already", hint="name another file with --output, or pass --force"
        )
    return target


@contextmanager
def _kept_when_done(target: Path) -> Iterator[Path]:
    """Give a file to write beside the target, which takes its place when all went well."""
    part = target.absolute().with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _answer_all(
    opened: "OpenedModel", texts: tuple[str, ...], tokens: int, *, is_quiet: bool
) -> bool:
    """Answer every prompt; whether none was interrupted."""
    from moerun.cli.open_model import say
    from moerun.engine.interface import GenerationRequest, Message, Sampling, StopReason
    from moerun.runner.interruption import interrupts

    for number, text in enumerate(texts, start=1):
        request = GenerationRequest(
            messages=(Message(role="user", content=text),),
            sampling=Sampling(seed=_SEED),
            maximum_tokens=tokens,
        )
        with interrupts(opened.runner.cancel):
            result = opened.runner.generate(request, on_text=lambda _: None)
        opened.refresh_record()
        if not is_quiet:
            say(
                f"prompt {number} of {len(texts)}: {result.prompt_tokens:,} tokens, "
                f"{result.answer_tokens:,} of the answer"
            )
        if result.stop_reason is StopReason.CANCELLED:
            return False
    return True


def _tell(target: Path, *, as_json: bool) -> None:
    from moerun.experts.route_figures import route_figures
    from moerun.experts.trace import read_trace

    figures = route_figures(read_trace(target))
    if as_json:
        from moerun.report.json_view import write_document
        from moerun.report.trace_view import trace_document

        typer.echo(write_document(trace_document(str(target), figures)))
        return
    from moerun.report.console import open_console, page_of, print_lines
    from moerun.report.trace_view import trace_lines

    console = open_console()
    print_lines(console, trace_lines(str(target), figures, page_of(console)))
