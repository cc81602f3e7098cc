"""What is foretold of the next router, held against what it chose."""

from pathlib import Path

import pytest

import moerun
from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.experts.layout import expert_layout
from moerun.experts.prediction import open_predictor
from moerun.machine.description import HOST
from moerun.model.gguf_header import read_model
from tests.engine.builders import ENGINE, answer, arguments
from tests.tiny_models import MOE_ARCHITECTURES

pytestmark = pytest.mark.engine

DEMO = Path(moerun.__file__).parent / "data" / "demo" / "demo.gguf"


class Listener:
    """A supplier that supplies nothing, and foretells every layer from the one before."""

    wants_hidden = True
    wants_weights = False

    def __init__(self, path, layout):
        self.path, self.layout = path, layout
        self.streamed = {tensor.name: tensor.layer for tensor in layout.tensors}
        self.expected = None
        self.foretold = self.right = 0

    def attach(self, mapped):
        self.predictor, self.note = open_predictor(
            str(self.path),
            sorted(self.layout.by_layer),
            mapped=mapped,
            resident=self.layout.resident,
        )

    def supply(self, routing):
        if len(routing.rows) > 1:
            return
        if self.expected is not None and self.expected[0] == routing.layer:
            self.foretold += len(self.expected[1])
            self.right += len(set(self.expected[1]) & set(routing.experts))
        assert routing.hidden is not None
        self.expected = self.predictor.predict(
            routing.layer, routing.hidden, self.layout.experts_used
        )

    def supply_layer(self, layer):
        raise AssertionError(f"the choice of layer {layer} was not heard")

    def check(self):
        return

    def close(self):
        return


def listened(path):
    model = read_model(path)
    listener = Listener(path, expert_layout(model, dict.fromkeys(names(model), HOST)))
    session = ENGINE.load(arguments(path), supplier=listener)
    request = GenerationRequest(
        messages=(Message(role="user", content="What is moerun?"),),
        sampling=Sampling(temperature=0),
        maximum_tokens=24,
    )
    answer(session, request)
    session.close()
    chance = model.experts_used / model.expert_count
    return listener, listener.right / listener.foretold, chance


def names(model):
    return [tensor.name for tensor in model.loaded_tensors]


def test_a_trained_models_routers_are_foretold_far_better_than_by_chance():
    listener, accuracy, chance = listened(DEMO)
    assert listener.note is None
    assert listener.foretold > 50
    assert accuracy > 2 * chance, (accuracy, chance)


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_routers_with_other_norms_and_biases_are_foretold_too(tiny_model, architecture):
    listener, accuracy, chance = listened(tiny_model(architecture))
    assert listener.foretold > 10
    assert accuracy > 1.5 * chance, (accuracy, chance)
