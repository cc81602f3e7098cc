"""Slots for experts on a real card: the same logits as with all experts there, and the bytes.

A token's products are computed by the same kernels as where the whole tensors lie on the card, so
that decoded logits differ by no more than such runs do among each other.
"""

from dataclasses import replace

import numpy
import pytest

from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.engine.arguments import EngineArgs, LayerSlots, Override, engine_args
from moerun.engine.decode import Decoder
from moerun.engine.interface import SlotSupplier
from moerun.engine.look import look_at_machine
from moerun.experts.layout import expert_layout
from moerun.machine.description import HOST, Machine
from moerun.machine.probe_nvml import read_nvml
from moerun.model.description import Model
from moerun.model.gguf_header import read_model
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy, Toggle
from tests.engine.builders import ENGINE
from tests.engine.placements import EXPERTS
from tests.engine.slot_suppliers import InSlots

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

LARGEST_DIFFERENCE = 0.1
GRANULE_BYTES = 2 << 20  # what the driver hands out at a time
SHAPE = SyntheticShape(layers=12, width=1024, expert_ff=512, experts=32, experts_used=4)
SLOTS = 12
TOKENS = tuple(300 + index * 7 % 3000 for index in range(64))


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = look_at_machine(asks_always=True)
    if not machine.gpus:
        pytest.skip("the engine lists no GPU")
    return replace(machine, gpus=machine.gpus[:1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_model(write_synthetic_model(tmp_path_factory.mktemp("gpu") / "model.gguf", SHAPE))


@pytest.fixture(scope="module")
def on_card(machine: Machine, model: Model) -> EngineArgs:
    wish = Strategy(context_tokens=2048, extra_buffers=Toggle.OFF)
    return engine_args(plan_placement(model, machine, wish), model, machine)


def with_slots(args: EngineArgs, machine: Machine, model: Model) -> tuple[EngineArgs, InSlots]:
    layout = expert_layout(model, {tensor.name: HOST for tensor in model.loaded_tensors})
    card = machine.gpus[0].id
    wished = tuple(LayerSlots(layer=n, device=card, slots=SLOTS) for n in layout.by_layer)
    overrides = (Override(pattern=EXPERTS, device=HOST),)
    return replace(args, overrides=overrides, expert_slots=wished), InSlots(layout)


def decoded(args: EngineArgs, supplier: InSlots | None) -> numpy.ndarray:
    slots: SlotSupplier | None = supplier
    session = ENGINE.load(args, supplier=supplier, slots=slots)
    decoder = Decoder(session.loaded)
    decoder.evaluate(list(TOKENS[:16]))
    rows = []
    for token in TOKENS[16:]:
        decoder.advance(token)
        rows.append(decoder.logits(-1).copy())
    session.close()
    return numpy.array(rows)


def test_decoded_logits_are_those_of_experts_on_the_card(
    machine: Machine, model: Model, on_card: EngineArgs
):
    expected = decoded(on_card, None)
    args, supplier = with_slots(on_card, machine, model)
    found = decoded(args, supplier)

    assert supplier.refused == ()
    assert supplier.misses > SHAPE.layers * SLOTS, "slots were used anew"
    assert numpy.abs(found - expected).max() < LARGEST_DIFFERENCE


def test_uploads_are_queued_from_pinned_memory(machine: Machine, model: Model, on_card: EngineArgs):
    args, supplier = with_slots(on_card, machine, model)
    session = ENGINE.load(args, supplier=supplier, slots=supplier)
    slots = session.loaded.slots
    assert slots is not None
    assert slots.is_queued
    assert slots.is_staged
    session.close()


def test_the_driver_sees_the_slots_that_were_planned(
    machine: Machine, model: Model, on_card: EngineArgs
):
    args, supplier = with_slots(on_card, machine, model)
    plain = ENGINE.load(replace(args, expert_slots=()))
    before = free_on_card(machine)
    plain.close()
    session = ENGINE.load(args, supplier=supplier, slots=supplier)
    taken = before - free_on_card(machine)
    session.close()
    planned = SHAPE.layers * SLOTS * SHAPE.expert_bytes

    assert abs(taken - planned) <= 0.01 * planned + 2 * GRANULE_BYTES


def free_on_card(machine: Machine) -> int:
    address = machine.gpus[0].pci_address
    (card,) = (card for card in read_nvml().cards if card.pci_address == address)
    assert card.free_bytes is not None
    return card.free_bytes
