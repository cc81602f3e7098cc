"""The devices that ggml offers in this process, as values and as the pointers behind them.

Run as a program (`python -m moerun.engine.devices --json [--worker host:port]`) it prints them
for a parent that does not want the engine in its own process; see `child_probe`.

Knows: enumeration, ids, and the registration of RPC workers.
Does not know: what a device will be used for.
"""

import argparse
import ctypes
import json
import sys
from typing import Final

from moerun.codec import to_plain
from moerun.engine import abi
from moerun.engine.arguments import EngineDeviceRef
from moerun.engine.child_probe import EngineProbe
from moerun.engine.workers import greet_worker, reach_worker
from moerun.errors import EngineMissing, EngineRefused, MoerunError
from moerun.machine.description import DeviceId, EngineDevice, EngineDeviceKind
from moerun.machine.gpus import device_id_of

# `enum ggml_backend_dev_type` in order — ggml/include/ggml-backend.h @ 0.3.36
_KINDS: Final = (
    EngineDeviceKind.CPU,
    EngineDeviceKind.GPU,
    EngineDeviceKind.INTEGRATED_GPU,
    EngineDeviceKind.ACCELERATOR,
    EngineDeviceKind.META,
)

# Workers stay registered as long as the process lives; ggml has no way to take one out.
_registered_workers: Final[set[str]] = set()


def list_devices(workers: tuple[str, ...] = ()) -> tuple[EngineDevice, ...]:
    """Return ggml's device list: what is in this machine, and the devices of the given workers."""
    opened = abi.open_engine()
    register_workers(workers)
    return tuple(
        _describe(opened, pointer)
        for pointer in _pointers(opened)
        if not _is_remote(opened, pointer) or _text(opened.device_description(pointer)) in workers
    )


def register_workers(workers: tuple[str, ...]) -> None:
    """Make the devices of RPC workers known to ggml; each is asked first whether it is there."""
    opened = abi.open_engine()
    for address in workers:
        if address in _registered_workers:
            # A greeting would wait for the connection that this very process may hold.
            reach_worker(address)
            continue
        if opened.add_rpc_server is None:
            raise EngineMissing(
                f"The engine was built without RPC, so the worker at {address} cannot be used.",
                hint=f"`make run` builds it with RPC; or: {abi.INSTALL_COMMAND} --force-reinstall",
            )
        greet_worker(address)
        registration = opened.add_rpc_server(address.encode())
        if not registration:
            raise EngineRefused(f"The worker at {address} offers no device.")
        opened.register(registration)
        _registered_workers.add(address)


def device_pointers(references: tuple[EngineDeviceRef, ...]) -> tuple[int, ...]:
    """Return ggml's pointer for each device, found by id; EngineRefused when one is gone."""
    opened = abi.open_engine()
    return tuple(_find(opened, reference) for reference in references)


def buffer_type_names(references: tuple[EngineDeviceRef, ...]) -> dict[str, DeviceId]:
    """Return the name of each device's buffer type with the device it belongs to."""
    opened = abi.open_engine()
    return {
        opened.buffer_type_name(opened.device_buffer_type(pointer)).decode(): reference.id
        for reference, pointer in zip(references, device_pointers(references), strict=True)
    }


def logged_names(references: tuple[EngineDeviceRef, ...]) -> dict[str, DeviceId]:
    """Return the name by which this process's log calls each device: workers' are counted on."""
    opened = abi.open_engine()
    return {
        _text(opened.device_name(pointer)): reference.id
        for reference, pointer in zip(references, device_pointers(references), strict=True)
    }


def processor() -> int:
    """Return ggml's pointer for the processor."""
    pointer = abi.open_engine().device_by_type(_KINDS.index(EngineDeviceKind.CPU))
    if not pointer:
        raise EngineRefused("The engine has no backend for the processor.")
    return pointer


def processor_buffer_type() -> int:
    """Return the pointer of the plain buffer type of the processor."""
    return abi.open_engine().device_buffer_type(processor())


def _pointers(opened: abi.Abi) -> tuple[int, ...]:
    return tuple(opened.device_at(index) for index in range(opened.device_count()))


def _find(opened: abi.Abi, reference: EngineDeviceRef) -> int:
    """Look at the device of the expected name first: to ask a GPU for its id takes its memory.

    Belief: the properties include free memory, for which the CUDA backend makes a context of some
    hundred megabytes on that card — ggml/src/ggml-cuda/ggml-cuda.cu:5114 @ 0.3.36 — read there,
    never measured.
    """
    names = {pointer: _name(opened, pointer) for pointer in _pointers(opened)}
    for pointer in sorted(names, key=lambda pointer: names[pointer] != reference.engine_name):
        if _id(opened, pointer) == reference.id:
            return pointer
    raise EngineRefused(
        f"The device {reference.id} ({reference.engine_name}) that the plan uses is not there; "
        f"the engine lists {', '.join(names.values())}.",
        hint="Plan again: the machine has changed since.",
    )


def _is_remote(opened: abi.Abi, pointer: int) -> bool:
    return opened.registration_name(opened.device_registration(pointer)).startswith(b"RPC")


def _id(opened: abi.Abi, pointer: int) -> DeviceId:
    """Return a device's id without asking a worker, which may have ended since."""
    if not _is_remote(opened, pointer):
        return device_id_of(_describe(opened, pointer))
    return device_id_of(
        EngineDevice(
            name=_name(opened, pointer),
            description=_text(opened.device_description(pointer)),
            registry="RPC",
            kind=EngineDeviceKind.GPU,
            free_bytes=0,
            total_bytes=0,
        )
    )


def _describe(opened: abi.Abi, pointer: int) -> EngineDevice:
    properties = abi.DeviceProperties()
    opened.device_properties(pointer, ctypes.byref(properties))
    registration = opened.device_registration(pointer)
    return EngineDevice(
        name=_name(opened, pointer),
        description=_text(properties.description),
        registry=_text(opened.registration_name(registration)),
        kind=_KINDS[properties.kind],
        free_bytes=properties.free_bytes,
        total_bytes=properties.total_bytes,
        device_id=_text(properties.device_id).lower() or None,
    )


def _name(opened: abi.Abi, pointer: int) -> str:
    """Return ggml's name for a device; for a worker's, one that is the same in every process.

    Belief: ggml numbers the devices of all workers in the order in which they were registered,
    and names buffers by the number within a worker — ggml_backend_rpc_add_server and
    ggml_backend_rpc_buffer_type, ggml/src/ggml-rpc/ggml-rpc.cpp @ 0.3.36 — checked by
    tests/engine/test_devices.py.
    """
    if not _is_remote(opened, pointer):
        return _text(opened.device_name(pointer))
    address = opened.device_description(pointer)
    remote = [each for each in _pointers(opened) if _is_remote(opened, each)]
    siblings = [each for each in remote if opened.device_description(each) == address]
    return f"RPC{siblings.index(pointer)}"


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def main(arguments: list[str] | None = None) -> int:
    """Print what this process finds, or its error, as one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m moerun.engine.devices")
    parser.add_argument("--json", action="store_true", required=True)
    parser.add_argument("--worker", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        opened = abi.open_engine()
        document = {
            "probe": to_plain(
                EngineProbe(
                    version=abi.installed_version() or "",
                    devices=list_devices(tuple(options.worker)),
                    build=opened.llama.llama_print_system_info().decode("utf-8", "replace").strip(),
                    has_rpc=opened.add_rpc_server is not None,
                )
            )
        }
    except MoerunError as error:
        document = {
            "error": {
                "kind": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
            }
        }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
