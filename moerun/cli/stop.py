"""`moerun stop`: take a model of the server out of memory.

Ask where the server is, and let it unload.
"""

from typing import Annotated, Final

import typer

VARIABLES: Final[dict[str, str]] = {"MOERUN_HOST": "address of the server"}
_NOT_FOUND: Final = 404


def stop(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `ps` lists.")],
) -> None:
    """Take a model of the server out of memory."""
    from moerun.errors import ModelNotFound, ServeError
    from moerun.places import state_folder
    from moerun.server.client import find_client, require_ok

    client = find_client(state_folder())
    if client is None:
        raise ServeError("No server is running, so no model is to stop.", hint="see `moerun stat`")
    body = {"model": model, "prompt": "", "keep_alive": 0}
    status, content = client.ask("POST", "/api/generate", body)
    if status == _NOT_FOUND:
        raise ModelNotFound(f'couldn\'t find model "{model[:80]}" to stop')
    require_ok(status, content)
