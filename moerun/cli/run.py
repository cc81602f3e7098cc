"""`moerun run`: answer a prompt, or hold a conversation.

Ask settings, model, machine and prompt; decide and load (open_model); answer; tell how it went.

Standard output holds the answer alone, as the model gives it, and a newline after an answer that
does not end in one. With `--json` it holds one document.
"""

import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags

if TYPE_CHECKING:
    from moerun.cli.missing_model import MissingModel
    from moerun.cli.own_partner import OwnPartner
    from moerun.cli.served_partner import ServedPartner
    from moerun.repl.settings import ChatSettings

VARIABLES: Final = {
    "MOERUN_MODELS": "folder whose GGUF files can be named",
    "MOERUN_HOST": "address of the server that is asked, where one runs",
    "MOERUN_API_KEY": "its key, where it wants one",
    "MOERUN_NOHISTORY": "1 keeps no history of what you type",
    **placement_variables(),
}
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
    format_text: Annotated[
        str | None,
        typer.Option("--format", metavar="json|SCHEMA", help="Have the answer be JSON."),
    ] = None,
    think: Annotated[
        str | None,
        typer.Option(
            "--think",
            metavar="[=LEVEL]",
            help="Think first: alone, or =false, =low, =medium, =high, =max.",
        ),
    ] = None,
    hides_thinking: Annotated[
        str,
        typer.Option(
            "--hidethinking", metavar="", help="Think, but do not show it.", show_default=False
        ),
    ] = "false",
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keepalive", metavar="TIME", help="How long a server keeps it: 5m, 30, 0, -1."
        ),
    ] = None,
    is_unwrapped: Annotated[
        bool, typer.Option("--nowordwrap", help="Do not break lines between words.")
    ] = False,
    truncate: Annotated[
        str,
        typer.Option(
            "--truncate",
            metavar="[=false]",
            help="Of a model of vectors: cut what is too long, as it does by default.",
            show_default=False,
        ),
    ] = "true",
    dimensions: Annotated[
        int | None,
        typer.Option("--dimensions", metavar="N", min=1, help="Of vectors: keep so many numbers."),
    ] = None,
    is_local: Annotated[
        bool, typer.Option("--local", help="Load it here, even when a server runs.")
    ] = False,
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

    A server that runs is asked, unless flags of placement or --local say otherwise; without one
    the model is loaded here, and leaves memory at the end. A model that is not on this machine is
    pulled first. Ctrl-C ends the answer; a one-shot prompt then exits with 130. An empty prompt
    ("") loads the model and exits.
    """
    from moerun.cli.chat_flags import read_format, read_keep_alive, read_switch, read_thinking
    from moerun.engine.interface import AnswerFormat
    from moerun.repl.settings import ChatSettings

    if is_dry_run:
        _show_run(model, flags, as_json=as_json, is_quiet=is_quiet)
        return
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "num_predict": _token_limit(num_predict),
    }
    settings = ChatSettings(
        parameters=tuple((name, value) for name, value in sampling.items() if value is not None),
        system=system,
        format=read_format(format_text) if format_text else AnswerFormat(),
        think=read_thinking(think) if think is not None else None,
    )
    run_model(
        model,
        settings,
        RunWishes(
            words=tuple(prompt or ()),
            flags=flags,
            keep_alive=read_keep_alive(keep_alive) if keep_alive is not None else None,
            truncates=read_switch(truncate, flag="--truncate"),
            dimensions=dimensions,
            hides_thinking=read_switch(hides_thinking, flag="--hidethinking"),
            wraps=not is_unwrapped,
            is_local=is_local,
            as_json=as_json,
            is_verbose=is_verbose,
            is_quiet=is_quiet,
            says_yes=says_yes,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWishes:
    """What the flags ask for beside the settings of a conversation."""

    words: tuple[str, ...]
    flags: PlacementFlags
    keep_alive: str | float | None
    truncates: bool
    dimensions: int | None
    hides_thinking: bool
    wraps: bool
    is_local: bool
    as_json: bool
    is_verbose: bool
    is_quiet: bool
    says_yes: bool


def run_model(name: str, settings: "ChatSettings", wishes: RunWishes) -> None:
    """Ask a server that has the model, else fetch it where it is missing and load it here."""
    from moerun.cli.missing_model import find_missing
    from moerun.cli.open_model import say
    from moerun.cli.server_choice import choose_server, without_server
    from moerun.engine.interface import Sampling
    from moerun.engine.sampling import choose_sampling
    from moerun.store.parameters import Target

    # What cannot be is told before anything is loaded.
    choose_sampling(Sampling(**settings.of_target(Target.SAMPLING)), {})
    started_s = time.monotonic()
    choice = choose_server(name, wishes.flags, is_local=wishes.is_local)
    if choice.client is not None:
        from moerun.cli.served_partner import ServedPartner

        served = ServedPartner(choice.client, name, keep_alive=wishes.keep_alive)
        is_known = served.is_known()
        if not is_known and (missing := find_missing(name, wishes.flags)) is not None:
            served.name = name = _fetched(missing, wishes)
            is_known = served.is_known()
        if is_known:
            for option, value in choice.options:
                settings = settings.with_parameter(option, str(value))
            _talk(served, settings, wishes, started_s)
            return
        choice = without_server(choice, name)
    elif (missing := find_missing(name, wishes.flags)) is not None:
        name = _fetched(missing, wishes)
    if choice.note is not None and not wishes.is_quiet:
        say(f"Note: {choice.note}")
    if wishes.keep_alive is not None and not wishes.is_quiet:
        say("Note: --keepalive is for a server; loaded here, the model leaves memory with this run")
    _run_here(name, settings, wishes, started_s)


def _fetched(missing: "MissingModel", wishes: RunWishes) -> str:
    from moerun.cli.missing_model import fetch_missing

    quiet = wishes.is_quiet or wishes.as_json
    return fetch_missing(missing, says_yes=wishes.says_yes, is_quiet=quiet)


def _run_here(name: str, settings: "ChatSettings", wishes: RunWishes, started_s: float) -> None:
    from moerun.cli.own_partner import OwnPartner

    with OwnPartner(
        name,
        wishes.flags,
        is_quiet=wishes.is_quiet,
        is_verbose=wishes.is_verbose,
        may_embed=True,
    ) as partner:
        _talk(partner, settings, wishes, started_s)


def _talk(
    partner: "OwnPartner | ServedPartner",
    settings: "ChatSettings",
    wishes: RunWishes,
    started_s: float,
) -> None:
    """Make a vector, answer one prompt, or hold a conversation."""
    from moerun.cli.one_shot import OneShot
    from moerun.cli.open_model import warn
    from moerun.engine.interface import Thinking

    text = _read_prompt(wishes.words, as_json=wishes.as_json)
    if partner.makes_vectors():
        _print_vector(partner, text, settings, wishes)
        return
    if settings.think not in (None, Thinking.OFF) and not partner.can_think(settings):
        warn(f"{partner.name} does not think; --think has no effect")
        settings = replace(settings, think=None)
    if text is not None:
        OneShot(partner, settings, wishes, started_s=started_s).answer(text)
        return
    from moerun.cli.conversing import hold_conversation

    partner.warm_up(settings)
    hold_conversation(partner, settings, wishes)


def _print_vector(
    partner: "OwnPartner | ServedPartner",
    text: str | None,
    settings: "ChatSettings",
    wishes: RunWishes,
) -> None:
    """Print the vector of a text as one JSON array, as a model that writes no text can."""
    import json

    from moerun.errors import UsageError

    if not text:
        raise UsageError(
            f"{partner.name} makes vectors of texts, and no text was given",
            hint=f'`moerun run {partner.name} "a text"`, or pipe one in',
        )
    vector = partner.embed(text, settings, truncates=wishes.truncates, dimensions=wishes.dimensions)
    typer.echo(json.dumps(vector))


def _token_limit(num_predict: int | None) -> int | None:
    """Return the most tokens to answer with, -1 for no limit, None where nothing was said."""
    from moerun.errors import UsageError

    if num_predict == 0:
        raise UsageError(
            "--num-predict: at least one token must be asked for, not 0",
            hint='-1 is no limit; an empty prompt ("") loads the model and asks for none',
        )
    return num_predict


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
