"""`moerun worker`: lend this machine's devices to moerun on another one.

Ask for the address and the limits, decide nothing, serve until Ctrl-C; all is told on standard
error.
"""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from moerun.machine.workers import WorkerAddress, WorkerOffer
    from moerun.worker.supervisor import WorkerWishes

_DEFAULT_LISTEN: Final = "127.0.0.1:50052"
_EVERY_ADDRESS: Final = "0.0.0.0"
_CACHE_FOLDER: Final = "worker-cache"


def worker(
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; the next port too."),
    ] = _DEFAULT_LISTEN,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE[,SIZE]",
            help="Most to lend of each device: 8G, or one for each.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="A device by the engine's name: CUDA0, CPU; repeatable. All GPUs, else the CPU.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, max=1024, help="Threads of the CPU."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache", metavar="FOLDER", help="Where weights are kept, so that they are sent once."
        ),
    ] = None,
    cache_size: Annotated[
        str, typer.Option("--cache-size", metavar="SIZE", help="Most to keep there.")
    ] = "64G",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no weights.")] = False,
) -> None:
    """Lend this machine's memory to moerun elsewhere.

    Serves until Ctrl-C. Whoever reaches the port can use the devices and read what is computed on
    them: the engine's protocol has neither passwords nor encryption, so this listens on this
    machine alone unless another address is given. An SSH tunnel brings it to others safely.
    """
    from moerun.cli.open_model import warn
    from moerun.engine.abi import require_version
    from moerun.places import log_folder
    from moerun.runner.interruption import terminations
    from moerun.worker.supervisor import WorkerProcess, keep_up

    require_version()
    wishes = _wishes(
        listen=listen,
        memory=memory,
        devices=tuple(device or ()),
        threads=threads,
        cache=None if no_cache else cache or _default_cache(),
        cache_size=cache_size,
    )
    if not wishes.address.host.startswith("127."):
        warn(
            f"whoever reaches {wishes.address.endpoint} can use this machine's devices and read "
            "what is computed on them, for the protocol has no passwords; use it in a network "
            "that you trust, or listen at 127.0.0.1 and let others come through SSH"
        )
    log = log_folder() / f"worker-{wishes.address.port}.log"
    try:
        with terminations(), WorkerProcess(wishes, log) as process:
            keep_up(
                process,
                on_ready=lambda offer: _tell_ready(wishes, offer, process.log_tail()),
                on_end=lambda how: warn(
                    f"the worker's process ended ({how}) and is started again; its log is {log}"
                ),
            )
    except KeyboardInterrupt:
        return


def _wishes(
    *,
    listen: str,
    memory: str | None,
    devices: tuple[str, ...],
    threads: int | None,
    cache: str | None,
    cache_size: str,
) -> "WorkerWishes":
    import os

    from moerun.worker.supervisor import WorkerWishes

    return WorkerWishes(
        address=_address(listen),
        devices=devices,
        limits_bytes=tuple(_size(part, "--memory") for part in memory.split(","))
        if memory is not None
        else (None,),
        threads=threads or _cores(),
        cache_folder=os.path.abspath(os.path.expanduser(cache)) if cache is not None else None,
        cache_bytes=_size(cache_size, "--cache-size"),
    )


def _address(listen: str) -> "WorkerAddress":
    """Return a numeric address, which is all that the engine's server takes; a port may do."""
    import socket
    from dataclasses import replace

    from moerun.errors import UsageError
    from moerun.machine.workers import parse_worker

    text = f"127.0.0.1:{listen}" if listen.isdecimal() else listen
    address = parse_worker(text)
    if address.limit_bytes is not None:
        raise UsageError(f"--listen: '{listen}' names a size; give it to --memory")
    try:
        return replace(address, host=socket.gethostbyname(address.host))
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--listen: '{address.host}' is no address of this machine") from error


def _size(text: str, flag: str) -> int:
    from moerun.errors import UsageError
    from moerun.units import MIB, parse_bytes

    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error
    if size_bytes < MIB:
        raise UsageError(f"{flag}: '{text}' means {size_bytes:,} bytes; write 8G for gigabytes")
    return size_bytes


def _cores() -> int:
    from moerun.machine.probe import this_host

    return this_host().physical_cores


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _default_cache() -> str:
    from moerun.places import state_folder

    return str(state_folder() / _CACHE_FOLDER)


def _tell_ready(wishes: "WorkerWishes", offer: "WorkerOffer", log: str) -> None:
    import socket

    from moerun.cli.open_model import say, warn
    from moerun.units import format_gib
    from moerun.worker.weight_cache import NO_CACHE

    for line in log.splitlines():
        if line.startswith(NO_CACHE):  # it was wished for, and cannot be
            warn(f"no {line.removeprefix('No ')}")
    for each in offer.devices:
        rate = each.memory_bandwidth_bytes_per_s
        reads = f", whose memory is read at {rate / 1e9:,.1f} GB/s" if rate else ""
        say(f"Lending {format_gib(each.free_bytes)} of {each.name}{reads}")
    say(f"Computing with {_count(offer.threads, 'thread')} where a processor is lent")
    address = wishes.address
    say(f"Listening at {address.endpoint}, and at port {address.side_port} for signs of life")
    say(f"Weights are kept in {wishes.cache_folder}" if offer.has_cache else "No weights are kept")
    say("Ctrl-C ends it")
    host = socket.gethostname() if address.host == _EVERY_ADDRESS else address.host
    say(f"Use it by: moerun run MODEL --workers {host}:{address.port}")
