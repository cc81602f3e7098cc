"""Golden plans: cases as JSON, each with a real model, a machine and a strategy.

A case names `model` (tests/fixtures/models), `machine` (tests/fixtures/machines), the fields of
`strategy` that differ from the defaults, and `never`: labels of devices, or of tiers for experts
(`experts:ssd`), that must not be used whatever the rewritten part says. `plan` or `refused` is
written by `make golden`.

Knows: how a case is read, run and summarised.
Does not know: whether the outcome is wise; a person looks at the difference.
"""

import json
from collections import Counter
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from moerun.codec import from_plain, to_plain
from moerun.engine.arguments import engine_args, simulate
from moerun.errors import DoesNotFit, PinConflict
from moerun.machine.description import HOST, SSD, Machine
from moerun.machine.document import read_machine
from moerun.model.description import Model
from moerun.planning.audit import audit
from moerun.planning.plan import LayerPlacement, Plan, Shortfall
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from tests.real_shapes import real_model

FOLDER = Path(__file__).parent / "plans"
MACHINES = Path(__file__).parent.parent / "fixtures" / "machines"


def read_case(path: Path) -> dict[str, Any]:
    """Return a case as written."""
    case: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return case


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """Return the `plan` or `refused` part that the planner gives for a case, after its audit."""
    model, machine = real_model(case["model"]), machine_of(case["machine"])
    strategy = from_plain(Strategy, {**to_plain(Strategy()), **case.get("strategy", {})})
    try:
        plan = plan_placement(model, machine, strategy)
    except (DoesNotFit, PinConflict) as refusal:
        return {"refused": _refused(refusal)}
    violations = audit(plan, model, machine)
    assert violations == (), violations
    _check_closed_loop(plan, model, machine)
    return {"plan": _summary(plan, model, machine)}


@cache
def machine_of(name: str) -> Machine:
    """Return a machine of the fixtures."""
    return read_machine(MACHINES / f"{name}.json")


def touched(plan: dict[str, Any]) -> set[str]:
    """Return what a summarised plan uses, in the words of `never`."""
    devices = {label for label, kinds in plan["bytes"].items() if kinds}
    experts = {
        f"experts:{label}" for label, kinds in plan["bytes"].items() if kinds.get("expert_weights")
    }
    layers = {f"layers:{run.rsplit(' ', 1)[1]}" for run in plan["layers"]}
    return devices | experts | layers


def _refused(refusal: DoesNotFit | PinConflict) -> dict[str, Any]:
    said: dict[str, Any] = {"error": type(refusal).__name__, "message": refusal.message}
    if isinstance(refusal, DoesNotFit):
        said["would_fit"] = [
            remedy.flag
            for shortfall in refusal.shortfalls
            if isinstance(shortfall, Shortfall)
            for remedy in shortfall.would_fit
        ]
    return said


def _check_closed_loop(plan: Plan, model: Model, machine: Machine) -> None:
    placed = simulate(engine_args(plan, model, machine), model)
    for name, device in plan.devices_by_tensor(model).items():
        assert placed[name] == (HOST if device == SSD else device), name


def _summary(plan: Plan, model: Model, machine: Machine) -> dict[str, Any]:
    args = engine_args(plan, model, machine)
    rung = plan.next_rung
    return {
        "context_tokens": plan.context_tokens,
        "devices": [machine.label(device) for device in plan.devices],
        "layers": _runs(plan.layers, machine),
        "experts": _expert_runs(plan.layers, machine),
        "bytes": {
            machine.label(device): {str(kind): size for kind, size in plan.ledger.by_kind(device)}
            for device in (*plan.devices, HOST, SSD)
        },
        "gpu_expert_percent": round(
            100
            * sum(plan.expert_bytes(model, device) for device in plan.devices)
            / max(1, model.expert_bytes),
            1,
        ),
        "load_mode": str(plan.load_mode),
        "extra_buffers": plan.extra_buffers,
        "streaming": _streaming(plan),
        **_slots(plan, machine),
        "engine": {
            "n_gpu_layers": args.n_gpu_layers,
            "tensor_split": list(args.tensor_split),
            "overrides": [
                f"{override.pattern}={machine.label(override.device)}"
                for override in args.overrides
            ],
        },
        "next_rung": None if rung is None else to_plain(rung),
        "cautions": [caution.code for caution in plan.cautions],
    }


def _streaming(plan: Plan) -> dict[str, Any] | None:
    if plan.streaming is None:
        return None
    return {
        "mode": str(plan.streaming.mode),
        "cache_percent": round(100 * plan.streaming.held_fraction, 1),
        "minimum_bytes": plan.streaming.minimum_bytes,
    }


def _slots(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Return `60 of layers 0-47 on gpu0` for each device with slots; nothing without any."""
    if plan.slots is None:
        return {}
    runs = []
    for (device, slots), run in groupby(plan.slots.layers, key=lambda s: (s.device, s.slots)):
        numbers = [layer.layer for layer in run]
        runs.append(f"{slots} of layers {numbers[0]}-{numbers[-1]} on {machine.label(device)}")
    return {
        "slots": runs,
        "slot_hit_percent": round(100 * plan.slots.expected_hit_fraction, 1),
        "slots_on_trial": plan.slots.is_trial,
    }


def _runs(layers: tuple[LayerPlacement, ...], machine: Machine) -> list[str]:
    """Return `0-22 gpu0` for each run of layers with their dense part on one device."""
    found = []
    for device, run in groupby(layers, key=lambda placement: placement.dense):
        numbers = [placement.layer for placement in run]
        found.append(f"{numbers[0]}-{numbers[-1]} {machine.label(device)}")
    return found


def _expert_runs(layers: tuple[LayerPlacement, ...], machine: Machine) -> list[str]:
    """Return `0-22 cpu`, or the parts where one layer lies on several devices."""
    found = []
    for experts, run in groupby(layers, key=lambda placement: placement.experts):
        numbers = [placement.layer for placement in run]
        counts = Counter(device for _, device in experts)
        if not experts:
            where = "none"
        elif len(counts) == 1:
            where = machine.label(experts[0][1])
        else:
            where = " ".join(f"{part}:{machine.label(device)}" for part, device in experts)
        found.append(f"{numbers[0]}-{numbers[-1]} {where}")
    return found
