"""What the user wishes for tensors: pins, layers kept off the GPUs, shares of the experts.

Every wish is kept or refused in words, and the reasons of a plan name it where it decided.
"""

from dataclasses import replace

import pytest

from moerun.errors import PinConflict
from moerun.machine.description import HOST, SSD, DeviceId
from moerun.model.description import ExpertPart, Model
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import ExpertResidency, LoadMode, Pin, Strategy, Tier
from tests.builders import GIB, a_machine, a_model
from tests.planned import FIXED, planned


def pinned(pattern: str, device: str, strategy: Strategy = FIXED) -> Strategy:
    pin = Pin(pattern=pattern, device=device, origin="--pin")
    return replace(strategy, pins=(*strategy.pins, pin))


def test_pins_are_honoured_and_the_rest_is_planned_around_them():
    model = a_model(layers=4)
    machine = a_machine(gpus=[16 * GIB])
    plan = planned(model, machine, pinned("blk.3.ffn_down_exps.*", "cpu"))
    assert plan.layers[3].expert_device(ExpertPart.DOWN) == HOST
    assert plan.layers[3].expert_device(ExpertPart.UP) == plan.devices[0]
    assert {device for _, device in plan.layers[0].experts} == {plan.devices[0]}


def test_a_pinned_dense_tensor_is_an_exception_to_its_layer():
    plan = planned(a_model(), a_machine(gpus=[16 * GIB]), pinned("blk.1.attn_q.weight", "cpu"))
    (exception,) = plan.exceptions
    assert (exception.tensor, exception.device) == ("blk.1.attn_q.weight", HOST)
    assert plan.layers[1].dense == plan.devices[0]


def test_the_first_layers_experts_stay_on_the_cpu_when_counted():
    plan = planned(a_model(), a_machine(gpus=[16 * GIB]), replace(FIXED, cpu_expert_layers=3))
    assert [p.experts[0][1] == HOST for p in plan.layers] == [True, True, True, False]


@pytest.mark.parametrize(
    ("pattern", "device", "said"),
    [
        ("blk.9.*", "cpu", "matches none"),
        ("blk.0.*", "gpu7", "names a device that is not here"),
        ("blk.0.attn_q.weight", "ssd", "every token needs it"),
        ("token_embd.weight", "gpu0", "looks tokens up on the host"),
        ("blk.*", "gpu0", "left there"),
    ],
)
def test_pins_that_cannot_be_honoured_are_refused(pattern: str, device: str, said: str):
    with pytest.raises(PinConflict, match=said):
        plan_placement(
            a_model(layers=8), a_machine(gpus=[2 * GIB], ram=2 * GIB), pinned(pattern, device)
        )


def test_two_pins_that_disagree_are_refused():
    strategy = pinned("blk.0.*", "cpu", pinned("*.ffn_up_exps.*", "gpu0"))
    with pytest.raises(PinConflict, match="keep one of the two"):
        plan_placement(a_model(), a_machine(gpus=[16 * GIB]), strategy)


def test_a_pin_to_a_tier_outside_the_hierarchy_is_refused():
    strategy = pinned("*.ffn_up_exps.*", "ssd", replace(FIXED, hierarchy=(Tier.VRAM, Tier.RAM)))
    with pytest.raises(PinConflict, match="not in the hierarchy"):
        plan_placement(a_model(), a_machine(), strategy)


def test_pins_that_overfill_ram_are_told_from_a_model_that_does_not_fit():
    strategy = pinned("*exps*", "cpu")
    with pytest.raises(PinConflict, match="without the pins it fits"):
        plan_placement(a_model(layers=10), a_machine(ram=2 * GIB), strategy)


def expert_share(plan: Plan, model: Model) -> dict[DeviceId, float]:
    """Return the share of all expert bytes on each device that has any."""
    sizes = {d: plan.expert_bytes(model, d) for d in (*plan.devices, HOST, SSD)}
    return {device: size / model.expert_bytes for device, size in sizes.items() if size}


def residency(vram: float | None, ram: float | None) -> Strategy:
    return replace(FIXED, expert_residency=ExpertResidency(vram_fraction=vram, ram_fraction=ram))


def test_a_share_of_experts_in_vram_is_rounded_down_to_whole_matrices():
    model = a_model(layers=4)
    machine = a_machine(gpus=[16 * GIB])
    gpu = machine.gpus[0].id
    assert expert_share(planned(model, machine, residency(0.5, None)), model)[gpu] == 0.5
    share = expert_share(planned(model, machine, residency(0.55, None)), model)
    assert share[gpu] == 0.5  # 7 parts would be 58 %


def test_a_share_in_ram_leaves_the_rest_on_ssd():
    model = a_model(layers=4)
    plan = planned(model, a_machine(), residency(None, 0.25))
    assert expert_share(plan, model) == {HOST: 0.25, SSD: 0.75}


def test_limits_win_over_a_wanted_share_and_the_real_one_is_told():
    model = a_model(layers=4)
    plan = planned(model, a_machine(gpus=[1 * GIB]), residency(1.0, None))
    (caution,) = [c for c in plan.cautions if c.code == "expert-share"]
    assert caution.message.startswith("100% of the experts were wanted in VRAM")


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (residency(0.8, 0.5), "together more than all"),
        (replace(residency(0.5, None), hierarchy=(Tier.RAM, Tier.SSD)), "leaves vram out"),
        (replace(residency(0.3, 0.3), hierarchy=(Tier.VRAM, Tier.RAM)), "no ssd for the rest"),
        (pinned("*exps*", "gpu0", residency(0.1, None)), "the pins put"),
    ],
)
def test_shares_that_contradict_something_are_refused_with_numbers(strategy: Strategy, said: str):
    with pytest.raises(PinConflict, match=said):
        plan_placement(a_model(), a_machine(gpus=[16 * GIB]), strategy)


def test_a_pin_to_ssd_and_a_load_mode_that_reads_everything_exclude_each_other():
    strategy = pinned("*.ffn_up_exps.*", "ssd", replace(FIXED, load_mode=LoadMode.LOCK))
    with pytest.raises(PinConflict, match="reads the whole file"):
        plan_placement(a_model(), a_machine(), strategy)


def reasons(plan: Plan) -> dict[str, str]:
    """Return why experts are where they are, by the last word of the choice: the device."""
    return {
        decision.chosen.rsplit(" ", 1)[1]: decision.because
        for decision in plan.decisions
        if decision.step == "experts"
    }


def test_reasons_name_the_wish_that_kept_experts_off_a_gpu_with_room():
    model, machine = a_model(layers=8), a_machine(gpus=[16 * GIB])
    said = reasons(planned(model, machine, residency(0.5, None)))
    assert said["gpu0"].startswith("all experts of the layers 4 to 7: ")
    assert said["cpu"] == "expert_residency kept them off the GPUs"
    said = reasons(planned(model, machine, replace(FIXED, cpu_expert_layers=3)))
    assert said["gpu0"].startswith("all experts of the layers 3 to 7: ")
    assert said["cpu"] == "cpu_expert_layers kept them off the GPUs"
    said = reasons(planned(model, machine, pinned("blk.5.ffn_up_exps.*", "cpu")))
    assert said["gpu0"].startswith(
        "all experts of the layers 0 to 4, 6 to 7 and gate and down of layer 5: "
    )
    assert said["cpu"] == "pins put them there"


def test_reasons_name_missing_room_where_that_decided():
    model = a_model(layers=8)
    tight = planned(model, a_machine(gpus=[2 * GIB]))
    assert reasons(tight)["cpu"] == "there is no more room in VRAM for them"
    assert reasons(planned(model, a_machine()))["cpu"] == "no GPU is used"


def test_reasons_on_ssd_tell_a_wish_from_full_memory():
    model = a_model(layers=8)
    said = reasons(planned(model, a_machine(), residency(None, 0.25)))
    assert said["ssd"].startswith("expert_residency allows no more in RAM; ")
    said = reasons(planned(model, a_machine(ram=2 * GIB)))
    assert said["ssd"].startswith("there is no more room in RAM for them; ")
    said = reasons(planned(model, a_machine(), pinned("blk.5.*_exps.*", "ssd")))
    assert said["ssd"].startswith("pins put them there; ")


@pytest.mark.parametrize(
    ("gpu_bytes", "share", "why"),
    [
        (16 * GIB, 0.55, "rounded down to whole matrices"),
        (1 * GIB, 1.0, "there is not room for more"),
        (0, 0.5, "no GPU is used"),
    ],
)
def test_a_share_that_is_not_reached_says_why(gpu_bytes: int, share: float, why: str):
    gpus = [gpu_bytes] if gpu_bytes else []
    plan = planned(a_model(layers=4), a_machine(gpus=gpus), residency(share, None))
    (caution,) = [c for c in plan.cautions if c.code == "expert-share"]
    assert caution.message.endswith(why)


def test_more_layers_kept_off_the_gpus_than_there_are_is_all_of_them():
    plan = planned(
        a_model(layers=4), a_machine(gpus=[16 * GIB]), replace(FIXED, cpu_expert_layers=99)
    )
    (decision,) = [decision for decision in plan.decisions if decision.step == "pins"]
    assert decision.subject == "experts of the first 4 of 4 layers"


def test_wishes_for_experts_of_a_model_without_them_say_that_they_change_nothing():
    model, machine = a_model(layers=4, expert=0), a_machine(gpus=[16 * GIB])
    assert planned(model, machine).cautions == ()
    strategy = replace(residency(0.5, None), cpu_expert_layers=2)
    (caution,) = planned(model, machine, strategy).cautions
    assert caution.code == "no-experts"
    assert caution.message.startswith("expert_residency and cpu_expert_layers change nothing: ")
