"""The engine room on a real card: placement, dry run, and how far the arithmetic is off.

On a card the reference is the processor; kernels differ, so logits are close and not equal.
"""

from pathlib import Path

import numpy
import pytest

from moerun.engine.arguments import EngineDeviceRef, Override
from moerun.engine.devices import list_devices
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import HOST, EngineDeviceKind
from moerun.machine.gpus import device_id_of
from tests.engine.builders import ENGINE, arguments

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

# Of tiny random models, whose logits spread over some units; Q8_0 and Q4_0 weights.
LARGEST_DIFFERENCE = 0.1
EXPERTS = Override(pattern=r"\.ffn_(gate|up|down)_exps\.", device=HOST)
TOKENS = tuple(range(260, 300)) * 4


@pytest.fixture(scope="module")
def card() -> EngineDeviceRef:
    kinds = (EngineDeviceKind.GPU, EngineDeviceKind.INTEGRATED_GPU)
    cards = [device for device in list_devices() if device.kind in kinds]
    if not cards:
        pytest.skip("the engine lists no GPU")
    return EngineDeviceRef(id=device_id_of(cards[0]), engine_name=cards[0].name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "tiny.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=4, width=256, expert_width=128))
    return path


@pytest.mark.parametrize("overrides", [(), (EXPERTS,)])
def test_a_card_computes_what_the_processor_does(
    card: EngineDeviceRef, model: Path, overrides: tuple[Override, ...]
):
    plain = arguments(model)
    placed = arguments(model, devices=(card,), n_gpu_layers=99, overrides=overrides)
    rows = []
    for args in (plain, placed):
        session = ENGINE.load(args)
        rows.append(session.evaluate(TOKENS))
        buffers = session.report.buffers
        session.close()
    assert numpy.abs(rows[0] - rows[1]).max() < LARGEST_DIFFERENCE
    kinds = {(buffer.kind, buffer.device) for buffer in buffers}
    assert {("model", card.id), ("kv", card.id), ("compute", card.id)} <= kinds
    assert None not in {buffer.device for buffer in buffers}


def test_the_dry_run_of_a_card_is_what_a_load_reports(card: EngineDeviceRef, model: Path):
    args = arguments(model, devices=(card,), n_gpu_layers=99, overrides=(EXPERTS,))
    measured = {(b.device, b.kind.value): b.size_bytes for b in ENGINE.measure(args).buffers}
    session = ENGINE.load(args)
    buffers = session.report.buffers
    session.close()
    for kind, charge in (("kv", "kv_cache"), ("compute", "compute")):
        real = sum(b.size_bytes for b in buffers if b.device == card.id and b.kind == kind)
        assert abs(measured[card.id, charge] - real) <= max(0.01 * real, 10_486)
