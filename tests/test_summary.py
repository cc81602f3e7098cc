"""The sums of plans that a person can add up."""

import pytest

from moerun.machine.description import HOST, SSD
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Pin, Strategy, Tier
from moerun.planning.summary import Verdict, layer_tiers, summarize, tier_of
from moerun.report.console import Page
from moerun.report.plan_view import strip_lines
from tests.builders import GIB, MIB, a_layer, a_machine, a_model

STRATEGY = Strategy(context_tokens=256)


@pytest.mark.parametrize(
    ("gpus", "ram", "hierarchy", "verdict"),
    [
        ([16 * GIB], 64 * GIB, tuple(Tier), Verdict.IN_VRAM),
        ([3 * GIB], 64 * GIB, tuple(Tier), Verdict.IN_VRAM_AND_RAM),
        ([], 64 * GIB, tuple(Tier), Verdict.IN_RAM),
        ([16 * GIB], 64 * GIB, (Tier.RAM, Tier.SSD), Verdict.IN_RAM),
        ([3 * GIB], 5 * GIB, tuple(Tier), Verdict.NEEDS_SSD),
    ],
)
def test_verdicts(gpus, ram, hierarchy, verdict):
    model = a_model(layers=8, expert=256 * MIB)  # 6 GiB of experts
    strategy = Strategy(context_tokens=256, hierarchy=hierarchy)
    sums = summarize(model, plan_placement(model, a_machine(gpus=gpus, ram=ram), strategy))
    assert sums.verdict is verdict
    assert sum(share.size_bytes for share in sums.experts) == model.expert_bytes
    assert sums.full_bytes == sums.memory_bytes - sums.cache_bytes + sums.ssd_bytes
    assert sums.saved_bytes == sums.ssd_bytes - sums.cache_bytes


def test_a_token_reads_the_share_of_the_experts_that_it_uses():
    model = a_model(layers=8, expert=256 * MIB, experts_used=2, expert_count=8)
    sums = summarize(model, plan_placement(model, a_machine(), STRATEGY))
    (share,) = sums.experts
    assert (share.device, share.per_token_bytes) == (HOST, 1536 * MIB)


def test_tiers_of_layers_follow_pins_and_skip_layers_without_experts():
    layers = [a_layer(0, dense=MIB), *(a_layer(i, dense=MIB, experts=(MIB,) * 3) for i in (1, 2))]
    model = a_model(layers=layers)
    pin = Pin(pattern="blk.2.ffn_up_exps.weight", device="ssd", origin="--pin")
    plan = plan_placement(model, a_machine(), Strategy(context_tokens=256, pins=(pin,)))
    assert layer_tiers(model, plan) == ((), (Tier.RAM,), (Tier.RAM, Tier.SSD))
    assert [tier_of(device) for device in (HOST, SSD)] == [Tier.RAM, Tier.SSD]


def test_of_a_dense_model_the_weights_are_shown():
    model = a_model(layers=12, expert=0)
    plan = plan_placement(model, a_machine(gpus=[8 * GIB]), STRATEGY)
    assert set(layer_tiers(model, plan)) == {(Tier.VRAM,)}
    heading, strip = (line.plain for line in strip_lines(model, plan, Page()))
    assert heading == "Weights by layer  V VRAM"
    assert strip == "   0  VVVVVVVVVV VV"
