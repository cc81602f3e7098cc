"""Which tensors a layer reads by its choice, on graphs made by hand: what fits, what is refused."""

import ctypes

import pytest

from moerun.engine import abi
from moerun.engine.device_slots import MATRIX_AXIS
from moerun.engine.graph_cuts import Graph, Layer, Place
from moerun.engine.slot_tensors import layer_tensors

OP = abi.Operation
SOFTMAX = 46  # of no interest to the choice
EXPERTS, USED = 8, 2


class Drawing:
    """A graph of one layer, drawn node by node; it keeps the structs alive."""

    def __init__(self) -> None:
        self.graph = Graph()
        self._kept: list[abi.Tensor] = []

    def tensor(self, name: str, *sources: int, op: int = OP.NONE, ne=(1, 1, 1, 1), view=0) -> int:
        tensor = abi.Tensor()
        tensor.name, tensor.op = name.encode(), op
        tensor.ne[:] = ne
        tensor.view_src = view
        for index, source in enumerate(sources):
            tensor.src[index] = source
        self._kept.append(tensor)
        return ctypes.addressof(tensor)

    def node(self, name: str, op: int, *sources: int, view: int = 0, ne=(1, 1, 1, 1)) -> int:
        pointer = self.tensor(name, *sources, op=op, view=view, ne=ne)
        self.graph.order.append(pointer)
        return pointer


class ALayer(Drawing):
    """Layer 3 as `build_moe_ffn` draws it, up to the last node before its experts."""

    def __init__(self, *, chosen: int = SOFTMAX) -> None:
        super().__init__()
        sorted_ = self.node("ffn_moe_argsort-3", chosen, ne=(EXPERTS, 1, 1, 1))
        self.choice = self.node(
            "ffn_moe_topk-3", OP.VIEW, sorted_, view=sorted_, ne=(USED, 1, 1, 1)
        )
        self.cut = self.node("ffn_moe_weights-3", OP.GET_ROWS, sorted_, self.choice)
        self.input = self.tensor("ffn_norm-3")
        place = Place(Layer(3))
        place.choice, place.cut_at = self.choice, self.cut
        self.graph.places[3] = place

    def experts(self, part: str = "up", *, choice: int | None = None) -> int:
        matrix = self.tensor(f"blk.3.ffn_{part}_exps.weight", ne=(32, 32, EXPERTS, 1))
        chosen = self.choice if choice is None else choice
        return self.node(f"ffn_moe_{part}-3", OP.MUL_MAT_ID, matrix, self.input, chosen)

    def look(self, *, is_slotted: bool = False):
        return layer_tensors(self.graph, 3, is_slotted=is_slotted)


def test_matrices_biases_and_scales_are_found():
    layer = ALayer()
    product = layer.experts("up")
    bias = layer.tensor("blk.3.ffn_up_exps.bias", ne=(32, EXPERTS, 1, 1))
    layer.node("ffn_moe_up_biased-3", OP.ADD_ID, product, bias, layer.choice)
    scale = layer.tensor("blk.3.ffn_up_exps.scale", ne=(EXPERTS, 1, 1, 1))
    shape = layer.node("blk.3.ffn_up_exps.scale (reshaped)", OP.RESHAPE, scale, view=scale)
    copies = layer.node("node_9", OP.REPEAT, shape)
    layer.node("node_10", OP.GET_ROWS, copies, layer.choice)
    found = layer.look(is_slotted=True)

    assert found.refusal is None
    assert [(tensor.name, tensor.axis) for tensor in found.tensors] == [
        ("blk.3.ffn_up_exps.weight", MATRIX_AXIS),
        ("blk.3.ffn_up_exps.bias", 1),
        ("blk.3.ffn_up_exps.scale", 0),
    ]
    assert (found.experts_used, found.expert_count) == (USED, EXPERTS)


def test_a_copy_of_the_choice_is_fine_on_the_host_and_not_with_slots():
    layer = ALayer()
    layer.experts(choice=layer.tensor("CPU#ffn_moe_topk-3#0"))

    assert layer.look().refusal is None
    refusal = layer.look(is_slotted=True).refusal
    assert refusal == "its router and its slots are on different devices"


def test_a_choice_that_is_not_heard_is_refused():
    layer = ALayer()
    layer.experts()
    layer.graph.places[3].cut_at = 0
    assert "not heard" in (layer.look().refusal or "")
    assert "not heard" in (layer_tensors(Graph(), 3, is_slotted=True).refusal or "")


def test_a_choice_that_nothing_computes_is_refused():
    layer = ALayer(chosen=OP.NONE)
    layer.experts()
    assert "no result of the graph" in (layer.look().refusal or "")


@pytest.mark.parametrize("op", [OP.MUL_MAT, OP.ADD_ID, SOFTMAX])
def test_whatever_else_reads_the_choice_is_named(op: int):
    layer = ALayer()
    layer.experts()
    layer.node("strange-3", op, layer.choice, layer.input)
    assert layer.look().refusal == "strange-3 reads the choice of its experts after them"


def test_views_of_the_choice_are_followed():
    layer = ALayer()
    layer.experts()
    view = layer.node("ffn_moe_topk-3 (view)", OP.VIEW, layer.choice, view=layer.graph.order[0])
    layer.node("strange-3", SOFTMAX, view)
    assert layer.look().refusal == "strange-3 reads the choice of its experts after them"


def test_weights_of_another_layer_or_an_adapter_are_no_slots():
    for name, refusal in (
        ("blk.4.x", "other-3 reads blk.4.x by the choice, which is none of its weights"),
        ("blk.3.ffn_up_exps.weight.lora_a", "an adapter changes its experts"),
        ("RPC0#blk.3.ffn_up_exps.weight.lora_b#0", "an adapter changes its experts"),
    ):
        layer = ALayer()
        layer.experts()
        other = layer.tensor(name)
        layer.node("other-3", OP.MUL_MAT_ID, other, layer.input, layer.choice)
        assert layer.look().refusal == refusal


def test_experts_that_are_read_whole_are_refused():
    layer = ALayer()
    product = layer.experts()
    matrix = abi.Tensor.from_address(product).src[0]
    layer.node("norm-3", OP.MUL_MAT, matrix, layer.input)
    assert layer.look().refusal == "norm-3 reads its experts, and not by the choice"


def test_tensors_of_different_counts_are_refused():
    layer = ALayer()
    product = layer.experts()
    bias = layer.tensor("blk.3.ffn_up_exps.bias", ne=(32, EXPERTS + 1, 1, 1))
    layer.node("ffn_moe_up_biased-3", OP.ADD_ID, product, bias, layer.choice)
    assert layer.look().refusal == "its tensors are of [8, 9] experts"


def test_a_layer_without_products_is_refused():
    assert ALayer().look().refusal == "nothing is multiplied by its choice"
