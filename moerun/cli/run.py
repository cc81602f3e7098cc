"""`moerun run`: answer a prompt, or hold a conversation.

Ask settings, model, machine and prompt; decide and load (open_model); answer; tell how it went.

Standard output holds the answer alone, as the model gives it, and a newline after an answer that
does not end in one. With `--json` it holds one document.
"""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags

if TYPE_CHECKING:
    from moerun.cli.open_model import OpenedModel
    from moerun.engine.interface import GenerationResult
    from moerun.runner.carried import Carried

VARIABLES: Final = {
    "MOERUN_MODELS": "folder whose GGUF files can be named",
    "MOERUN_NOHISTORY": "1 keeps no history of what you type",
    **placement_variables(),
}
SCHEMA: Final = 1
_LONGEST_PROMPT_BYTES: Final = 32 << 20


@with_placement_flags()
def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Name of a model, pulled when it is not here, or a path."
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="The prompt; what is piped in is put before it.",
            show_default=False,
        ),
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="NUMBER", min=0.0, help="0 takes the likeliest token."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", min=0, help="Choose among so many tokens; 0 is all."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", metavar="SHARE", min=0.0, max=1.0, help="Share of probability kept."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Least share of the likeliest token's.",
        ),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        typer.Option("--repeat-penalty", metavar="NUMBER", min=0.01, help="1 is none."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=2**32 - 2,
            help="Same seed, same choices; else random.",
        ),
    ] = None,
    num_predict: Annotated[
        int | None,
        typer.Option(
            "--num-predict",
            "--max-tokens",
            metavar="N",
            min=-1,
            help="Most tokens; -1 is no limit.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document with answer and figures.")
    ] = False,
    is_verbose: Annotated[
        bool, typer.Option("--verbose", help="Print timings and buffers after each answer.")
    ] = False,
    is_quiet: Annotated[
        bool, typer.Option("--quiet", help="Print no hints to standard error.")
    ] = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; fetch and load nothing.")
    ] = False,
    says_yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Agree to large downloads, and to SSD streaming.")
    ] = False,
    flags: PlacementFlags,
) -> None:
    """Answer a prompt, or hold a conversation when there is none and a terminal to hold it on.

    A model that is not on this machine is pulled first. Ctrl-C ends the answer; a one-shot prompt
    then exits with 130. An empty prompt ("") loads the model and exits.
    """
    from moerun.cli.missing_model import fetch_missing, find_missing
    from moerun.cli.open_model import opened_model
    from moerun.engine.interface import Sampling
    from moerun.engine.sampling import choose_sampling
    from moerun.runner.carried import carried_by

    if is_dry_run:
        _show_run(model, flags, as_json=as_json, is_quiet=is_quiet)
        return
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
    )
    choose_sampling(sampling, {})  # what cannot be is told before anything is loaded
    limit = _token_limit(num_predict)
    missing = find_missing(model, flags)
    if missing is not None:
        model = fetch_missing(missing, says_yes=says_yes, is_quiet=is_quiet or as_json)
    text = _read_prompt(tuple(prompt or ()), as_json=as_json)
    started_s = time.monotonic()
    with opened_model(model, flags, is_quiet=is_quiet, is_verbose=is_verbose) as opened:
        carried = carried_by(
            opened.profile,
            sampling=sampling,
            maximum_tokens=limit,
            is_limit_given=num_predict is not None,
            system=system,
        )
        if text is None:
            from moerun.cli.conversation import hold_conversation

            hold_conversation(opened, carried, is_verbose=is_verbose)
            return
        shot = OneShot(opened, carried, started_s=started_s)
        shot.answer(text, as_json=as_json, is_verbose=is_verbose, is_quiet=is_quiet)


class OneShot:
    """One prompt and its answer."""

    def __init__(self, opened: "OpenedModel", carried: "Carried", *, started_s: float) -> None:
        self._opened = opened
        self._carried = carried
        self._started_s = started_s

    def answer(self, text: str, *, as_json: bool, is_verbose: bool, is_quiet: bool) -> None:
        """Answer and tell how it went; exits with 130 when it was interrupted."""
        from moerun.cli.open_model import say
        from moerun.engine.interface import StopReason
        from moerun.errors import EXIT_INTERRUPTED

        if not text:
            if as_json:
                self._print_json("", None)
            elif not is_quiet:
                say(f"{self._opened.model.name} was loaded; nothing was asked")
            return
        answer, result = self._generate(text, shows=not as_json)
        if as_json:
            self._print_json(answer, result)
        for note in () if is_quiet else result.notes:
            say(f"Note: {note}")
        if is_verbose:
            print_figures(self._opened, result, load_s=self._load_s, total_s=self._total_s)
        self._opened.refresh_record()
        if result.stop_reason is StopReason.CANCELLED:
            raise typer.Exit(EXIT_INTERRUPTED)

    @property
    def _load_s(self) -> float:
        return self._opened.loaded.report.load_s

    @property
    def _total_s(self) -> float:
        return time.monotonic() - self._started_s

    def _generate(self, text: str, *, shows: bool) -> "tuple[str, GenerationResult]":
        from moerun.engine.interface import Message
        from moerun.report.answer_view import AnswerWriter
        from moerun.runner.interruption import interrupts

        writer = AnswerWriter(sys.stdout, is_terminal=sys.stdout.isatty())
        pieces: list[str] = []
        question = Message(role="user", content=text)
        request = self._carried.request(self._carried.system, (question,))
        runner = self._opened.runner
        with interrupts(runner.cancel):
            result = runner.generate(request, on_text=writer.write if shows else pieces.append)
        if shows:
            writer.finish()
        return writer.text if shows else "".join(pieces), result

    def _print_json(self, answer: str, result: "GenerationResult | None") -> None:
        import json

        from moerun.report.run_document import run_document

        document = {
            "schema": SCHEMA,
            **run_document(
                answer,
                result,
                model=self._opened.model,
                loaded=self._opened.loaded,
                mode=self._opened.mode,
                buffers=self._opened.buffers(),
                streaming=self._opened.streaming(),
                total_s=self._total_s,
            ),
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=not _speaks_unicode()))


def print_figures(
    opened: "OpenedModel", result: "GenerationResult", *, load_s: float, total_s: float
) -> None:
    """Print the timing block, then the buffers and what streaming did, to standard error."""
    from moerun.report.buffer_view import buffer_lines
    from moerun.report.notices import tell
    from moerun.report.streaming_view import verbose_lines
    from moerun.report.timing_view import label_line, timing_lines

    machine = opened.machine
    lines = [*timing_lines(result, load_s=load_s, total_s=total_s)]
    lines += [label_line("mode", opened.mode)]
    lines += [label_line("seed", str(result.seed))]
    lines += buffer_lines(opened.buffers(), machine.label)
    streaming = opened.streaming()
    if streaming is not None:
        lines += verbose_lines(streaming)
    tell(*lines)


def _token_limit(num_predict: int | None) -> int | None:
    """Return the most tokens to answer with, None for no limit."""
    from moerun.errors import UsageError

    if num_predict == 0:
        raise UsageError(
            "--num-predict: at least one token must be asked for, not 0",
            hint='-1 is no limit; an empty prompt ("") loads the model and asks for none',
        )
    return None if num_predict == -1 else num_predict


def _read_prompt(words: tuple[str, ...], *, as_json: bool) -> str | None:
    """Return what is asked, None for a conversation.

    What is piped in stands before the words. Any word, anything but a terminal on either side, or
    `--json` means one answer.
    """
    from moerun.errors import UsageError

    parts = list(words)
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.read(_LONGEST_PROMPT_BYTES + 1)
        if len(data) > _LONGEST_PROMPT_BYTES:
            raise UsageError(
                f"the prompt has more than {_LONGEST_PROMPT_BYTES >> 20} MiB",
                hint="no context holds that much; pass a part of it",
            )
        if piped := data.decode("utf-8", "replace"):
            parts.insert(0, piped)
    elif not words and not as_json and sys.stdout.isatty():
        return None
    return " ".join(parts)


def _show_run(name: str, flags: PlacementFlags, *, as_json: bool, is_quiet: bool) -> None:
    """Show what a run would do: what it would fetch, and the plan it would begin with."""
    from moerun.cli.missing_model import find_missing, show_missing, show_unasked
    from moerun.errors import Unreachable

    try:
        missing = find_missing(name, flags)
    except Unreachable as error:
        if show_unasked(name, flags, trouble=error.message, as_json=as_json):
            return
        raise
    if missing is not None:
        show_missing(missing, as_json=as_json)
        return
    _show_plan(name, flags, as_json=as_json, is_quiet=is_quiet)


def _show_plan(name: str, flags: PlacementFlags, *, as_json: bool, is_quiet: bool) -> None:
    """Show the plan that a run would begin with: `plan`, but for what the engine lists here."""
    from moerun.cli.open_model import ask, say
    from moerun.planning.planner import plan_placement

    asked = ask(name, flags)
    plan = plan_placement(asked.model, asked.machine, asked.strategy)
    if as_json:
        from moerun.report.json_view import plan_document, write_document

        typer.echo(write_document(plan_document(asked.model, asked.machine, plan)))
    else:
        from moerun.report.console import open_console, page_of, print_lines
        from moerun.report.plan_view import plan_lines

        console = open_console()
        lines = plan_lines(asked.model, asked.machine, plan, page_of(console), explains=False)
        print_lines(console, lines)
    for note in (*asked.settings.notes, *(() if is_quiet else asked.machine.notes)):
        say(f"Note: {note}")


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


_Document = dict[str, Any]
