"""Asking the engine what a plan's arguments would allocate, without allocating it.

Knows: how a load without memory is made and read.
Does not know: what the planner does with the figures.
"""

from collections import Counter

from moerun.engine import abi, devices
from moerun.engine.arguments import BufferReport, EngineArgs
from moerun.engine.engine_log import engine_log
from moerun.engine.exact_reserve import keeping_assignments
from moerun.engine.load import load_without_memory
from moerun.engine.load_log import COMPUTE, KV, OUTPUT, RECURRENT, read_dry_run_log, read_gpu_layers
from moerun.machine.description import DeviceId
from moerun.planning.plan import ChargeKind, MeasuredBuffer, Measurements

_CHARGES = {
    KV: ChargeKind.KV_CACHE,
    RECURRENT: ChargeKind.RECURRENT_STATE,
    COMPUTE: ChargeKind.COMPUTE,
    OUTPUT: ChargeKind.COMPUTE,
}


def measure(args: EngineArgs) -> Measurements:
    """Return the KV, state and compute buffers that loading with the arguments would allocate.

    Reads the header only and takes some 15 ms for a header with a small vocabulary; recurrent
    state is really allocated meanwhile, and given back.

    On Linux they are the very buffers of a load. Where `exact_reserve` cannot help (macOS,
    Windows, unusual links) they are those of `measure_unaided`.
    """
    with keeping_assignments(abi.open_engine()):
        return measure_unaided(args)


def measure_unaided(args: EngineArgs) -> Measurements:
    """Return what the engine's own estimate says.

    Belief: where layers are on several devices, the compute buffer behind a border is off by a
    few batches of hidden states: one in most models for each copy of the pipeline, up to 3.4 seen
    in nemotron_h_moe — `ggml_backend_sched_reserve_size`, ggml/src/ggml-backend.cpp @ 0.3.36 —
    checked by tests/engine/test_dry_run.py.
    """
    log = engine_log()
    mark = log.mark()
    loaded = load_without_memory(args)
    try:
        lines = log.since(mark)
        device_names = devices.logged_names(args.devices)
        reports = read_dry_run_log(
            lines,
            args,
            buffer_types=devices.buffer_type_names(args.devices),
            device_names=device_names,
        )
        context_tokens = loaded.context_tokens
    finally:
        loaded.free()
    return Measurements(
        context_tokens=context_tokens,
        ubatch_tokens=args.ubatch_tokens,
        buffers=as_measured(reports),
        gpu_layers=read_gpu_layers(lines, args, device_names=device_names),
        engine_version=abi.installed_version() or "",
    )


def as_measured(reports: tuple[BufferReport, ...]) -> tuple[MeasuredBuffer, ...]:
    """Return the sums per device and kind; buffers of unknown devices and weights are left out."""
    sums: Counter[tuple[DeviceId, ChargeKind]] = Counter()
    for report in reports:
        if report.device is not None and report.kind in _CHARGES:
            sums[report.device, _CHARGES[report.kind]] += report.size_bytes
    return tuple(
        MeasuredBuffer(device=device, kind=kind, size_bytes=size_bytes)
        for (device, kind), size_bytes in sums.items()
    )
