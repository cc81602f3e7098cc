"""Whole plans on a real card: what NVML sees of a load, and greedy choices beside the processor's.

Kernels of quantized matrices sum in another order on a card, so logits differ by up to 0.1 (in
units of the logits themselves) and a greedy choice may only differ where two tokens are that near.
"""

from dataclasses import replace

import numpy
import pytest

from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.engine.arguments import engine_args
from moerun.engine.look import look_at_machine
from moerun.machine.description import Machine
from moerun.machine.probe_nvml import read_nvml
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import ExpertResidency, Strategy, Toggle
from tests.engine.builders import ENGINE

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

LARGEST_DIFFERENCE = 0.1
RUNTIME_SLACK_BYTES = 256 << 20  # a driver's context differs from card to card; it is ASSUMED
SHAPE = SyntheticShape(layers=12, width=1024, expert_ff=512, experts=32, experts_used=4)
TOKENS = tuple(300 + index * 7 % 3000 for index in range(96))
WISHES = {
    "all on the card": Strategy(context_tokens=2048),
    "experts on the processor": Strategy(context_tokens=2048, cpu_expert_layers=99),
    "half of the experts": Strategy(
        context_tokens=2048, expert_residency=ExpertResidency(vram_fraction=0.5)
    ),
}


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = look_at_machine(asks_always=True)
    if not machine.gpus:
        pytest.skip("the engine lists no GPU")
    return replace(machine, gpus=machine.gpus[:1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_model(write_synthetic_model(tmp_path_factory.mktemp("gpu") / "model.gguf", SHAPE))


def free_on_card(machine: Machine) -> int:
    address = machine.gpus[0].pci_address
    (card,) = (card for card in read_nvml().cards if card.pci_address == address)
    assert card.free_bytes is not None
    return card.free_bytes


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
def test_the_driver_sees_what_the_plan_charges(machine: Machine, model: Model, wish: Strategy):
    plan: Plan = plan_placement(model, machine, wish)
    args = engine_args(plan, model, machine)
    plan = plan_placement(model, machine, wish, measured=ENGINE.measure(args))
    before = free_on_card(machine)
    session = ENGINE.load(engine_args(plan, model, machine))
    session.evaluate(TOKENS)
    taken = before - free_on_card(machine)
    session.close()
    charged = plan.ledger.used_bytes(machine.gpus[0].id)
    assert abs(taken - charged) <= 0.02 * charged + RUNTIME_SLACK_BYTES


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
def test_greedy_choices_are_the_processors_but_for_near_ties(
    machine: Machine, model: Model, wish: Strategy
):
    rows = []
    for some in (replace(machine, gpus=()), machine):
        plan = plan_placement(model, some, replace(wish, extra_buffers=Toggle.OFF))
        session = ENGINE.load(engine_args(plan, model, some))
        rows.append(session.evaluate(TOKENS))
        session.close()
    reference, found = rows
    assert numpy.abs(reference - found).max() < LARGEST_DIFFERENCE
    chosen = found.argmax(axis=1)
    given_up = reference.max(axis=1) - reference[numpy.arange(len(chosen)), chosen]
    assert given_up.max() <= LARGEST_DIFFERENCE
