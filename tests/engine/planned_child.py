"""Plans of one model, carried out: logits against the reference, buffers against the ledger.

A native crash ends this process and not the tests. Every plan is a line of JSON on standard
output, written at once.

Knows: which plans are asked for, and how they are measured and loaded.
Does not know: what a test accepts.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.arguments import (
    BufferReport,
    EngineArgs,
    EngineDeviceRef,
    engine_args,
    predicted_buffers,
)
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.engine.load_log import COMPUTE, KV, MODEL, OUTPUT, RECURRENT
from moerun.machine.description import (
    HOST,
    DeviceId,
    Gpu,
    GpuBackend,
    Host,
    Machine,
    Storage,
    StorageKind,
    is_gpu,
)
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.audit import audit
from moerun.planning.plan import ChargeKind, Measurements, Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Strategy, Tier, Toggle
from moerun.units import GIB
from tests.engine.builders import device_references
from tests.engine.lossless_child import SHORT, run_script
from tests.engine.plain import Settings, plain_logits

MOST_DRY_RUNS, MOST_SIZES, SIZE_STEP_BYTES = 3, 8, 40_000
TOO_SMALL = 0.9  # of what a plan takes on one device
# Small micro-batches, so that compute buffers do not outweigh a tiny model.
SETTINGS = Settings(ubatch_tokens=64)
KINDS = {
    ChargeKind.KV_CACHE: (KV,),
    ChargeKind.RECURRENT_STATE: (RECURRENT,),
    ChargeKind.COMPUTE: (COMPUTE, OUTPUT),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One use of memory on one device: as planned, and as the engine's log said."""

    device: DeviceId
    kind: str
    planned_bytes: int
    reported_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One plan, carried out. The counts say whether it was the kind of plan that was wanted."""

    name: str
    devices: tuple[DeviceId, ...]
    layers_on_devices: int
    expert_bytes_on_devices: int
    expert_bytes: int
    split_layers: int
    rows_apart: int
    largest_difference: float
    figures: tuple[Figure, ...]
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan and the machine that it is for."""

    name: str
    plan: Plan
    machine: Machine


def plans(model: Model, remote: tuple[EngineDeviceRef, ...]) -> Iterator[Planned]:
    """Yield measured plans: everything on a device, then less and less room."""
    strategy = exact_strategy()
    one = _machine(remote[:1])
    whole = settled("all on one device", model, one, strategy, None)
    yield whole
    used_bytes = whole.plan.ledger.used_bytes(remote[0].id)
    choosable_bytes = model.expert_bytes or model.weight_bytes // 2
    measured = _measure(engine_args(whole.plan, model, one))
    for name, left_out in (("most", 0.2), ("half", 0.55), ("few", 0.9)):
        machine = _machine(remote[:1], free_bytes=used_bytes - int(choosable_bytes * left_out))
        yield settled(f"{name} experts on one device", model, machine, strategy, measured)
    yield from _plans_of_two(model, remote)
    copied = replace(strategy, load_mode=LoadMode.COPY, hierarchy=(Tier.RAM,))
    yield settled("copied to the host", model, one, copied, None)
    mapped = replace(strategy, hierarchy=(Tier.VRAM, Tier.SSD))
    small = _machine(remote[:1], free_bytes=used_bytes - choosable_bytes // 2)
    yield settled("the other experts on SSD", model, small, mapped, measured)


def _plans_of_two(model: Model, remote: tuple[EngineDeviceRef, ...]) -> Iterator[Planned]:
    """Yield plans that one device is too small for, with all, some and none of the experts.

    How many layers keep their experts on the host is asked for: with several devices the engine
    pipelines batches as long as there is no override, which costs several times the compute
    buffers, so that a plan found by size alone would hardly settle.
    """
    choices = [("all on two devices", 0)]
    if model.is_sparse:
        choices += [("two devices", 2), ("two devices, experts on the host", 99)]
    for name, layers in choices:
        strategy = replace(
            exact_strategy(), cpu_expert_layers=min(layers, len(model.layers)) or None
        )
        alone = settled(name, model, _machine(remote[:1]), strategy, None).plan
        guessed = plan_placement(model, _machine(remote[:1]), strategy)
        weights_bytes = _weight_bytes(guessed, remote[0].id)
        roomy_bytes = guessed.ledger.used_bytes(remote[0].id) - weights_bytes // 4
        roomy = _machine(remote, free_bytes=roomy_bytes)
        first = plan_placement(model, roomy, strategy)
        measured = _measure(engine_args(first, model, roomy))
        alone_bytes = alone.ledger.used_bytes(remote[0].id)
        machine = _machine(remote, free_bytes=int(alone_bytes * TOO_SMALL))
        yield settled(name, model, machine, strategy, measured)


def _weight_bytes(plan: Plan, device: DeviceId) -> int:
    kinds = (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS)
    return sum(plan.ledger.kind_bytes(device, kind) for kind in kinds)


def exact_strategy() -> Strategy:
    """Return the strategy whose arithmetic is that of the reference."""
    return Strategy(
        context_tokens=SETTINGS.context_tokens,
        ubatch_tokens=SETTINGS.ubatch_tokens,
        flash_attention=Toggle.ON,
        extra_buffers=Toggle.OFF,
        load_mode=LoadMode.MMAP,
        threads=SETTINGS.threads,
        gpu_margin_bytes=0,
        host_margin_bytes=0,
    )


def _machine(remote: tuple[EngineDeviceRef, ...], *, free_bytes: int = GIB) -> Machine:
    return Machine(
        gpus=tuple(
            Gpu(
                id=reference.id,
                name="a worker",
                total_bytes=free_bytes,
                free_bytes=free_bytes,
                backend=GpuBackend.RPC,
                engine_name=reference.engine_name,
            )
            for reference in remote
        ),
        host=Host(
            total_bytes=8 * GIB, available_bytes=8 * GIB, swap_free_bytes=0, physical_cores=1
        ),
        storage=Storage(path="/", kind=StorageKind.SSD, free_bytes=GIB),
    )


def settled(
    name: str,
    model: Model,
    machine: Machine,
    strategy: Strategy,
    measured: Measurements | None,
) -> Planned:
    """Return a plan that its own dry run does not change, on a little less memory if need be.

    Compute buffers depend on the placement and the placement on them, so that at some sizes two
    plans call for each other.
    """
    for _ in range(MOST_SIZES):
        plan = plan_placement(model, machine, strategy, measured=measured)
        for _ in range(MOST_DRY_RUNS):
            own = _measure(engine_args(plan, model, machine))
            again = plan_placement(model, machine, strategy, measured=own)
            if again.devices_by_tensor(model) == plan.devices_by_tensor(model):
                return Planned(name=name, plan=again, machine=machine)
            plan = again
        machine = _smaller(machine)
    raise AssertionError(f"{name}: plans call for each other at {MOST_SIZES} sizes of memory")


def _smaller(machine: Machine) -> Machine:
    """Return the machine with less room on its last device.

    On the last alone: between devices of one size the planner evens out what is free, and then
    measured buffers may move a layer back and forth at any size.
    """
    *others, last = machine.gpus
    return replace(
        machine, gpus=(*others, replace(last, free_bytes=last.free_bytes - SIZE_STEP_BYTES))
    )


def _measure(args: EngineArgs) -> Measurements:
    return LlamaEngine(log_sink=None).measure(args)


def carry_out(planned: Planned, model: Model, expected: NDArray[np.float32]) -> PlannedRun:
    """Load as planned and compare what came out."""
    plan, machine = planned.plan, planned.machine
    args = engine_args(plan, model, machine)
    session = LlamaEngine(log_sink=None).load(args)
    logits = run_script(session, SHORT)
    figures = tuple(_figures(plan, args, model, session))
    session.close()
    apart = np.any(logits.view(np.uint32) != expected.view(np.uint32), axis=1)
    return PlannedRun(
        name=planned.name,
        devices=plan.devices,
        layers_on_devices=plan.gpu_layer_count,
        expert_bytes_on_devices=sum(plan.expert_bytes(model, d) for d in plan.devices),
        expert_bytes=model.expert_bytes,
        split_layers=sum(len({d for _, d in layer.experts}) > 1 for layer in plan.layers),
        rows_apart=int(apart.sum()),
        largest_difference=float(np.max(np.abs(logits - expected))),
        figures=figures,
        violations=tuple(str(violation) for violation in audit(plan, model, machine)),
    )


def _figures(plan: Plan, args: EngineArgs, model: Model, session: LlamaSession) -> Iterator[Figure]:
    buffers = session.report.buffers
    predicted = predicted_buffers(args, model)
    for device in (*plan.devices, HOST):
        yield Figure(
            device=device,
            kind="weights as the log names them",
            planned_bytes=_sum(predicted, device, MODEL),
            reported_bytes=_sum(buffers, device, MODEL),
        )
        if is_gpu(device):  # a mapping of the host holds what lies between as well
            yield Figure(
                device=device,
                kind="weights",
                planned_bytes=_weight_bytes(plan, device),
                reported_bytes=_sum(buffers, device, MODEL),
            )
        for charge, kinds in KINDS.items():
            yield Figure(
                device=device,
                kind=charge,
                planned_bytes=plan.ledger.kind_bytes(device, charge),
                reported_bytes=_sum(buffers, device, *kinds),
            )


def _sum(buffers: tuple[BufferReport, ...], device: DeviceId, *kinds: str) -> int:
    return sum(b.size_bytes for b in buffers if b.device == device and b.kind in kinds)


def main(arguments: list[str]) -> None:
    """Print every plan of the model at the first argument; the others are workers."""
    path, *workers = arguments
    expected = plain_logits(Path(path), SETTINGS, SHORT)
    model = read_model(path)
    for planned in plans(model, device_references(tuple(workers))):
        run = carry_out(planned, model, expected)
        sys.stdout.write(json.dumps(to_plain(run)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
