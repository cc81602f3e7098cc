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
from dataclasses import dataclass
from typing import IO, Any, Final

from moerun.engine import abi
from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.engine.workers import greet_worker, split_address
from moerun.errors import EngineCrashed, EngineMissing, EngineRefused, MoerunError, UsageError

_START_TIMEOUT_S: Final = 30.0
_GPU_KINDS: Final = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
_LOOPBACK: Final = "127.0.0.1"
_PROCESSOR_NAME: Final = "CPU"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedDevice:
    """A device that is lent: ggml's name for it, its pointer, and the limit it keeps to.

    `memory_bandwidth_bytes_per_s` is for whoever ranks it; the engine does not know it.
    """

    name: str
    description: str
    pointer: int
    is_processor: bool
    limit_bytes: int | None
    memory_bandwidth_bytes_per_s: float | None = None

    def pci_address(self) -> str | None:
        """Return the address of the card, None for what is none; a GPU makes a context for it."""
        properties = abi.DeviceProperties()
        abi.open_engine().device_properties(self.pointer, ctypes.byref(properties))
        device_id = (properties.device_id or b"").decode("utf-8", "replace").lower()
        return device_id.partition("-")[0] or None

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes, as a client is told."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        # The properties of a processor would not pass by what `limit_devices` put in place.
        report = abi.DeviceInterfaceHead.from_address(self.pointer).get_memory
        report(self.pointer, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def choose_devices(
    names: tuple[str, ...], limits: tuple[int | None, ...]
) -> tuple[ServedDevice, ...]:
    """Return the devices of those names (`CUDA0`, `CPU`), all GPUs or else the processor for none.

    `limits` are one for all of them, or one for each.
    """
    opened = abi.open_engine()
    pointers = [opened.device_at(index) for index in range(opened.device_count())]
    by_name = {opened.device_name(pointer).decode(): pointer for pointer in pointers}
    if names:
        missing = [name for name in names if name not in by_name]
        if missing:
            raise UsageError(
                f"The engine has no device '{missing[0]}'; it lists {', '.join(by_name)}."
            )
        if len(set(names)) < len(names):
            raise UsageError("A device is named twice.")
        chosen = names
    else:
        chosen = tuple(name for name, pointer in by_name.items() if _is_gpu(opened, pointer))
        chosen = chosen or tuple(
            name
            for name, pointer in by_name.items()
            if pointer == opened.device_by_type(_PROCESSOR)
        )
    if not chosen:
        raise EngineRefused("The engine has no backend for the processor.")
    if len(limits) not in (1, len(chosen)):
        raise UsageError(
            f"{len(limits)} limits are given for {len(chosen)} devices ({', '.join(chosen)})."
        )
    each = limits if len(limits) == len(chosen) else limits * len(chosen)
    return tuple(
        ServedDevice(
            name=name,
            description=(opened.device_description(by_name[name]) or b"").decode(
                "utf-8", "replace"
            ),
            pointer=by_name[name],
            is_processor=by_name[name] == opened.device_by_type(_PROCESSOR),
            limit_bytes=limit,
        )
        for name, limit in zip(chosen, each, strict=True)
    )


def _is_gpu(opened: abi.Abi, pointer: int) -> bool:
    properties = abi.DeviceProperties()
    opened.device_properties(pointer, ctypes.byref(properties))
    return properties.kind in _GPU_KINDS


def serve(
    address: str,
    devices: tuple[ServedDevice, ...],
    *,
    threads: int,
    cache_folder: str | None = None,
) -> None:
    """Serve the devices until the process is ended; their limits are set by `limit_devices`."""
    split_address(address)
    opened = abi.open_engine()
    if opened.start_rpc_server is None:
        raise EngineMissing(
            "The engine was built without RPC, so it cannot serve as a worker.",
            hint=f"`make run` builds it with RPC; or: {abi.INSTALL_COMMAND} --force-reinstall",
        )
    pointers = (ctypes.c_void_p * len(devices))(*(device.pointer for device in devices))
    cache = os.fsencode(cache_folder) if cache_folder is not None else None
    opened.start_rpc_server(address.encode(), cache, threads, len(devices), pointers)
    raise EngineRefused(f"The worker could not listen at {address}.")


def limit_devices(devices: tuple[ServedDevice, ...], *, spare_bytes: int = 0) -> tuple[Any, ...]:
    """Have devices report no more memory than their limits; keep what is returned while they serve.

    On Linux a processor can allocate no more, either. `spare_bytes` is what the process may take
    beside: a tensor that arrives is held whole before it is put in its place.
    """
    return tuple(
        _limit_memory(device, spare_bytes=spare_bytes)
        for device in devices
        if device.limit_bytes is not None
    )


def _limit_memory(device: ServedDevice, *, spare_bytes: int) -> Any:
    """Let a device report no more memory than its limit, and on Linux a processor allocate none."""
    limit_bytes = device.limit_bytes
    assert limit_bytes is not None
    interface = abi.DeviceInterfaceHead.from_address(device.pointer)
    own = abi.GetMemory(ctypes.cast(interface.get_memory, ctypes.c_void_p).value or 0)

    def report(pointer: Any, free: Any, total: Any) -> None:
        if device.is_processor:  # its own figure is all memory that is installed
            free[0] = total[0] = limit_bytes
            return
        own(pointer, free, total)
        free[0], total[0] = min(free[0], limit_bytes), min(total[0], limit_bytes)

    callback = abi.GetMemory(report)
    interface.get_memory = callback
    if device.is_processor and sys.platform == "linux":
        import resource  # absent on Windows

        most_bytes = _data_bytes() + limit_bytes + spare_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes,) * 2)
    return callback, own


def _data_bytes() -> int:
    """Return the private writable memory that this process has mapped."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    raise EngineRefused("This system does not tell how much memory a process has mapped.")


def end_with_the_parent() -> None:
    """Wait until the parent's end of the pipe closes, which the system does when it dies."""
    while os.read(0, 4096):  # not by a buffer, whose lock would be held when the process ends
        pass
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
        threading.Thread(target=end_with_the_parent, daemon=True).start()
    try:
        devices = choose_devices((_PROCESSOR_NAME,), (options.memory_bytes,))
        kept = limit_devices(devices)  # as long as the server runs
        serve(options.address, devices, threads=options.threads)
        del kept
    except MoerunError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
