"""What the planner does in cases small enough to add up by hand.

Constants that the planner charges for drivers and compute buffers are read from the ledger, never
repeated here.
"""

from dataclasses import replace

import pytest

from moerun.errors import DoesNotFit, PinConflict
from moerun.machine.description import (
    DARWIN,
    HOST,
    SSD,
    WINDOWS,
    Gpu,
    GpuBackend,
)
from moerun.model.description import ExpertPart, Model, TensorRole
from moerun.planning.budgets import WINDOWS_DESKTOP_BYTES, rooms
from moerun.planning.plan import (
    ChargeKind,
    Confidence,
    MeasuredBuffer,
    Measurements,
    Shortfall,
)
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import (
    AllocationPolicy,
    Limit,
    LoadMode,
    Strategy,
    StreamingMode,
    Tier,
    Toggle,
)
from tests.builders import GIB, MIB, a_gpu, a_layer, a_machine, a_model
from tests.planned import FIXED, planned


def overhead(model: Model, strategy: Strategy = FIXED) -> int:
    """Return what a card of its own is charged beside layers and experts, output included."""
    plan = planned(model, a_machine(gpus=[200 * GIB]), strategy)
    gpu = plan.devices[0]
    layers = sum(layer.dense_bytes + layer.expert_bytes for layer in model.layers)
    kv = plan.ledger.kind_bytes(gpu, ChargeKind.KV_CACHE)
    return plan.ledger.total_bytes(gpu) - layers - kv


def staged(model: Model, strategy: Strategy = FIXED) -> int:
    """Return the same where some weights stay on the host."""
    largest = max(t.size_bytes for layer in model.layers for t in layer.tensors)
    return overhead(model, strategy) + largest


def test_everything_goes_to_a_gpu_that_holds_it():
    plan = planned(a_model(layers=4), a_machine(gpus=[16 * GIB]))
    assert plan.devices == ("gpu:0000:00:00.0",)
    assert {placement.dense for placement in plan.layers} == set(plan.devices)
    assert plan.expert_bytes(a_model(layers=4), HOST) == 0
    assert plan.ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS) == 50 * MIB  # the input
    assert plan.ledger.kind_bytes(plan.devices[0], ChargeKind.STAGING) == 0


def test_experts_of_the_last_layers_get_the_room_that_dense_weights_leave():
    model = a_model(layers=4)
    kv = 4 * 4096 * 512 * 2
    room = staged(model) + 4 * 10 * MIB + kv + 2 * 300 * MIB
    plan = planned(model, a_machine(gpus=[room]))
    assert [placement.experts[0][1] == HOST for placement in plan.layers] == [
        True,
        True,
        False,
        False,
    ]
    one_less = planned(model, a_machine(gpus=[room - 1]), replace(FIXED, split_layers=False))
    assert sum(p.experts[0][1] == HOST for p in one_less.layers) == 3


def test_parts_of_one_layer_fill_what_a_whole_layer_cannot():
    model = a_model(layers=4)
    kv = 4 * 4096 * 512 * 2
    room = staged(model) + 4 * 10 * MIB + kv + 500 * MIB
    plan = planned(model, a_machine(gpus=[room]))
    parts = dict(plan.layers[2].experts)
    assert parts[ExpertPart.UP] == parts[ExpertPart.GATE] == plan.devices[0]
    assert parts[ExpertPart.DOWN] == HOST
    whole = planned(model, a_machine(gpus=[room]), replace(FIXED, split_layers=False))
    assert {device for _, device in whole.layers[2].experts} == {HOST}


def test_dense_layers_that_do_not_fit_stay_on_the_cpu_from_the_first_on():
    model = a_model(layers=6, dense=400 * MIB)
    room = staged(model) + 3 * 400 * MIB + 3 * 4 * MIB
    plan = planned(model, a_machine(gpus=[room]))
    assert [placement.dense == HOST for placement in plan.layers] == [True] * 3 + [False] * 3
    assert plan.expert_bytes(model, plan.devices[0]) == 0
    assert plan.output_device == plan.devices[0]


def test_a_dense_model_splits_into_a_cpu_part_and_a_gpu_part():
    model = a_model(layers=4, dense=400 * MIB, expert=0)
    room = staged(model) + 2 * 400 * MIB + 2 * 4 * MIB
    plan = planned(model, a_machine(gpus=[room]))
    assert [placement.dense == HOST for placement in plan.layers] == [True, True, False, False]
    assert plan.ledger.total_bytes(SSD) == 0


def test_the_fewest_gpus_that_hold_everything_are_used():
    model = a_model(layers=20)
    plan = planned(model, a_machine(gpus=[4 * GIB, 16 * GIB, 4 * GIB]))
    assert plan.devices == ("gpu:0000:01:00.0",)
    both = planned(model, a_machine(gpus=[5 * GIB, 5 * GIB]))
    assert len(both.devices) == 2


def test_of_two_gpus_that_would_do_the_faster_is_used():
    cards = [
        replace(a_gpu(i, free=16 * GIB), memory_bandwidth_bytes_per_s=b)
        for i, b in ((0, 3e11), (1, 1e12))
    ]
    assert planned(a_model(), a_machine(gpus=cards)).devices == (cards[1].id,)


def test_a_local_gpu_is_preferred_to_a_remote_one():
    remote = a_gpu(0, free=16 * GIB, backend=GpuBackend.RPC)
    plan = planned(a_model(), a_machine(gpus=[remote, a_gpu(1, free=16 * GIB)]))
    assert plan.devices == ("gpu:0000:01:00.0",)


def test_a_remote_gpu_holds_the_first_layers_and_is_named_in_a_caution():
    remote = a_gpu(1, free=3 * GIB, backend=GpuBackend.RPC)
    plan = planned(a_model(layers=16), a_machine(gpus=[a_gpu(0, free=4 * GIB), remote]))
    assert plan.devices == (remote.id, "gpu:0000:00:00.0")
    assert "remote-device" in {caution.code for caution in plan.cautions}


def test_what_ram_cannot_hold_lies_on_ssd_and_is_a_caution_with_numbers():
    model = a_model(layers=10)
    plan = planned(model, a_machine(ram=2 * GIB), replace(FIXED, streaming=StreamingMode.OFF))
    on_ssd = plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS)
    assert 0 < on_ssd < model.expert_bytes
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == model.expert_bytes - on_ssd
    assert plan.load_mode is LoadMode.MMAP
    assert not plan.extra_buffers
    (caution,) = plan.cautions
    assert caution.code == "host-part-exceeds-ram"
    assert "GiB" in caution.message


def test_without_ram_only_one_tokens_experts_are_held_there():
    model = a_model(layers=10)
    off = StreamingMode.OFF
    strategy = replace(FIXED, hierarchy=(Tier.VRAM, Tier.SSD), streaming=off)
    plan = planned(model, a_machine(ram=8 * GIB), strategy)
    assert plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS) == 0
    assert plan.ledger.kind_bytes(HOST, ChargeKind.STAGING) == model.expert_bytes_per_token


def test_without_vram_no_gpu_is_used():
    strategy = replace(FIXED, hierarchy=(Tier.RAM, Tier.SSD))
    plan = planned(a_model(), a_machine(gpus=[16 * GIB]), strategy)
    assert plan.devices == ()


def test_without_ssd_experts_that_do_not_fit_are_refused_with_checked_remedies():
    model = a_model(layers=10)
    strategy = replace(FIXED, hierarchy=(Tier.VRAM, Tier.RAM))
    with pytest.raises(DoesNotFit) as refusal:
        plan_placement(model, a_machine(ram=2 * GIB), strategy)
    (shortfall,) = refusal.value.shortfalls
    assert isinstance(shortfall, Shortfall)
    assert shortfall.needed_bytes > shortfall.available_bytes
    assert [remedy.flag for remedy in shortfall.would_fit] == ["--hierarchy vram,ram,ssd"]
    assert "--hierarchy vram,ram,ssd" in str(refusal.value.hint)


def test_a_dense_part_larger_than_ram_is_refused_and_a_shorter_context_offered():
    model = a_model(layers=4, dense=200 * MIB, kv_values=8192, train_context_tokens=65536)
    strategy = replace(FIXED, context_tokens=65536)
    with pytest.raises(DoesNotFit) as refusal:
        plan_placement(model, a_machine(ram=3 * GIB), strategy)
    (shortfall,) = refusal.value.shortfalls
    assert isinstance(shortfall, Shortfall)
    assert shortfall.largest_charges[0].kind is ChargeKind.KV_CACHE
    flag = shortfall.would_fit[0].flag
    assert flag.startswith("--ctx ")
    smaller = replace(strategy, context_tokens=int(flag.removeprefix("--ctx ")))
    assert planned(model, a_machine(ram=3 * GIB), smaller)


def test_no_remedy_is_offered_when_none_would_help():
    with pytest.raises(DoesNotFit) as refusal:
        plan_placement(a_model(layers=4, dense=2 * GIB), a_machine(ram=2 * GIB), FIXED)
    (shortfall,) = refusal.value.shortfalls
    assert isinstance(shortfall, Shortfall)
    assert shortfall.would_fit == ()
    assert "more memory" in str(refusal.value.hint)


def test_host_weights_are_copied_when_they_fit_one_and_a_half_times():
    model = a_model(layers=4)
    plenty = planned(model, a_machine(ram=8 * GIB))
    assert plenty.load_mode is LoadMode.COPY
    assert plenty.extra_buffers
    used = plenty.ledger.used_bytes(HOST)
    assert planned(model, a_machine(ram=used * 3 // 2 + 1)).load_mode is LoadMode.COPY
    tight = planned(model, a_machine(ram=used * 3 // 2 - MIB))
    assert tight.load_mode is LoadMode.MMAP
    assert not tight.extra_buffers


def test_load_mode_and_repacking_follow_what_was_asked():
    strategy = replace(FIXED, load_mode=LoadMode.LOCK, extra_buffers=Toggle.ON)
    plan = planned(a_model(), a_machine(), strategy)
    assert (plan.load_mode, plan.extra_buffers) == (LoadMode.LOCK, True)


def test_repacking_stays_off_where_experts_lie_on_ssd_and_says_so():
    strategy = replace(FIXED, extra_buffers=Toggle.ON)
    plan = planned(a_model(layers=10), a_machine(ram=2 * GIB), strategy)
    assert not plan.extra_buffers
    assert "repacking-off" in {caution.code for caution in plan.cautions}


def test_a_copy_that_was_asked_for_and_does_not_fit_is_refused():
    strategy = replace(FIXED, load_mode=LoadMode.COPY)
    with pytest.raises(DoesNotFit) as refusal:
        plan_placement(a_model(layers=10), a_machine(ram=2 * GIB), strategy)
    assert "--load-mode mmap" in str(refusal.value.hint)


def test_threads_are_physical_cores_unless_set():
    assert planned(a_model(), a_machine(cores=6)).threads == 6
    assert planned(a_model(), a_machine(cores=6), replace(FIXED, threads=2)).threads == 2


def test_limits_bound_gpus_one_by_one_or_all_alike():
    machine = a_machine(gpus=[16 * GIB, 16 * GIB])
    each = rooms(machine, replace(FIXED, vram_limit=(Limit(limit_bytes=8 * GIB),)))
    assert [room.budget.budget_bytes for room in each.gpus] == [8 * GIB, 8 * GIB]
    listed = (Limit(limit_bytes=4 * GIB), Limit(of_total_fraction=0.5))
    own = rooms(machine, replace(FIXED, vram_limit=listed))
    assert [room.budget.budget_bytes for room in own.gpus] == [4 * GIB, 8 * GIB]


def test_what_a_limit_leaves_free_counts_towards_the_margin():
    machine = a_machine(gpus=[16 * GIB])
    limited = replace(FIXED, gpu_margin_bytes=GIB, vram_limit=(Limit(limit_bytes=8 * GIB),))
    assert rooms(machine, limited).gpus[0].usable_bytes == 8 * GIB
    close = replace(limited, vram_limit=(Limit(limit_bytes=15 * GIB + 512 * MIB),))
    assert rooms(machine, close).gpus[0].usable_bytes == 15 * GIB


def test_a_conservative_policy_keeps_larger_margins():
    strategy = Strategy(allocation_policy=AllocationPolicy.CONSERVATIVE)
    machine = a_machine(gpus=[16 * GIB])
    careful, normal = rooms(machine, strategy), rooms(machine, Strategy())
    assert careful.gpus[0].margin_bytes > normal.gpus[0].margin_bytes
    assert careful.host.margin_bytes > normal.host.margin_bytes


def test_windows_keeps_a_reserve_on_the_first_card():
    machine = a_machine(gpus=[16 * GIB, 16 * GIB], system=WINDOWS)
    first, second = rooms(machine, FIXED).gpus
    assert first.margin_bytes == WINDOWS_DESKTOP_BYTES
    assert second.margin_bytes == 0


def test_shared_memory_is_one_pool():
    shared = a_gpu(
        free=6 * GIB,
        total=8 * GIB,
        backend=GpuBackend.METAL,
        shares_host_memory=True,
        working_set_limit=6 * GIB,
    )
    model = a_model(layers=30)
    machine = a_machine(gpus=[shared], ram=8 * GIB, system=DARWIN)
    plan = planned(model, machine)
    both = plan.ledger.total_bytes(shared.id) + plan.ledger.total_bytes(HOST)
    assert 5 * GIB < both <= 6 * GIB
    assert plan.ledger.total_bytes(SSD) > 0
    assert plan.load_mode is LoadMode.MMAP


def test_a_gpu_inside_the_processor_is_left_out_beside_a_card():
    inside = a_gpu(0, free=8 * GIB, backend=GpuBackend.VULKAN, shares_host_memory=True)
    plan = planned(a_model(), a_machine(gpus=[inside, a_gpu(1, free=2 * GIB)]))
    assert plan.devices == ("gpu:0000:01:00.0",)


def test_a_mac_works_together_with_a_remote_device():
    shared = a_gpu(
        0,
        free=4 * GIB,
        total=8 * GIB,
        backend=GpuBackend.METAL,
        shares_host_memory=True,
        working_set_limit=4 * GIB,
    )
    worker = a_gpu(1, free=3 * GIB, backend=GpuBackend.RPC)
    plan = planned(a_model(layers=18), a_machine(gpus=[shared, worker], ram=8 * GIB))
    assert set(plan.devices) == {shared.id, worker.id}


def test_a_tied_output_is_charged_once_more_on_the_gpu_and_not_on_the_host():
    model = a_model(is_tied=True, input_bytes=100 * MIB)
    on_gpu = planned(model, a_machine(gpus=[16 * GIB]))
    assert on_gpu.ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS) == 100 * MIB
    assert on_gpu.ledger.kind_bytes(on_gpu.devices[0], ChargeKind.DENSE_WEIGHTS) == 141 * MIB
    on_host = planned(model, a_machine())
    assert on_host.ledger.kind_bytes(HOST, ChargeKind.DENSE_WEIGHTS) == 141 * MIB


def test_what_the_engine_measured_replaces_the_formula_for_that_context():
    model, machine = a_model(), a_machine(gpus=[16 * GIB])
    gpu = machine.gpus[0].id
    measured = Measurements(
        context_tokens=4096,
        ubatch_tokens=512,
        buffers=(MeasuredBuffer(device=gpu, kind=ChargeKind.COMPUTE, size_bytes=123 * MIB),),
    )
    plan = plan_placement(model, machine, FIXED, measured=measured)
    assert plan.ledger.kind_bytes(gpu, ChargeKind.COMPUTE) == 123 * MIB
    (charge,) = [c for c in plan.ledger.charges if c.device == gpu and c.kind is ChargeKind.COMPUTE]
    assert charge.confidence is Confidence.MEASURED
    for strategy in (replace(FIXED, context_tokens=512), replace(FIXED, ubatch_tokens=64)):
        other = plan_placement(model, machine, strategy, measured=measured)
        assert other.ledger.kind_bytes(gpu, ChargeKind.COMPUTE) != 123 * MIB


def test_quantized_values_switch_flash_attention_on_or_are_refused_without():
    strategy = replace(FIXED, kv_encoding_v="Q8_0")
    assert planned(a_model(), a_machine(), strategy).flash_attention is Toggle.ON
    with pytest.raises(PinConflict, match="need flash attention"):
        plan_placement(a_model(), a_machine(), replace(strategy, flash_attention=Toggle.OFF))


def test_a_kv_encoding_that_does_not_divide_the_rows_is_refused_in_words():
    model = a_model(layers=[a_layer(0, dense=MIB, kv_values=20)])
    with pytest.raises(PinConflict, match="does not suit this model"):
        plan_placement(model, a_machine(), replace(FIXED, kv_encoding_k="Q8_0"))


def test_every_step_gives_a_decision_and_the_choices_have_numbers():
    model, machine = a_model(layers=20), a_machine(gpus=[4 * GIB], ram=3 * GIB)
    plan = planned(model, machine, Strategy(gpu_margin_bytes=0, host_margin_bytes=0))
    steps = [decision.step for decision in plan.decisions]
    assert list(dict.fromkeys(steps)) == [
        "budgets",
        "devices",
        "dense",
        "experts",
        "slots",
        "context",
        "loading",
        "streaming",
    ]
    assert all(decision.because for decision in plan.decisions)
    assert sum("GiB" in decision.chosen for decision in plan.decisions) > 4


def test_shared_tensors_have_places_by_role():
    plan = planned(a_model(), a_machine(gpus=[16 * GIB]))
    shared = dict(plan.shared)
    assert shared[TensorRole.INPUT] == HOST
    assert shared[TensorRole.NORM] == shared[TensorRole.OUTPUT] == plan.devices[0]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [((), Toggle.ON), ((16 * GIB,), Toggle.AUTO)],
    ids=["no GPU", "a GPU"],
)
def test_flash_attention_depends_on_no_placement_where_processors_compute(gpus, expected):
    plan = planned(a_model(layers=2), a_machine(gpus=list(gpus)))
    assert plan.flash_attention is expected


@pytest.mark.parametrize(
    ("total", "policy", "margin"),
    [
        (64 * GIB, AllocationPolicy.ADAPTIVE, 2 * GIB),
        (64 * GIB, AllocationPolicy.CONSERVATIVE, 4 * GIB),
        (2 * GIB, AllocationPolicy.ADAPTIVE, GIB // 4),
        (2 * GIB, AllocationPolicy.CONSERVATIVE, GIB // 4),
    ],
)
def test_a_small_host_keeps_no_more_than_an_eighth_free(total, policy, margin):
    assert Strategy(allocation_policy=policy).host_margin_of(total) == margin
    assert Strategy(host_margin_bytes=7).host_margin_of(total) == 7


def test_a_driver_takes_host_memory_and_a_worker_needs_none():
    model = a_model(layers=4)

    def program_bytes(*gpus: Gpu) -> int:
        plan = planned(model, a_machine(gpus=gpus))
        assert len(plan.devices) == len(gpus)
        return plan.ledger.kind_bytes(HOST, ChargeKind.RUNTIME)

    alone = program_bytes()
    assert alone > 0
    assert program_bytes(a_gpu(free=8 * GIB, backend=GpuBackend.RPC)) == alone
    assert program_bytes(a_gpu(free=8 * GIB)) > alone
