"""Whether `run` asks a server that is there, or loads a model of its own.

Knows: what a server can be asked for, and when its answer would not be what the flags ask for.
Does not know: how an answer is made.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from moerun.cli.options import PlacementFlags, flag_name
from moerun.errors import ServeError

if TYPE_CHECKING:
    from moerun.server.client import Client

# Settings of placement that a request may carry, and the options of Ollama's API that carry them.
_OPTIONS: Final = {"context": "num_ctx", "batch": "num_batch", "threads": "num_thread"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChoice:
    """A server to ask, None for a runner of one's own; `note` says why where a server is there.

    `options` are the placement flags that requests to it carry.
    """

    client: "Client | None" = None
    note: str | None = None
    options: tuple[tuple[str, int], ...] = ()


def choose_server(name: str, flags: PlacementFlags, *, is_local: bool) -> ServerChoice:
    """Return the server that answers, unless the flags need a runner of one's own."""
    from moerun.places import state_folder
    from moerun.server.client import find_client

    client = None if is_local else find_client(state_folder())
    if client is None or not _is_moerun(client):
        return ServerChoice()
    beyond = _beyond(flags)
    if beyond:
        note = f"the server at {client.place} takes no {beyond[0]} from a request; the model is "
        return ServerChoice(note=note + "loaded beside it")
    if _is_own_file(name):
        note = f"the server at {client.place} takes models by name alone; the file is loaded beside"
        return ServerChoice(note=f"{note} it")
    return ServerChoice(client=client, options=_options(flags))


def without_server(choice: ServerChoice, name: str) -> ServerChoice:
    """Return the choice of a runner of one's own, for a model that the server has not."""
    if choice.client is None:
        return choice
    note = f"the server at {choice.client.place} does not have {name}; it is loaded beside it"
    return replace(choice, client=None, note=note)


def _is_moerun(client: "Client") -> bool:
    """Whether moerun answers there; another program, or nobody, is as good as no server."""
    try:
        return client.greet() is not None
    except ServeError as error:
        if error.__cause__ is None:  # it answered, and said why not
            raise
        return False


def _beyond(flags: PlacementFlags) -> tuple[str, ...]:
    """Return the flags that no request can carry."""
    names = [
        flag_name(key)
        for key, value in flags.settings
        if key not in _OPTIONS or not str(value).isdecimal()
    ]
    return (*(["--config"] if flags.config_file is not None else []), *names)


def _options(flags: PlacementFlags) -> tuple[tuple[str, int], ...]:
    return tuple((_OPTIONS[key], int(str(value))) for key, value in flags.settings)


def _is_own_file(name: str) -> bool:
    """Whether a name means a file by its path, or one of the folder this was started in."""
    from moerun.places import working_folder
    from moerun.store.names import demo_path, resolve_file

    path = resolve_file(name)
    if path is None or path == demo_path():
        return False
    return path.parent.resolve() == working_folder().resolve() or path.stem != name
