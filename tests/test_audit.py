"""The audit finds what is wrong: each rule, on a sound plan that is broken on purpose."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from moerun.machine.description import HOST, SSD, DeviceId
from moerun.planning.audit import audit
from moerun.planning.plan import Charge, ChargeKind, LayerPlacement, Ledger, Plan, TensorPlacement
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import (
    ExpertResidency,
    LoadMode,
    Pin,
    Strategy,
    StreamingMode,
    Tier,
)
from tests.builders import GIB, MIB, a_gpu, a_machine, a_model

MODEL = a_model(layers=8)
MACHINE = a_machine(gpus=[2 * GIB], ram=1600 * MIB)
MARGINS = Strategy(gpu_margin_bytes=64 * MIB, host_margin_bytes=0)
PLAN = plan_placement(MODEL, MACHINE, replace(MARGINS, streaming=StreamingMode.OFF))
GPU = PLAN.devices[0]
GONE = DeviceId("gpu:gone")


def rules(plan: Plan) -> set[str]:
    return {violation.rule for violation in audit(plan, MODEL, MACHINE)}


def with_layer(plan: Plan, index: int, change: Callable[[LayerPlacement], LayerPlacement]) -> Plan:
    layers = tuple(change(p) if p.layer == index else p for p in plan.layers)
    return replace(plan, layers=layers)


def with_charges(plan: Plan, change: Callable[[Charge], Charge | None]) -> Plan:
    changed = (change(charge) for charge in plan.ledger.charges)
    return replace(plan, ledger=Ledger(charges=tuple(c for c in changed if c is not None)))


def larger(kind: ChargeKind, by: int = 1) -> Callable[[Charge], Charge]:
    return lambda c: replace(c, size_bytes=c.size_bytes + by) if c.kind is kind else c


def test_the_plan_to_break_is_sound_and_uses_every_tier():
    assert audit(PLAN, MODEL, MACHINE) == ()
    used = {device for placement in PLAN.layers for _, device in placement.experts}
    assert used == {GPU, HOST, SSD}


BROKEN: dict[str, Plan] = {
    "layers": replace(PLAN, layers=PLAN.layers[:-1]),
    "devices": with_layer(PLAN, 0, lambda p: replace(p, dense=GONE)),
    "parts": with_layer(PLAN, 0, lambda p: replace(p, experts=p.experts[:1])),
    "runs": with_layer(PLAN, 4, lambda p: replace(p, dense=HOST)),
    "output": replace(PLAN, shared=tuple((role, HOST) for role, _ in PLAN.shared)),
    "weights": with_charges(PLAN, larger(ChargeKind.EXPERT_WEIGHTS)),
    "state": with_charges(PLAN, larger(ChargeKind.KV_CACHE)),
    "budget": with_charges(PLAN, larger(ChargeKind.COMPUTE, by=4 * GIB)),
    "margin": with_charges(PLAN, lambda c: None if c.kind is ChargeKind.MARGIN else c),
    "ssd": replace(PLAN, load_mode=LoadMode.COPY),
    "hierarchy": replace(PLAN, strategy=replace(PLAN.strategy, hierarchy=(Tier.VRAM, Tier.RAM))),
    "pins": replace(
        PLAN,
        strategy=replace(
            PLAN.strategy, pins=(Pin(pattern="blk.0.attn_q.weight", device="cpu", origin="test"),)
        ),
    ),
    "cpu_expert_layers": replace(PLAN, strategy=replace(PLAN.strategy, cpu_expert_layers=8)),
    "expert_residency": replace(
        PLAN,
        strategy=replace(PLAN.strategy, expert_residency=ExpertResidency(vram_fraction=0.01)),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_plan_that_breaks_a_rule_is_found_out(rule: str):
    assert rule in rules(BROKEN[rule])


STREAMED = plan_placement(MODEL, MACHINE, replace(MARGINS, streaming=StreamingMode.CACHE))


def test_a_stream_that_breaks_a_rule_is_found_out():
    streaming = STREAMED.streaming
    assert streaming is not None
    assert rules(STREAMED) == set()
    for broken in (
        replace(STREAMED, streaming=None),
        replace(STREAMED, load_mode=LoadMode.MMAP),
        with_charges(STREAMED, larger(ChargeKind.EXPERT_CACHE)),
        replace(STREAMED, streaming=replace(streaming, minimum_bytes=streaming.cache_bytes + 1)),
        replace(STREAMED, streaming=replace(streaming, minimum_bytes=1)),
        replace(STREAMED, streaming=replace(streaming, expert_bytes=streaming.expert_bytes - 1)),
        replace(STREAMED, streaming=replace(streaming, limit_bytes=GIB)),
    ):
        assert "streaming" in rules(broken)


def test_a_missing_charge_is_found_out():
    for kind in (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS, ChargeKind.KV_CACHE):
        first = next(charge for charge in PLAN.ledger.charges if charge.kind is kind)
        broken = with_charges(PLAN, lambda c, first=first: None if c is first else c)  # type: ignore[misc]
        assert rules(broken) & {"weights", "state"}, kind


def test_a_dense_tensor_on_ssd_is_found_out():
    exception = TensorPlacement(tensor="blk.0.attn_q.weight", device=SSD)
    assert "ssd" in rules(replace(PLAN, exceptions=(exception,)))


def test_a_device_that_left_the_machine_is_found_out():
    without = replace(MACHINE, gpus=())
    assert "devices" in {violation.rule for violation in audit(PLAN, MODEL, without)}


def test_an_overdrawn_pool_is_found_out():
    shared = a_gpu(free=8 * GIB, shares_host_memory=True, working_set_limit=8 * GIB)
    machine = a_machine(gpus=[shared], ram=12 * GIB)
    plan = plan_placement(MODEL, machine, Strategy())
    assert audit(plan, MODEL, machine) == ()
    smaller = replace(shared, working_set_limit_bytes=plan.ledger.total_bytes(HOST) + GIB)
    found = audit(plan, MODEL, replace(machine, gpus=(smaller,)))
    assert "pool" in {violation.rule for violation in found}
