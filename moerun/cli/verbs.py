"""The verbs of the command line: their rows in the help, and where each lives until it is called.

A verb is the module `moerun.cli.<name>` with a function of that name (`rm` is `remove`), of which
typer makes a command. Importing a verb only when it is called keeps `--help` quick, so the rows
stand here; a test holds them to the first lines of the functions' docstrings.

Knows: the list, and how a command is built from its module.
Does not know: what a verb does, or how errors are shown.
"""

import importlib
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

SUMMARIES: Final[dict[str, str]] = {
    "run": "Answer a prompt, or hold a conversation.",
    "serve": "Serve models over HTTP.",
    "ps": "List the models in memory.",
    "stop": "Take a model of the server out of memory.",
    "plan": "Show where a model would go, without loading it.",
    "pull": "Download models; what an earlier pull left is gone on with.",
    "list": "List the models of this machine.",
    "show": "Show what a model is.",
    "create": "Make a model of a Modelfile.",
    "cp": "Give a model of your own a second name.",
    "rm": "Remove models of your own.",
    "stat": "Show the running models.",
    "trace": "Record which experts your own prompts use.",
    "simulate": "Replay recorded routing for sizes of RAM, or slots in VRAM.",
    "worker": "Lend this machine's memory to moerun elsewhere.",
    "doctor": "Look at the machine and at the engine.",
    "config": "Show every setting with its origin.",
}
# Verbs whose short names ollama's users type, and where each lives.
MODULES: Final[dict[str, str]] = {"cp": "copy", "list": "list_models", "rm": "remove"}
_ALIASES: Final[dict[str, str]] = {"ls": "list"}
GENERAL_VARIABLES: Final[dict[str, str]] = {
    "MOERUN_CONFIG_DIR": "folder of your config.yaml",
    "MOERUN_STATE_DIR": "folder for records of running models and for logs",
    "MOERUN_DEBUG": "1 shows the traceback of an error",
    "NO_COLOR": "any value: print without colour",
}


class VerbCommand(TyperCommand):
    """A command whose help ends with the environment variables that affect it."""

    variables: dict[str, str]

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, that of `--help` included."""
        return _with_lazy_coercion(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options; of an argument, its name says enough without its type."""
        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                rows[parameter.param_type_name].append(record)
        if rows["argument"]:
            with formatter.section("Arguments"):
                named = [(name.partition(" <")[0], text) for name, text in rows["argument"]]
                formatter.write_dl(named)
        with formatter.section("Options"):
            formatter.write_dl(rows["option"])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the variables as a list of their own."""
        _write_variables(self.variables, formatter)


class VerbGroup(TyperGroup):
    """The root command: it knows the verbs by name and imports the one that is called."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, that of `--help` included."""
        return _with_lazy_coercion(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of the help."""
        return list(SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one verb; None when there is no such."""
        verb = _ALIASES.get(cmd_name, cmd_name)
        return build_verb(verb) if verb in SUMMARIES else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Let the group suggest the nearest name for a mistyped one."""
        self.commands = dict.fromkeys((*SUMMARIES, *_ALIASES), _UNLOADED)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the variables that affect every verb."""
        _write_variables(GENERAL_VARIABLES, formatter)


def build_verb(name: str) -> VerbCommand:
    """Import the module of a verb and make a command of its function.

    The module may hold `VARIABLES`, a dictionary of the environment variables that affect this
    verb beside the general ones.
    """
    stem = MODULES.get(name, name)
    module = importlib.import_module(f"moerun.cli.{stem}")
    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    holder.command(name=name, cls=VerbCommand)(getattr(module, stem))
    command = typer.main.get_command(holder)
    assert isinstance(command, VerbCommand)
    command.variables = {**getattr(module, "VARIABLES", {}), **GENERAL_VARIABLES}
    return command


def _with_lazy_coercion(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "_runtime_param", None) is None:
            parameter._runtime_param = _LazyCoercion()
    return parameters


class _LazyCoercion:
    """Coercion of a parameter that leaves text as it was typed.

    typer coerces every parameter, text and absent ones included, by an adapter of pydantic, whose
    import takes 0.1 s: half of what `plan` may take. `_TyperParameter.get_runtime_param` keeps its
    adapter in `_runtime_param` - typer/core.py @ 0.29.2 - checked by tests/test_startup.py; a typer
    that keeps it elsewhere ignores ours, and is only slower.
    """

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value for the function; anything but text is left to typer."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if param.type_descriptor.annotation in (str, list[str]):
            return value
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


_UNLOADED: Final[Any] = None  # stands for a command that is known by name only


def _write_variables(variables: dict[str, str], formatter: Any) -> None:
    with formatter.section("Environment"):
        formatter.write_dl(list(variables.items()))
