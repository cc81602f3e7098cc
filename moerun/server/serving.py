"""A server from its settings to its end: assemble, listen, be found, stop.

Knows: the variables of a server, and uvicorn.
Does not know: terminals; what is to be told is handed to a function.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from moerun.errors import UsageError
from moerun.places import state_folder
from moerun.server.app import make_app
from moerun.server.backend import Backend
from moerun.server.durations import parse_keep_alive
from moerun.server.listening import (
    open_socket,
    read_address,
    remove_server_record,
    url_of,
    write_server_record,
)
from moerun.server.local_loader import LoaderSettings, LocalLoader
from moerun.server.management import ManagementApi, fetch_by_name, fetch_from_public_hosts
from moerun.server.scheduler import SchedulePolicy, Scheduler
from moerun.server.security import Access, Guard
from moerun.server.shelf import LocalShelf
from moerun.settings.description import LoadedSettings
from moerun.store.own_store import OwnStore
from moerun.store.uploads import Uploads

_LOG: Final = logging.getLogger(__name__)
KEY_VARIABLE: Final = "MOERUN_API_KEY"
ORIGINS_VARIABLE: Final = "MOERUN_ORIGINS"
PARALLEL_VARIABLE: Final = "MOERUN_NUM_PARALLEL"
KEEP_ALIVE_VARIABLE: Final = "MOERUN_KEEP_ALIVE"
QUEUE_VARIABLE: Final = "MOERUN_MAX_QUEUE"
_GRACE_S: Final = 5
_KEPT_OPEN_S: Final = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the environment says of a server."""

    access: Access
    policy: SchedulePolicy
    parallel: int = 4


def read_server_settings(environment: Mapping[str, str]) -> ServerSettings:
    """Return the settings of a server; UsageError names the variable that cannot be read."""
    origins = environment.get(ORIGINS_VARIABLE, "").split(",")
    access = Access(
        api_key=environment.get(KEY_VARIABLE, "").strip() or None,
        origins=tuple(origin.strip() for origin in origins if origin.strip()),
        is_loopback=read_address(environment).is_loopback,
    )
    try:
        keep_alive_s = parse_keep_alive(environment.get(KEEP_ALIVE_VARIABLE) or "5m")
    except ValueError as error:
        raise UsageError(f"{KEEP_ALIVE_VARIABLE}: {error}") from error
    most_waiting = _count(environment, QUEUE_VARIABLE, default=512, most=100_000)
    return ServerSettings(
        access=access,
        policy=SchedulePolicy(keep_alive_s=keep_alive_s, most_waiting=most_waiting),
        parallel=_count(environment, PARALLEL_VARIABLE, default=4, most=64),
    )


def assemble(
    settings: ServerSettings, placement: LoadedSettings, *, engine: str | None = None
) -> ASGIApp:
    """Return the whole application, guarded, with this machine's models behind it."""
    loader = LocalLoader(
        LoaderSettings(settings=placement, parallel=settings.parallel, engine=engine)
    )
    loader.prepare()
    backend = Backend(shelf=LocalShelf(), scheduler=Scheduler(loader, settings.policy))
    fetch = fetch_by_name if settings.access.is_loopback else fetch_from_public_hosts
    return Guard(make_app(backend, ManagementApi(backend, fetch=fetch)), settings.access)


def serve_forever(placement: LoadedSettings, *, tell: Callable[[str], None]) -> None:
    """Listen until a signal ends it; every model is out of memory when this returns."""
    settings = read_server_settings(os.environ)
    address = read_address(os.environ)
    app = assemble(settings, placement)
    if forgotten := Uploads(OwnStore()).remove_forgotten():
        _LOG.info("%d uploads of which no model was made are removed", forgotten)
    with open_socket(address) as listening:
        tell(f"moerun listens on {url_of(listening)}")
        if not address.is_loopback and settings.access.api_key is None:
            tell(
                f"Warning: {address.host} is reachable from other machines, and anybody there may "
                f"use the models; {KEY_VARIABLE} asks them for a token"
            )
        state = state_folder()
        write_server_record(state, url_of(listening))
        try:
            run_app(app, listening)
        finally:
            remove_server_record(state)


def run_app(app: ASGIApp, listening: socket.socket) -> None:
    """Serve on a socket until SIGINT or SIGTERM, which is a good end.

    uvicorn raises the signal again when all is closed, for whoever handled it before: that is
    nobody here, so that the exit code is 0.
    """
    ends = (signal.SIGINT, signal.SIGTERM)
    earlier = {end: signal.signal(end, lambda number, frame: None) for end in ends}
    try:
        make_server(app).run(sockets=[listening])
    finally:
        for end, handler in earlier.items():
            signal.signal(end, handler)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that is not started yet."""
    config = uvicorn.Config(
        app,
        log_level=logging.ERROR,  # who sends what is no HTTP is told so, and fills no log
        access_log=False,  # paths name models; what people do is nobody's log
        server_header=False,
        timeout_keep_alive=_KEPT_OPEN_S,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
    )
    return uvicorn.Server(config)


def _count(environment: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise UsageError(f"{name} is '{text[:40]}'; write a whole number from 1 to {most:,}")
    return int(text)
