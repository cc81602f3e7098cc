"""What the engine's log says of buffers and of failures, read as values.

Beliefs: the wording of the lines — src/llama-model.cpp, llama-context.cpp, llama-kv-cache.cpp,
llama-kv-cache-dsv4.cpp, llama-memory-recurrent.cpp, ggml/src/ggml-alloc.c and the backends
@ 0.3.36 — checked by tests/test_load_log.py on recorded logs and by tests/engine/test_load.py.
Sizes are printed with two decimals of a MiB, so each is right to 5,243 bytes.

Knows: the engine's wording.
Does not know: ctypes, plans, or what to do about a failure.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from moerun.engine.arguments import BufferReport, EngineArgs, EngineDeviceRef
from moerun.machine.description import HOST, DeviceId
from moerun.units import MIB

MODEL: Final = "model"
KV: Final = "kv"
RECURRENT: Final = "recurrent"
COMPUTE: Final = "compute"
OUTPUT: Final = "output"
ADAPTER: Final = "adapter"
SLOTS: Final = "slots"  # in no log: they are made after loading

_BUFFER: Final = re.compile(
    r"^(?P<component>[\w~:]+):\s+(?P<buffer>\S+)\s+"
    r"(?P<kind>model|output|KV|RS|compute|LoRA|DSV4 .* state) buffer size = +(?P<mib>\d+\.\d+) MiB"
)
_KV_LAYER: Final = re.compile(r"^\w*kv_cache\w*: layer +\d+: dev = (?P<device>\S+)")
_KV_TOTAL: Final = re.compile(r"^\w*kv_cache\w*: size = +(?P<mib>\d+\.\d+) MiB \( *\d+ cells")
_LAYER: Final = re.compile(
    r"^load_tensors: layer +(?P<layer>\d+) assigned to device (?P<device>\S+),"
)
_RPC_BUFFER: Final = re.compile(r"^RPC(?P<index>\d+)\[(?P<address>.+)\]$")
# Buffer types of the processor, and page-locked memory that a driver lends it.
_HOST_BUFFER: Final = re.compile(r"^(CPU|CPU_\w+|AMX|BLAS|\w+_Host)$")
_KINDS: Final = {
    "model": MODEL,
    "output": OUTPUT,
    "KV": KV,
    "RS": RECURRENT,
    "compute": COMPUTE,
    "LoRA": ADAPTER,
}

_OUT_OF_MEMORY: Final = (
    re.compile(r"failed to allocate (?P<buffer>\S+) buffer of size (?P<bytes>\d+)"),
    re.compile(r"allocating (?P<mib>[\d.]+) MiB on device \d+: cudaMalloc failed"),
    re.compile(r"failed to allocate buffer, size = *(?P<mib>[\d.]+) MiB"),
    re.compile(r"failed to allocate output buffer of size (?P<mib>[\d.]+) MiB"),
    re.compile(r"failed to allocate buffer of size (?P<bytes>\d+)"),
    re.compile(r"memory allocation of size (?P<bytes>\d+) failed"),
    re.compile(r"unable to allocate (?P<buffer>\S+) buffer"),
    re.compile(r"failed to allocate (buffer|compute|graph|memory|context)"),
    re.compile(r"out of memory|ErrorOutOfDeviceMemory|ErrorOutOfHostMemory|bad_alloc"),
)


_EMPTY_ERROR: Final = re.compile(r"^llama_model_load_from_file_impl:|: failed to load model$")

# What the engine does otherwise than asked, and only mentions — src/llama-mmap.cpp:191, :293, :719,
# :742, src/llama-context.cpp:550, :678, src/llama-model-loader.cpp:830 @ 0.3.36.
_NOTES: Final = (
    (
        re.compile(r"failed to (mlock|VirtualLock) \d+-byte buffer|mlock not supported"),
        "the weights are not locked in memory: the system does not allow it "
        "(see `ulimit -l`); they may be swapped out",
    ),
    (
        re.compile(r"Falling back to buffered I/?O"),
        "the weights are not read directly: the file system does not allow it",
    ),
    (
        re.compile(r"mmap is not supported on this platform"),
        "the model is copied into memory: this system has no memory mapping",
    ),
    (
        re.compile(r"[Ff]lash [Aa]ttention not supported, set to disabled"),
        "flash attention is off: a layer's device does not support it",
    ),
    (
        re.compile(r"retrying without pipeline parallelism"),
        "batches are not pipelined over the devices: their memory does not suffice",
    ),
)


# What becomes of flash attention that is left to the engine - `resolve_fused_ops` and
# `llama_init_from_model` in src/llama-context.cpp @ 0.3.36 - checked by
# tests/engine/test_load.py and tests/engine/test_lossless.py.
_FLASH_ATTENTION_ON: Final = re.compile(
    r"Flash Attention enabled|enabling flash_attn since|flash_attn +\S+ enabled"
)
_FLASH_ATTENTION_OFF: Final = re.compile(
    r"Flash Attention not supported, set to disabled|flash_attn is not compatible|"
    r"flash_attn +\S+ disabled"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFailure:
    """An allocation that failed; None where the log does not say."""

    buffer: str | None = None
    requested_bytes: int | None = None


def read_load_log(
    lines: Iterable[str],
    args: EngineArgs,
    *,
    buffer_types: Mapping[str, DeviceId] | None = None,
) -> tuple[BufferReport, ...]:
    """Return the buffers that loading a model and a context allocated, in the log's order.

    `buffer_types` are the names of the devices' buffer types where the engine can be asked;
    without them RPC buffers are matched by address. Compute buffers may be reserved again: the
    last figure stands. Empty buffers are left out.
    """
    reports: list[BufferReport] = []
    for line in lines:
        match = _BUFFER.match(line)
        if match is None:
            continue
        report = BufferReport(
            component=match["component"],
            buffer=match["buffer"],
            device=device_of_buffer(match["buffer"], args.devices, buffer_types),
            kind=_KINDS.get(match["kind"], RECURRENT),
            size_bytes=_mib(match["mib"]),
        )
        if report.kind == COMPUTE:
            reports = [r for r in reports if (r.kind, r.buffer) != (COMPUTE, report.buffer)]
        reports.append(report)
    return tuple(report for report in reports if report.size_bytes)


def read_dry_run_log(
    lines: Iterable[str],
    args: EngineArgs,
    *,
    buffer_types: Mapping[str, DeviceId] | None = None,
    device_names: Mapping[str, DeviceId] | None = None,
) -> tuple[BufferReport, ...]:
    """Return the buffers but the model's that a load would allocate, from a `no_alloc` log.

    There the KV caches are not allocated and only their totals are logged, beside the device of
    each layer; a total is shared out over its layers evenly, which is exact unless layers of
    different widths lie on several devices. `device_names` are those of the log.
    """
    lines = tuple(lines)
    others = (r for r in read_load_log(lines, args, buffer_types=buffer_types) if r.kind != MODEL)
    by_name = _named(args) if device_names is None else device_names
    reports = [report for report in others if report.kind != KV]
    layers: Counter[str] = Counter()
    for line in lines:
        if match := _KV_LAYER.match(line):
            layers[match["device"]] += 1
        elif match := _KV_TOTAL.match(line):
            total_bytes = _mib(match["mib"])
            reports += [
                BufferReport(
                    component="llama_kv_cache",
                    buffer=name,
                    device=by_name.get(name, HOST if name == "CPU" else None),
                    kind=KV,
                    size_bytes=round(total_bytes * count / layers.total()),
                )
                for name, count in layers.items()
            ]
            layers.clear()
    return tuple(report for report in reports if report.size_bytes)


def read_gpu_layers(
    lines: Iterable[str],
    args: EngineArgs,
    *,
    device_names: Mapping[str, DeviceId] | None = None,
) -> tuple[tuple[DeviceId, int], ...]:
    """Return how many layers have their dense part on each device of the arguments.

    The last number that the engine assigns is the output's, not a layer's.
    """
    names = {
        int(match["layer"]): match["device"] for line in lines if (match := _LAYER.match(line))
    }
    counts = Counter(name for layer, name in names.items() if layer != max(names))
    by_name = _named(args) if device_names is None else device_names
    return tuple((device, counts[name]) for name, device in by_name.items() if counts[name])


def _named(args: EngineArgs) -> dict[str, DeviceId]:
    return {reference.engine_name: reference.id for reference in args.devices}


def read_notes(lines: Iterable[str]) -> tuple[str, ...]:
    """Return a sentence for each thing that the engine did otherwise than it was asked."""
    text = "\n".join(lines)
    return tuple(note for pattern, note in _NOTES if pattern.search(text))


def read_flash_attention(lines: Iterable[str]) -> bool | None:
    """Return whether flash attention is on; None where the log does not say.

    Left to the engine it depends on the placement, and it decides the arithmetic.
    """
    text = "\n".join(lines)
    if _FLASH_ATTENTION_OFF.search(text):
        return False
    return True if _FLASH_ATTENTION_ON.search(text) else None


def device_of_buffer(
    buffer: str,
    devices: tuple[EngineDeviceRef, ...],
    buffer_types: Mapping[str, DeviceId] | None = None,
) -> DeviceId | None:
    """Return the device that a buffer lies on; None when no device of the arguments matches."""
    if buffer_types and buffer in buffer_types:
        return buffer_types[buffer]
    if _HOST_BUFFER.match(buffer):
        return HOST
    if match := _RPC_BUFFER.match(buffer):
        # The number counts the devices of one worker, not those of the engine's list.
        there = [d for d in devices if d.id.endswith(f"[{match['address']}]")]
        return there[int(match["index"])].id if int(match["index"]) < len(there) else None
    named = (d.id for d in devices if buffer in (d.engine_name, f"{d.engine_name}_Mapped"))
    return next(named, None)


def find_memory_failure(lines: Iterable[str]) -> MemoryFailure | None:
    """Return what could not be allocated, None when the log tells of another failure."""
    found: MemoryFailure | None = None
    for line in lines:
        failure = _memory_failure(line)
        if failure is None:
            continue
        # The first line that names a size is the allocation itself; later ones follow from it.
        if found is None:
            found = failure
        elif found.requested_bytes is None and failure.requested_bytes is not None:
            found = replace(failure, buffer=failure.buffer or found.buffer)
        elif found.buffer is None and failure.buffer is not None:
            found = replace(found, buffer=failure.buffer)
    return found


def _memory_failure(line: str) -> MemoryFailure | None:
    for pattern in _OUT_OF_MEMORY:
        if match := pattern.search(line):
            named = match.groupdict()
            size = named.get("bytes")
            return MemoryFailure(
                buffer=named.get("buffer"),
                requested_bytes=int(size)
                if size
                else (_mib(named["mib"]) if named.get("mib") else None),
            )
    return None


def error_line(errors: Iterable[str]) -> str | None:
    """Return the engine's own words for a failure: the last error that says something.

    The very last lines of a failed load only repeat that it failed.
    """
    said = [line.strip() for line in errors if line.strip()]
    telling = [line for line in said if not _EMPTY_ERROR.search(line)] or said
    if not telling:
        return None
    # The name of the C++ function in front tells a user nothing.
    words = re.sub(r"^[\w:~]+: ", "", telling[-1])
    return re.sub(r"^error loading model: ", "", words).rstrip(".")


def _mib(text: str) -> int:
    return round(float(text) * MIB)
