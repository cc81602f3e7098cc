"""Plans whose experts stream: when they do, how large the cache is, and what is refused."""

from dataclasses import replace

import pytest

from moerun.errors import DoesNotFit, PinConflict
from moerun.experts.order import SsdCacheOrder, streaming_order
from moerun.machine.description import HOST, SSD, KernelSettings, Machine, StorageKind
from moerun.model.description import TensorRole
from moerun.planning.plan import ChargeKind, Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import (
    AllocationPolicy,
    ExpertResidency,
    Limit,
    LoadMode,
    Pin,
    Strategy,
    StreamingMode,
    Tier,
)
from tests.builders import GIB, MIB, a_layer, a_machine, a_model, a_tensor, with_offsets
from tests.planned import FIXED, planned

MODEL = a_model(layers=10, experts_used=1, expert_count=64)  # 3,000 MiB of experts
SMALL = a_machine(ram=2 * GIB)


def cache_bytes(plan: Plan) -> int:
    return plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_CACHE)


def test_what_ram_cannot_hold_streams_through_a_cache_of_what_is_left():
    plan = planned(MODEL, SMALL)

    assert plan.load_mode is LoadMode.STREAM
    assert not plan.extra_buffers
    assert plan.streaming is not None
    assert plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS) == MODEL.expert_bytes
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == 0
    assert cache_bytes(plan) == plan.streaming.cache_bytes
    free_bytes = plan.streaming.limit_bytes - plan.ledger.used_bytes(HOST)
    assert 0 <= free_bytes < plan.streaming.limit_bytes // 500  # page tables
    (caution,) = plan.cautions
    assert f"a cache holds {plan.streaming.held_fraction:.0%}" in caution.message


def test_what_fits_does_not_stream_unless_it_was_asked_for():
    machine = a_machine(ram=16 * GIB)
    assert planned(MODEL, machine).streaming is None
    for wish in (
        {"streaming": StreamingMode.CACHE},
        {"streaming": StreamingMode.PAGING},
        {"load_mode": LoadMode.STREAM},
    ):
        plan = planned(MODEL, machine, replace(FIXED, **wish))
        assert plan.streaming is not None
        assert plan.streaming.held_fraction == 1.0
        assert plan.streaming.cache_bytes < 1.01 * plan.streaming.expert_bytes  # whole pages
        assert plan.load_mode is LoadMode.STREAM


def test_a_model_without_experts_never_streams():
    dense = a_model(expert=0)
    plan = planned(dense, a_machine(), replace(FIXED, load_mode=LoadMode.STREAM))
    assert plan.streaming is None
    assert plan.load_mode is not LoadMode.STREAM


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"streaming": StreamingMode.OFF}, "streaming is off"),
        ({"load_mode": LoadMode.MMAP}, "the load mode is mmap"),
        ({"allocation_policy": AllocationPolicy.CONSERVATIVE}, "moves nothing after loading"),
    ],
)
def test_where_nothing_streams_the_caution_says_why(wish: dict, reason: str):
    strategy = replace(FIXED, **wish)
    plan = planned(MODEL, a_machine(ram=3 * GIB), replace(strategy, host_margin_bytes=GIB))

    assert plan.streaming is None
    assert plan.load_mode is LoadMode.MMAP
    assert reason in plan.cautions[0].message


def test_other_systems_map():
    plan = planned(MODEL, a_machine(ram=2 * GIB, system="Darwin"))
    assert plan.streaming is None
    assert "Linux only" in plan.cautions[0].message


@pytest.mark.parametrize(
    ("mode", "kernel", "reason"),
    [
        (StreamingMode.AUTO, {"commit_left_bytes": GIB}, None),  # paging needs no promises
        (StreamingMode.CACHE, {"commit_left_bytes": GIB}, "vm.overcommit_memory is 2"),
        (StreamingMode.CACHE, {"commit_left_bytes": 8 * GIB}, None),
        (StreamingMode.AUTO, {"address_limit_bytes": 5 * GIB}, "ulimit -v unlimited"),
    ],
)
def test_a_kernel_that_hinders_what_was_asked_for_is_said(
    mode: StreamingMode, kernel: dict, reason: str | None
):
    machine = replace(SMALL, kernel=KernelSettings(**kernel))
    plan = planned(MODEL, machine, replace(FIXED, streaming=mode))
    assert (plan.streaming is None) == (reason is not None)
    if reason is not None:
        assert any(reason in caution.message for caution in plan.cautions)


def test_a_cache_below_its_floor_is_left_to_the_system_and_refused_when_it_was_asked_for():
    strategy = replace(FIXED, context_tokens=1024)
    least = plan_placement(MODEL, SMALL, strategy).streaming
    assert least is not None
    used_bytes = least.limit_bytes - least.cache_bytes
    machine = a_machine(ram=used_bytes + least.minimum_bytes - 8 * MIB)

    plan = planned(MODEL, machine, strategy)
    assert plan.streaming is None
    assert "one and a half tokens" in plan.cautions[0].message
    with pytest.raises(DoesNotFit, match="GiB") as refusal:
        plan_placement(MODEL, machine, replace(strategy, streaming=StreamingMode.CACHE))
    (shortfall,) = refusal.value.shortfalls
    assert shortfall.needed_bytes - shortfall.available_bytes < 9 * MIB  # type: ignore[attr-defined]
    assert "--streaming auto" in str(refusal.value.hint)


def test_the_floor_is_a_layer_where_a_batch_needs_all_of_it():
    few = a_model(layers=2, experts_used=1, expert_count=64)
    plan = planned(few, SMALL, replace(FIXED, streaming=StreamingMode.CACHE))
    assert plan.streaming is not None
    assert plan.streaming.minimum_bytes > 300 * MIB
    alone = replace(FIXED, streaming=StreamingMode.CACHE, ubatch_tokens=1)
    one = planned(few, SMALL, alone).streaming
    assert one is not None
    assert one.minimum_bytes < 20 * MIB


def test_a_wanted_share_bounds_the_cache():
    strategy = replace(FIXED, expert_residency=ExpertResidency(ram_fraction=0.2))
    plan = planned(MODEL, SMALL, strategy)
    assert plan.streaming is not None
    assert 0.19 < plan.streaming.held_fraction <= 0.2


def test_without_ram_in_the_hierarchy_only_the_floor_is_held():
    strategy = replace(FIXED, hierarchy=(Tier.VRAM, Tier.SSD))
    plan = planned(MODEL, a_machine(ram=16 * GIB), strategy)
    assert plan.streaming is not None
    assert plan.streaming.cache_bytes == plan.streaming.minimum_bytes
    assert plan.ledger.kind_bytes(HOST, ChargeKind.STAGING) == 0


def test_a_limit_on_ram_bounds_everything():
    strategy = replace(FIXED, ram_limit=Limit(limit_bytes=2 * GIB))
    plan = planned(MODEL, a_machine(ram=64 * GIB), strategy)
    assert plan.streaming is not None
    assert plan.streaming.limit_bytes == 2 * GIB
    assert plan.ledger.used_bytes(HOST) <= 2 * GIB


def test_more_ram_never_makes_a_smaller_cache():
    sizes = [
        plan.streaming.cache_bytes
        for ram in range(1600, 3600, 100)
        if (plan := planned(MODEL, a_machine(ram=ram * MIB))).streaming is not None
    ]
    assert len(sizes) > 10
    assert sizes == sorted(sizes)


def test_the_order_is_what_the_plan_says():
    model = with_offsets(a_model(layers=4, expert=256 * MIB, expert_count=64))
    machine = a_machine(ram=2 * GIB)
    plan = planned(model, machine)
    order = streaming_order(plan, model, machine, state_folder="/state")

    assert order is not None
    assert plan.streaming is not None
    assert order.cache_bytes == plan.streaming.cache_bytes
    assert order.layout.expert_bytes == model.expert_bytes
    assert order.mode is StreamingMode.AUTO
    assert order.minimum_bytes == plan.streaming.minimum_bytes
    assert streaming_order(planned(model, a_machine()), model, machine, state_folder=None) is None


def test_a_conservative_policy_that_is_told_to_stream_does_not_follow_pressure():
    strategy = Strategy(
        streaming=StreamingMode.CACHE, allocation_policy=AllocationPolicy.CONSERVATIVE
    )
    plan = plan_placement(MODEL, a_machine(ram=4 * GIB), strategy)
    assert plan.streaming is not None
    assert not plan.streaming.is_adaptive


def test_a_wish_that_nothing_streams_for_is_said_to_be_unmet():
    wish = replace(FIXED, streaming=StreamingMode.CACHE, preload_experts=4)
    for model, machine, reason in (
        (a_model(expert=0), a_machine(), "test model has no experts"),
        (MODEL, a_machine(system="Darwin"), "Linux only"),
        (a_model(layers=2), a_machine(gpus=[16 * GIB]), "all experts lie in VRAM"),
    ):
        plan = planned(model, machine, wish)
        assert plan.streaming is None
        said = {caution.code: caution.message for caution in plan.cautions}
        assert reason in said["streaming-unmet"]
        assert "preload_experts is 4 and changes nothing" in said["preload-unmet"]
    codes = {caution.code for caution in planned(MODEL, SMALL, wish).cautions}
    assert codes == {"host-part-exceeds-ram"}


def test_a_share_below_the_floor_contradicts_a_cache_that_was_asked_for():
    share = replace(FIXED, expert_residency=ExpertResidency(ram_fraction=0.01))
    with pytest.raises(PinConflict, match=r"leaves 30\.0 MiB of the 2\.9 GiB of experts"):
        planned(MODEL, SMALL, replace(share, streaming=StreamingMode.CACHE))
    plan = planned(MODEL, SMALL, share)
    assert plan.streaming is None
    (caution, *_) = plan.cautions
    assert "expert_residency leaves 30.0 MiB" in caution.message


def test_what_pins_put_on_ssd_streams_beside_what_ram_holds():
    pin = Pin(pattern="blk.[0-4].*_exps.*", device="ssd", origin="--pin")
    model = with_offsets(MODEL)
    machine = a_machine(ram=16 * GIB)
    plan = planned(model, machine, replace(FIXED, pins=(pin,)))
    order = streaming_order(plan, model, machine, state_folder=None)

    assert plan.streaming is not None
    assert plan.streaming.expert_bytes == model.expert_bytes // 2
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == model.expert_bytes // 2
    assert order is not None
    assert sorted(order.layout.by_layer) == [0, 1, 2, 3, 4]
    assert order.layout.expert_bytes == plan.streaming.expert_bytes


def test_biases_of_streamed_experts_lie_in_ram_beside_the_cache():
    layers = [
        a_layer(index, dense=10 * MIB, experts=(100 * MIB,) * 3, has_biases=True)
        for index in range(10)
    ]
    plan = planned(a_model(layers=layers), SMALL, replace(FIXED, ubatch_tokens=1))
    assert plan.streaming is not None
    beside_bytes = plan.ledger.kind_bytes(HOST, ChargeKind.STAGING)
    assert beside_bytes == 3 * 10 * (100 * MIB // 10)
    assert plan.streaming.expert_bytes == 3000 * MIB - beside_bytes


def test_routers_are_copied_to_foretell_experts_unless_they_lie_in_ram_as_they_are():
    def copies_bytes(preload: int | None, *, encoding: str = "F32", gpus: list[int]) -> int:
        router = a_tensor(
            "blk.0.ffn_gate_inp.weight",
            MIB,
            role=TensorRole.ROUTER,
            layer=0,
            shape=(512, 64),
            encoding=encoding,
        )
        first, *others = MODEL.layers
        model = a_model(
            layers=[replace(first, tensors=(*first.tensors, router)), *others],
            experts_used=1,
            expert_count=64,
        )
        strategy = replace(FIXED, preload_experts=preload)
        plan = planned(model, a_machine(gpus=gpus, ram=2 * GIB), strategy)
        assert plan.streaming is not None
        return plan.ledger.kind_bytes(HOST, ChargeKind.STAGING)

    assert copies_bytes(None, gpus=[]) == 0
    assert copies_bytes(None, gpus=[], encoding="F16") == 512 * 64 * 4
    assert copies_bytes(None, gpus=[2 * GIB]) == 512 * 64 * 4
    assert copies_bytes(0, gpus=[2 * GIB]) == 0


def test_the_explanation_says_what_bounds_the_cache_and_whether_it_follows_pressure():
    def said(strategy: Strategy, machine: Machine = SMALL) -> str:
        plan = planned(MODEL, machine, strategy)
        return "; ".join(d.because for d in plan.decisions if d.step == "streaming")

    assert "what is left of 2.0 GiB" in said(FIXED)
    share = replace(FIXED, expert_residency=ExpertResidency(ram_fraction=0.2))
    assert "expert_residency allows no more in RAM" in said(share)
    assert "the hierarchy has no ram" in said(replace(FIXED, hierarchy=(Tier.VRAM, Tier.SSD)))
    asked = replace(FIXED, streaming=StreamingMode.PAGING)
    assert "it has room for all of them" in said(asked, a_machine(ram=16 * GIB))
    assert "it was asked for" in said(asked)
    assert "streaming is off" in said(replace(FIXED, streaming=StreamingMode.OFF))
    assert said(FIXED, a_machine(ram=64 * GIB)) == ""


def test_a_wanted_share_that_a_cache_gives_to_the_page_is_no_caution():
    share = replace(FIXED, expert_residency=ExpertResidency(ram_fraction=0.2))
    assert "expert-share" not in {caution.code for caution in planned(MODEL, SMALL, share).cautions}
    more = replace(FIXED, expert_residency=ExpertResidency(ram_fraction=0.9))
    said = {caution.code: caution.message for caution in planned(MODEL, SMALL, more).cautions}
    assert "90% of the experts were wanted in RAM" in said["expert-share"]
    assert "there is not room for more" in said["expert-share"]


def test_no_floor_is_above_all_experts():
    every = a_model(layers=4, experts_used=8, expert_count=8)
    plan = planned(every, a_machine(ram=16 * GIB), replace(FIXED, streaming=StreamingMode.CACHE))
    assert plan.streaming is not None
    assert plan.streaming.minimum_bytes == plan.streaming.cache_bytes
    assert plan.streaming.minimum_bytes < plan.streaming.cycle_bytes * 1.5


def test_pins_to_ram_count_towards_the_wanted_share():
    pin = Pin(pattern="blk.9.*_exps.*", device="cpu", origin="--pin")
    share = ExpertResidency(ram_fraction=0.3)
    plan = planned(MODEL, SMALL, replace(FIXED, expert_residency=share, pins=(pin,)))
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == 300 * MIB
    assert 599 * MIB < cache_bytes(plan) <= 600 * MIB


def test_what_ram_holds_is_not_taken_by_the_cache_for_pins_to_ssd():
    pin = Pin(pattern="blk.[0-4].*_exps.*", device="ssd", origin="--pin")
    plan = planned(MODEL, a_machine(ram=2500 * MIB), replace(FIXED, pins=(pin,)))
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == 1500 * MIB
    assert 500 * MIB < cache_bytes(plan) < 1000 * MIB


@pytest.mark.parametrize("has_biases", [False, True])
def test_what_a_refusal_says_is_missing_would_be_enough(has_biases: bool):
    sizes = (100 * MIB,) * 3
    layers = [
        a_layer(index, dense=10 * MIB, experts=sizes, has_biases=has_biases) for index in range(10)
    ]
    model = a_model(layers=layers)
    strategy = replace(FIXED, streaming=StreamingMode.CACHE)
    with pytest.raises(DoesNotFit) as refusal:
        planned(model, a_machine(ram=GIB), strategy)
    (shortfall,) = refusal.value.shortfalls
    missing_bytes = shortfall.needed_bytes - shortfall.available_bytes  # type: ignore[attr-defined]

    with pytest.raises(DoesNotFit):
        planned(model, a_machine(ram=GIB + missing_bytes - MIB), strategy)
    tables_bytes = (GIB + missing_bytes) // 500
    enough = planned(model, a_machine(ram=GIB + missing_bytes + tables_bytes), strategy)
    assert enough.streaming is not None


def test_an_ssd_cache_has_experts_read_by_reads_of_our_own():
    strategy = replace(FIXED, ssd_cache_path="/fast", max_swap_size=Limit(limit_bytes=GIB))
    plan = planned(MODEL, SMALL, strategy)
    assert plan.streaming is not None
    assert plan.streaming.mode is StreamingMode.CACHE
    assert [
        (d.chosen, d.because.rsplit("; ", 1)[-1]) for d in plan.decisions if "SSD c" in d.subject
    ] == [("/fast", "at most 1.0 GiB")]
    order = streaming_order(plan, MODEL, SMALL, state_folder=None)
    assert order is not None
    assert order.ssd_cache == SsdCacheOrder(path="/fast", limit=Limit(limit_bytes=GIB))


def test_from_a_network_experts_stream_where_an_ssd_cache_keeps_them():
    storage = replace(SMALL.storage, kind=StorageKind.NETWORK, filesystem="nfs4")
    shared = replace(SMALL, storage=storage)
    assert planned(MODEL, shared).streaming is None
    plan = planned(MODEL, shared, replace(FIXED, ssd_cache_path="/fast"))
    assert plan.streaming is not None
    assert plan.streaming.mode is StreamingMode.CACHE


@pytest.mark.parametrize(
    ("wish", "machine", "told"),
    [
        ({"ssd_cache_path": "/fast"}, a_machine(ram=16 * GIB), "no expert streams"),
        (
            {"ssd_cache_path": "/fast", "streaming": StreamingMode.PAGING},
            SMALL,
            "paging reads through the page cache",
        ),
        ({"max_swap_size": Limit(limit_bytes=GIB)}, SMALL, "ssd_cache_path names none"),
    ],
)
def test_an_ssd_cache_that_changes_nothing_is_said_to(wish, machine: Machine, told: str):
    plan = planned(MODEL, machine, replace(FIXED, **wish))
    assert [caution for caution in plan.cautions if told in caution.message]
