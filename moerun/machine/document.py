"""The document that `doctor --json` writes and `plan --machine` reads.

Knows: its schema number, and that a bare machine object is read as well.
Does not know: how a machine was probed, or what the self-check means.
"""

import json
from collections.abc import Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Final

from moerun.codec import from_plain, to_plain
from moerun.errors import MachineError
from moerun.machine.description import Machine, is_gpu
from moerun.units import MIB

SCHEMA: Final = 1
_LARGEST_FILE_BYTES: Final = MIB  # a real one has a few kilobytes
_MOST_DIGITS: Final = 19  # some EiB, of bytes
_MOST_CORES: Final = 1 << 16


def machine_document(machine: Machine, self_check: object | None) -> dict[str, Any]:
    """Return the document as plain data; `self_check` is a frozen value or None."""
    return {"schema": SCHEMA, "machine": to_plain(machine), "self_check": to_plain(self_check)}


def read_machine(path: Path) -> Machine:
    """Return the machine that a file describes; MachineError says what is wrong with it."""
    data = _read_json(path)
    if not isinstance(data, Mapping):
        raise _bad(path, "it holds no JSON object")
    if "schema" in data or "machine" in data:
        schema = data.get("schema", SCHEMA)
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise _bad(path, f"its schema number {schema!r:.40} is none")
        if schema > SCHEMA:
            raise _bad(path, f"it has schema {schema} and this moerun reads up to {SCHEMA}")
        data = data.get("machine")
    try:
        machine = from_plain(Machine, data)
    except ValueError as error:
        raise _bad(path, str(error)) from error
    _check_sense(machine, path)
    return machine


def _read_json(path: Path) -> object:
    try:
        if path.is_dir():
            raise _bad(path, "it is a folder")
        with path.open("rb") as file:  # of a device or a pipe the size is not known before
            data = file.read(_LARGEST_FILE_BYTES + 1)
        if len(data) > _LARGEST_FILE_BYTES:
            raise _bad(path, f"it has more than {_LARGEST_FILE_BYTES:,} bytes, too many for one")
        return json.loads(
            data.decode("utf-8"),
            parse_int=partial(_whole_number, path),
            parse_float=partial(_number, path),
            parse_constant=partial(_number, path),  # NaN and Infinity
        )
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _bad(path, "it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise _bad(path, f"line {error.lineno} is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise _bad(path, "its JSON is nested too deeply") from error


def _whole_number(path: Path, text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _bad(path, f"{text:.20}... is larger than any number of a machine")
    return int(text)


def _number(path: Path, text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise _bad(path, f"{text:.40} is no number of a machine")
    return number


def _check_sense(machine: Machine, path: Path) -> None:
    """Refuse numbers that no machine has, before a planner adds them up."""
    seen: set[str] = set()
    for gpu in machine.gpus:
        if not is_gpu(gpu.id) or gpu.id in seen:
            raise _bad(path, f"'{gpu.id}' is not an id of its own that starts with 'gpu:'")
        seen.add(gpu.id)
        if not 0 <= gpu.free_bytes <= gpu.total_bytes:
            raise _bad(
                path, f"{gpu.id} has {gpu.free_bytes} bytes free of {gpu.total_bytes} in all"
            )
    host = machine.host
    if not 0 <= host.available_bytes <= host.total_bytes or host.total_bytes == 0:
        raise _bad(
            path,
            f"the host has {host.available_bytes} bytes available of {host.total_bytes} in all",
        )
    if not 1 <= host.physical_cores <= _MOST_CORES:
        raise _bad(path, f"the host has {host.physical_cores} physical cores")
    if min(host.swap_free_bytes, machine.storage.free_bytes) < 0:
        raise _bad(path, "a size in it is negative")
    optional = [host.cgroup_limit_bytes, machine.storage.read_bytes_per_s]
    optional.append(host.memory_bandwidth_bytes_per_s)
    for gpu in machine.gpus:
        optional += [gpu.memory_bandwidth_bytes_per_s, gpu.link_bytes_per_s]
        optional += [gpu.working_set_limit_bytes, gpu.link_latency_s, gpu.compute_threads]
    if any(number is not None and number <= 0 for number in optional):
        raise _bad(path, "a limit or a rate in it is not above zero; null is for what is unknown")


def _bad(path: Path, why: str) -> MachineError:
    return MachineError(
        f"{path} does not describe a machine: {why}",
        hint="write such a file with: moerun doctor --json > machine.json",
    )
