"""A worker of this very engine in a child process: a device over loopback.

It stands in for a GPU where there is none, and serves another program's engine over the network
when it is told an address to listen on.

Knows: how a worker is started, found and ended.
Does not know: what is placed on it.
"""

import argparse
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any, Final

from moerun.engine import abi
from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.engine.workers import greet_worker, split_address
from moerun.errors import EngineCrashed, EngineMissing, EngineRefused, MoerunError

_START_TIMEOUT_S: Final = 30.0
_LOOPBACK: Final = "127.0.0.1"
_PROCESSOR: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


@contextlib.contextmanager
def loopback_worker(memory_bytes: int | None = None, *, threads: int = 2) -> Iterator[str]:
    """Start a worker on a free port and yield its address; it is ended in any case.

    `memory_bytes` is what it reports as its memory, and on Linux what it can allocate.
    """
    address = f"{_LOOPBACK}:{_free_port()}"
    options = ["--until-stdin-closes", f"--threads={threads}"]
    if memory_bytes is not None:
        options.append(f"--memory-bytes={memory_bytes}")
    # A file, since a pipe that nobody reads would stop the worker once it is full.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            module_command("moerun.engine.rpc_worker", address, *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=child_environment(),
        )
        try:
            _wait_until_it_greets(process, address, log)
            yield address
        finally:
            process.kill()
            process.communicate()


def _wait_until_it_greets(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    ends_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            log.seek(0)
            raise EngineCrashed(
                f"The worker at {address} ended at once ({describe_exit(process.returncode)}).",
                log_tail=log.read().decode("utf-8", "replace"),
            )
        try:
            greet_worker(address, timeout_s=1.0)
        except EngineRefused as error:
            if time.monotonic() > ends_s:
                raise EngineCrashed(
                    f"The worker at {address} did not answer within {_START_TIMEOUT_S:g} s."
                ) from error
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def serve(address: str, *, threads: int, memory_bytes: int | None) -> None:
    """Serve the processor as a device until the process is ended."""
    split_address(address)
    opened = abi.open_engine()
    if opened.start_rpc_server is None:
        raise EngineMissing(
            "The engine was built without RPC, so it cannot serve as a worker.",
            hint=f"`make run` builds it with RPC; or: {abi.INSTALL_COMMAND} --force-reinstall",
        )
    device = opened.device_by_type(_PROCESSOR)
    if not device:
        raise EngineRefused("The engine has no backend for the processor.")
    # The callback must live as long as the server runs, which is as long as this function.
    limit = _limit_memory(device, memory_bytes) if memory_bytes is not None else None
    devices = (ctypes.c_void_p * 1)(device)
    opened.start_rpc_server(address.encode(), None, threads, len(devices), devices)
    del limit
    raise EngineRefused(f"The worker could not listen at {address}.")


def _limit_memory(device: int, memory_bytes: int) -> Any:
    """Let the device report less memory than the machine has, and allocate no more."""

    def report(_: Any, free: Any, total: Any) -> None:
        free[0] = total[0] = memory_bytes

    callback = abi.GetMemory(report)
    abi.DeviceInterfaceHead.from_address(device).get_memory = callback
    if sys.platform == "linux":
        import resource  # absent on Windows

        used_bytes = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + memory_bytes,) * 2)
    return callback


def _data_bytes() -> int:
    """Return the private writable memory that this process has mapped."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    raise EngineRefused("This system does not tell how much memory a process has mapped.")


def _end_with_the_parent() -> None:
    """Wait until the parent's end of the pipe closes, which the system does when it dies."""
    sys.stdin.buffer.read()
    os._exit(0)  # the server's loop knows no other end


def main(arguments: list[str] | None = None) -> int:
    """Run a worker; returns only with an error."""
    parser = argparse.ArgumentParser(prog="python -m moerun.engine.rpc_worker")
    parser.add_argument("address", help="host:port to listen on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-bytes", type=int, default=None)
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end with the program that started it"
    )
    options = parser.parse_args(arguments)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        serve(options.address, threads=options.threads, memory_bytes=options.memory_bytes)
    except MoerunError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
