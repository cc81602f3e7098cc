"""Slots for experts in a plan: how many, where, what they leave alone, when they are refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from random import Random
from typing import Any

import pytest

from moerun.codec import from_plain, to_plain
from moerun.errors import DoesNotFit, PinConflict
from moerun.machine.description import HOST, Machine, is_gpu
from moerun.model.description import Model, Tensor, TensorRole
from moerun.planning.audit import audit
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger, Plan
from moerun.planning.planner import plan_placement
from moerun.planning.slot_gain import (
    LAYER_S,
    Rates,
    break_even_hit_fraction,
    expected_hit_fraction,
    slots_token_s,
    static_token_s,
)
from moerun.planning.strategy import (
    AllocationPolicy,
    ExpertResidency,
    LoadMode,
    Pin,
    Strategy,
    StreamingMode,
    Toggle,
)
from moerun.planning.summary import summarize
from moerun.report.json_view import plan_document
from tests.builders import GIB, MIB, a_gpu, a_layer, a_machine, a_model
from tests.random_cases import Case, a_case

SLOTS = Strategy(streaming=StreamingMode.SLOTS, gpu_margin_bytes=0, host_margin_bytes=0)


def a_sparse_model(**changes: Any) -> Model:
    """Return 10 layers of 32 experts, two used; one expert of a layer takes 3 x 4 MiB."""
    wishes: dict[str, Any] = {
        "layers": 10,
        "expert": 128 * MIB,
        "experts_used": 2,
        "expert_count": 32,
    } | changes
    return a_model(**wishes)


def slots_of(plan: Plan) -> tuple[int, ...]:
    assert plan.slots is not None
    return tuple(layer.slots for layer in plan.slots.layers)


def sound(model: Model, machine: Machine, strategy: Strategy) -> Plan:
    plan = plan_placement(model, machine, strategy)
    assert audit(plan, model, machine) == ()
    return plan


def test_every_layer_gets_as_many_slots_as_fit_and_the_experts_stay_on_the_host():
    model, machine = a_sparse_model(), a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(model, machine, SLOTS)
    gpu = machine.gpus[0].id
    assert len(set(slots_of(plan))) == 1
    assert len(slots_of(plan)) == 10
    used = plan.ledger.total_bytes(gpu)
    assert used <= 4 * GIB < used + 10 * 12 * MIB  # one more slot in every layer would not fit
    assert plan.ledger.kind_bytes(gpu, ChargeKind.EXPERT_SLOTS) == slots_of(plan)[0] * 120 * MIB
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == model.expert_bytes
    assert plan.expert_bytes(model, gpu) == 0
    assert plan.slots is not None
    assert not plan.slots.is_trial


def test_biases_have_slots_too():
    layers = [
        a_layer(i, dense=10 * MIB, experts=(128 * MIB,) * 3, has_biases=True, expert_count=32)
        for i in range(10)
    ]
    model = a_model(layers=layers, experts_used=2, expert_count=32)
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(model, machine, SLOTS)
    assert plan.slots is not None
    assert plan.slots.layers[0].slot_bytes >= 12 * MIB


def test_repacking_stays_off_and_that_is_said_where_it_was_asked_for():
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(a_sparse_model(), machine, replace(SLOTS, extra_buffers=Toggle.ON))
    assert not plan.extra_buffers
    assert "repacking-off" in {caution.code for caution in plan.cautions}


def test_every_device_holds_slots_of_the_layers_that_it_computes():
    gpus = [a_gpu(0, free=3 * GIB), a_gpu(1, free=4 * GIB)]
    plan = sound(a_sparse_model(), a_machine(gpus=gpus, ram=32 * GIB), SLOTS)
    assert plan.slots is not None
    for layer in plan.slots.layers:
        assert layer.device == plan.layers[layer.layer].dense
    runs = {
        device: {layer.slots for layer in run}
        for device, run in groupby(plan.slots.layers, key=lambda layer: layer.device)
    }
    assert set(runs) == {gpu.id for gpu in gpus}
    assert all(len(counts) == 1 for counts in runs.values())


def test_what_ram_cannot_hold_comes_by_paging_below_the_slots():
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=3 * GIB)
    plan = sound(a_sparse_model(), machine, SLOTS)
    assert plan.slots is not None
    assert plan.load_mode is LoadMode.STREAM
    assert plan.streaming is not None
    assert plan.streaming.mode is StreamingMode.PAGING


def test_a_number_asks_for_slots_by_itself():
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    strategy = replace(SLOTS, streaming=StreamingMode.AUTO, expert_slots=9)
    assert set(slots_of(sound(a_sparse_model(), machine, strategy))) == {9}
    assert sound(a_sparse_model(), machine, replace(strategy, expert_slots=0)).slots is None
    off = sound(a_sparse_model(), machine, replace(strategy, streaming=StreamingMode.OFF))
    assert off.slots is None
    assert "slots-unmet" in {caution.code for caution in off.cautions}


def test_a_number_beyond_all_experts_is_all_of_them():
    machine = a_machine(gpus=[a_gpu(free=24 * GIB)], ram=32 * GIB)
    plan = sound(a_sparse_model(), machine, replace(SLOTS, expert_slots=1000))
    assert set(slots_of(plan)) == {32}
    assert "slots-for-all" in {caution.code for caution in plan.cautions}


def test_too_few_slots_are_refused_with_the_number_that_is_enough():
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    with pytest.raises(PinConflict, match=r"expert_slots is 5 .* uses 2 .* ask for 6 or more"):
        plan_placement(a_sparse_model(), machine, replace(SLOTS, expert_slots=5))
    assert set(slots_of(sound(a_sparse_model(), machine, replace(SLOTS, expert_slots=6)))) == {6}


def test_more_slots_than_fit_are_refused_and_the_way_out_was_tried():
    model, machine = a_sparse_model(), a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    most = slots_of(sound(model, machine, SLOTS))[0]
    fixed = replace(SLOTS, context_tokens=8192)
    assert set(slots_of(sound(model, machine, replace(fixed, expert_slots=most)))) == {most}
    with pytest.raises(
        DoesNotFit, match=rf"{most + 1} slots for experts .* are left on gpu0"
    ) as no:
        plan_placement(model, machine, replace(fixed, expert_slots=most + 1))
    flags = [remedy.flag for remedy in no.value.shortfalls[0].would_fit]  # type: ignore[attr-defined]
    assert "--expert-slots auto" in flags


def test_no_room_for_slots_that_hit_is_refused():
    machine = a_machine(gpus=[a_gpu(free=GIB)], ram=32 * GIB)
    with pytest.raises(DoesNotFit, match="6 slots for experts in each layer") as refusal:
        plan_placement(a_sparse_model(), machine, SLOTS)
    assert "--streaming auto" in (refusal.value.hint or "")


def test_a_share_in_vram_is_met_by_slots_and_rounded_down():
    machine = a_machine(gpus=[a_gpu(free=24 * GIB)], ram=32 * GIB)
    half = replace(SLOTS, expert_residency=ExpertResidency(vram_fraction=0.5))
    plan = sound(a_sparse_model(), machine, half)
    assert set(slots_of(plan)) == {16}
    odd = replace(SLOTS, expert_residency=ExpertResidency(vram_fraction=0.45))
    plan = sound(a_sparse_model(), machine, odd)
    assert set(slots_of(plan)) == {14}
    assert "rounded down to whole slots" in " ".join(caution.message for caution in plan.cautions)
    little = replace(SLOTS, expert_residency=ExpertResidency(vram_fraction=0.1))
    with pytest.raises(PinConflict, match="raise the share to about 19%"):
        plan_placement(a_sparse_model(), machine, little)


@pytest.mark.parametrize(
    ("model", "machine", "reason"),
    [
        (a_model(expert=0), a_machine(gpus=[8 * GIB]), "has no experts"),
        (a_sparse_model(), a_machine(), "there is no GPU"),
        (
            a_sparse_model(),
            a_machine(gpus=[a_gpu(free=20 * GIB, shares_host_memory=True)]),
            "in the host's memory",
        ),
        (a_sparse_model(experts_used=12), a_machine(gpus=[8 * GIB]), "uses 12 of the 32 experts"),
    ],
    ids=["dense", "no GPU", "shared memory", "too many used"],
)
def test_where_no_slots_can_be_the_model_is_placed_without_and_that_is_said(
    model: Model, machine: Machine, reason: str
):
    plan = sound(model, machine, SLOTS)
    assert plan.slots is None
    (caution,) = [caution for caution in plan.cautions if caution.code == "slots-unmet"]
    assert reason in caution.message


def test_layers_that_pins_put_on_a_gpu_or_keep_off_have_no_slots():
    machine = a_machine(gpus=[a_gpu(free=8 * GIB)], ram=32 * GIB)
    pins = (Pin(pattern="blk.3.ffn_up_exps.weight", device="gpu0", origin="--pin"),)
    plan = sound(a_sparse_model(), machine, replace(SLOTS, pins=pins, cpu_expert_layers=2))
    assert plan.slots is not None
    assert {layer.layer for layer in plan.slots.layers} == {2, 4, 5, 6, 7, 8, 9}


def with_rates(machine: Machine, *, device: float, link: float, host: float | None) -> Machine:
    gpus = tuple(
        replace(gpu, memory_bandwidth_bytes_per_s=device, link_bytes_per_s=link)
        for gpu in machine.gpus
    )
    return replace(
        machine, gpus=gpus, host=replace(machine.host, memory_bandwidth_bytes_per_s=host)
    )


FAST_LINK = with_rates(
    a_machine(gpus=[a_gpu(free=3 * GIB)], ram=32 * GIB), device=1e12, link=63e9, host=20e9
)
AUTO = replace(SLOTS, streaming=StreamingMode.AUTO)


def test_unasked_slots_are_a_trial_where_the_rates_say_that_they_win():
    model = a_sparse_model()
    plan = sound(model, FAST_LINK, AUTO)
    assert plan.slots is not None
    assert plan.slots.is_trial
    share = sum(slots_of(plan)) / 320
    assert plan.slots.least_gain_fraction == pytest.approx(share)
    assert any(d.chosen == "on trial" for d in plan.decisions)


@pytest.mark.parametrize(
    ("machine", "strategy", "reason"),
    [
        (
            with_rates(FAST_LINK, device=1e12, link=63e9, host=None),
            AUTO,
            "rate of RAM is not known",
        ),
        (with_rates(FAST_LINK, device=1e12, link=8e9, host=60e9), AUTO, "with whole layers"),
        (
            FAST_LINK,
            replace(AUTO, allocation_policy=AllocationPolicy.CONSERVATIVE),
            "moves nothing after loading",
        ),
        (
            replace(FAST_LINK, host=replace(FAST_LINK.host, available_bytes=3 * GIB)),
            AUTO,
            "SSD",
        ),
    ],
    ids=["unknown rate", "slow link", "conservative", "SSD"],
)
def test_unasked_slots_stay_off_and_the_reason_is_told(
    machine: Machine, strategy: Strategy, reason: str
):
    plan = sound(a_sparse_model(), machine, strategy)
    assert plan.slots is None
    (decision,) = [each for each in plan.decisions if each.step == "slots"]
    assert reason in decision.because
    assert "--streaming slots" in decision.because


def test_nothing_is_said_of_slots_where_all_experts_are_in_vram():
    plan = sound(a_sparse_model(), a_machine(gpus=[24 * GIB]), AUTO)
    assert not [each for each in plan.decisions if each.step == "slots"]


def test_a_plan_from_before_slots_is_still_read_and_one_with_them_comes_back():
    machine = a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(a_sparse_model(), machine, SLOTS)
    plain = json.loads(json.dumps(to_plain(plan)))
    assert from_plain(Plan, plain) == plan
    del plain["slots"], plain["strategy"]["expert_slots"]
    assert from_plain(Plan, plain).slots is None


def test_a_document_and_the_sums_count_the_slots():
    model, machine = a_sparse_model(), a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(model, machine, SLOTS)
    assert plan.slots is not None
    document = plan_document(model, machine, plan)
    assert document["summary"]["slot_bytes"] == plan.slots.total_bytes
    in_vram, in_ram = summarize(model, plan).experts
    assert in_vram.per_token_bytes == model.expert_bytes_per_token
    missed = 1 - plan.slots.expected_hit_fraction
    assert in_ram.per_token_bytes == pytest.approx(model.expert_bytes_per_token * missed, abs=1)


def test_the_audit_sees_slots_that_are_wrong():
    model, machine = a_sparse_model(), a_machine(gpus=[a_gpu(free=4 * GIB)], ram=32 * GIB)
    plan = sound(model, machine, SLOTS)
    assert plan.slots is not None
    layers, gpu = plan.slots.layers, machine.gpus[0].id

    def rules(changed: Plan) -> set[str]:
        return {violation.rule for violation in audit(changed, model, machine)}

    def first(**changes: object) -> Plan:
        changed = (replace(layers[0], **changes), *layers[1:])  # type: ignore[arg-type]
        return replace(plan, slots=replace(plan.slots, layers=changed))  # type: ignore[type-var]

    assert "slots" in rules(replace(plan, slots=None))
    assert "slots" in rules(first(device=HOST))
    assert "slots" in rules(first(slots=5))
    assert "slots" in rules(first(size_bytes=1))
    assert "slots" in rules(replace(plan, extra_buffers=True))
    much = Charge(
        device=gpu, kind=ChargeKind.EXPERT_SLOTS, size_bytes=GIB, confidence=Confidence.DERIVED
    )
    overfull = rules(replace(plan, ledger=Ledger(charges=(*plan.ledger.charges, much))))
    assert overfull >= {"slots", "budget"}


# What holds for every plan with slots: random models, machines and strategies.

SEEDS = range(600)
CHUNKS = [SEEDS[start : start + 150] for start in range(0, len(SEEDS), 150)]
in_chunks = pytest.mark.parametrize(
    "seeds",
    [CHUNKS[0], *(pytest.param(chunk, marks=pytest.mark.many) for chunk in CHUNKS[1:])],
    ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}",
)


def a_slot_case(seed: int) -> Case:
    """Return a case that asks for slots, of a model that uses 4 of 64 experts."""
    case = a_case(seed)
    model = case.model
    if model.is_sparse:
        layers = tuple(
            replace(layer, tensors=tuple(map(_of_64_experts, layer.tensors)))
            for layer in model.layers
        )
        model = replace(model, layers=layers, expert_count=64, experts_used=4)
    strategy = replace(case.strategy, streaming=StreamingMode.SLOTS)
    if seed % 3 == 0:
        strategy = replace(strategy, expert_residency=None)
    return replace(case, model=model, strategy=replace(strategy, context_tokens=4096))


def _of_64_experts(tensor: Tensor) -> Tensor:
    if tensor.role is not TensorRole.EXPERT:
        return tensor
    return replace(tensor, shape=(*tensor.shape[:-1], 64))


def planned(case: Case) -> Plan | None:
    try:
        return plan_placement(case.model, case.machine, case.strategy)
    except (DoesNotFit, PinConflict):
        return None


def slot_plans(seeds: range) -> Iterator[tuple[Case, Plan]]:
    for case in map(a_slot_case, seeds):
        plan = planned(case)
        if plan is not None and plan.slots is not None:
            yield case, plan


def test_many_cases_have_slots():
    assert sum(1 for _ in slot_plans(SEEDS[:150])) > 30


@in_chunks
def test_every_plan_with_slots_passes_its_audit(seeds: range):
    for case, plan in slot_plans(seeds):
        assert audit(plan, case.model, case.machine) == (), f"seed {case.seed}"
        assert plan_placement(case.model, case.machine, case.strategy) == plan, f"seed {case.seed}"


@in_chunks
def test_experts_are_on_gpus_only_by_pins(seeds: range):
    for case, plan in slot_plans(seeds):
        devices = plan.devices_by_tensor(case.model)
        pinned = {exception.tensor for exception in plan.exceptions}
        for tensor in case.model.loaded_tensors:
            if tensor.role is TensorRole.EXPERT and is_gpu(devices[tensor.name]):
                assert tensor.name in pinned or case.strategy.pins, f"seed {case.seed}"


def missed_bytes(case: Case, plan: Plan) -> float:
    """Return the experts that a token does not find in VRAM, by what is expected of slots."""
    assert plan.slots is not None
    count = case.model.expert_count
    hits = sum(
        layer.slot_bytes * count * expected_hit_fraction(layer.slots / count, expert_count=count)
        for layer in plan.slots.layers
    )
    in_vram = sum(plan.ledger.kind_bytes(d, ChargeKind.EXPERT_WEIGHTS) for d in plan.devices)
    return case.model.expert_bytes - in_vram - hits


@in_chunks
def test_more_free_vram_never_takes_slots_or_hits_away(seeds: range):
    for case, before in slot_plans(seeds):
        draw = Random(case.seed)
        index = draw.randrange(len(case.machine.gpus))
        gpu = case.machine.gpus[index]
        more = draw.choice((1, 4096, 50 << 20, 700 << 20, 3 << 30))
        larger = replace(gpu, free_bytes=gpu.free_bytes + more, total_bytes=gpu.total_bytes + more)
        gpus = (*case.machine.gpus[:index], larger, *case.machine.gpus[index + 1 :])
        after = plan_placement(case.model, replace(case.machine, gpus=gpus), case.strategy)
        assert after.slots is not None, f"seed {case.seed}"
        layers = len(case.model.layers)  # hits of a run are cut to whole bytes
        assert missed_bytes(case, after) <= missed_bytes(case, before) + layers, f"seed {case.seed}"


def test_hits_grow_with_what_is_held_and_bend_downwards():
    for count in (64, 128, 512):
        rates = [expected_hit_fraction(held / 100, expert_count=count) for held in range(101)]
        assert rates[0] == 0
        assert rates[-1] == 1
        steps = [after - before for before, after in pairwise(rates)]
        assert min(steps) > 0
        assert all(later <= step + 1e-9 for step, later in pairwise(steps))


def test_the_model_of_the_gain_is_the_sum_that_a_person_would_make():
    rates = Rates(device_bytes_per_s=1000e9, link_bytes_per_s=25e9, host_bytes_per_s=45e9)
    token_bytes = 1.1e9
    static_s = static_token_s(token_bytes, held_fraction=0.3, rates=rates)
    assert static_s == pytest.approx(0.3 * 1.1e-3 + 0.7 * 1.1 / 45)
    slots_s = slots_token_s(token_bytes, hit_fraction=0.8, layers=48, rates=rates)
    assert slots_s == pytest.approx(1.1e-3 + 0.2 * 1.1 * (1 / 25 + 1 / 45) + 48 * LAYER_S)
    even = break_even_hit_fraction(token_bytes, held_fraction=0.3, layers=48, rates=rates)
    assert 0.72 < even < 0.85  # published break-even of uploads over such a link: 0.72 to 0.8
    at_even = slots_token_s(token_bytes, hit_fraction=even, layers=48, rates=rates)
    assert at_even == pytest.approx(static_s)
