"""Which quantization is recommended, on machines and models of round numbers."""

from dataclasses import replace

import pytest

from moerun.machine.description import Machine
from moerun.model.description import Model
from moerun.planning.advice import Advice, advise, labels_worth_planning
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy, Tier
from moerun.planning.summary import Verdict, summarize
from tests.builders import GIB, a_machine, a_model

BITS = {"BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q4_K_M": 4.9, "IQ4_XS": 4.3, "Q3_K_M": 3.9,
        "IQ3_XXS": 3.1, "Q2_K": 2.9, "IQ1_M": 1.8}  # fmt: skip
PARAMETERS = 16 << 30  # so that bits become GiB by halves: Q8_0 takes 17 GiB, Q4_K_M 9.8


def a_quantization(label: str) -> Model:
    """Return a model of 32 layers whose weights take the bits of a label for each parameter."""
    weights = BITS[label] / 8 * PARAMETERS
    model = a_model(layers=32, expert=int(weights / 97), dense=int(weights / 97 / 32), kv_values=64)
    held = sum(tensor.size_bytes for tensor in model.tensors)
    return replace(model, quantization=label, parameter_count=int(8 * held / BITS[label]))


def advice_on(machine: Machine, *labels: str, hierarchy: tuple[Tier, ...] = tuple(Tier)) -> Advice:
    models = tuple(map(a_quantization, labels or BITS))
    strategy = replace(Strategy(), hierarchy=hierarchy)
    return advise(models, machine, strategy, usual="Q4_K_M")


@pytest.mark.parametrize(
    ("machine", "recommended", "says"),
    [
        (a_machine(gpus=[80 * GIB]), "Q8_0", "all of it lies in VRAM, with 8.5 bits"),
        (a_machine(gpus=[16 * GIB]), "Q6_K", "(6.6) that lie in VRAM whole; Q8_0 would leave"),
        (a_machine(gpus=[10 * GIB]), "IQ4_XS", "(4.3) that lie in VRAM whole; Q4_K_M would leave"),
        (a_machine(gpus=[4 * GIB]), "Q4_K_M", "lie in memory, with 3."),
        (a_machine(), "Q4_K_M", "none of it in VRAM; more bits would make each token read more"),
        (a_machine(ram=11 * GIB), "IQ4_XS", "the most of 4 bits or more that memory holds"),
        (a_machine(ram=10 * GIB), "IQ4_XS", "but for 22.1 MiB that a token reads from the SSD"),
        (a_machine(ram=8 * GIB), "IQ3_XXS", "IQ4_XS would read"),
        (a_machine(ram=4 * GIB), "IQ3_XXS", "of those with 3 or more it reads the least"),
    ],
)
def test_what_suits_a_machine(machine: Machine, recommended: str, says: str):
    advice = advice_on(machine)
    assert (advice.recommended, says in advice.because) == (recommended, True), advice.because
    assert [option.quantization for option in advice.options] == list(BITS)
    assert advice.differs == (recommended != "Q4_K_M")


def test_options_are_what_the_planner_says_of_each():
    machine = a_machine(gpus=[11 * GIB], ram=16 * GIB)
    advice = advice_on(machine)
    for option in advice.options:
        model = a_quantization(option.quantization)
        sums = summarize(model, plan_placement(model, machine, Strategy()))
        assert option.verdict is sums.verdict
        assert (option.vram_bytes, option.ssd_bytes) == (sums.vram_bytes, sums.ssd_bytes)
        assert option.bits_per_weight == pytest.approx(BITS[option.quantization], rel=0.01)


def test_nothing_is_recommended_where_nothing_can_be_placed():
    hierarchy = (Tier.VRAM, Tier.RAM)
    advice = advice_on(a_machine(ram=3 * GIB), hierarchy=hierarchy)
    assert advice.recommended is None
    assert not advice.differs
    assert all(option.refusal for option in advice.options)
    partly = advice_on(a_machine(ram=11 * GIB), hierarchy=hierarchy)
    assert partly.recommended == "IQ4_XS"
    assert [bool(option.refusal) for option in partly.options[:4]] == [True] * 4


def test_a_single_quantization_is_taken_as_it_is():
    assert "the only one" in advice_on(a_machine(ram=7 * GIB), "Q4_K_M").because
    assert "more bits" not in advice_on(a_machine(), "Q4_K_M").because
    assert "all of it lies in VRAM" in advice_on(a_machine(gpus=[80 * GIB]), "Q4_K_M").because


def test_a_file_of_sixteen_bits_is_taken_only_where_there_is_no_other():
    assert advice_on(a_machine(gpus=[80 * GIB]), "BF16").recommended == "BF16"


@pytest.mark.parametrize(
    ("verdict", "gpus", "expected"),
    [
        (Verdict.IN_VRAM, [12], ("Q6_K",)),
        (Verdict.IN_VRAM, [9], ()),
        (Verdict.IN_VRAM_AND_RAM, [7], ("IQ4_XS", "Q2_K")),
        (Verdict.IN_RAM, [], ()),
        (Verdict.NEEDS_SSD, [1], ("Q2_K",)),
    ],
)
def test_only_what_could_be_recommended_instead_is_planned(verdict, gpus, expected):
    sizes = (("Q8_0", 16), ("Q6_K", 11), ("Q4_K_M", 8), ("IQ4_XS", 7), ("Q2_K", 5))
    machine = a_machine(gpus=gpus, ram=5)
    found = labels_worth_planning(sizes, machine, usual="Q4_K_M", verdict=verdict)
    assert found == expected
