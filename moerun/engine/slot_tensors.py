"""Which tensors of a layer are read by the numbers of its experts, and whether slots can stand in.

When a layer's experts lie in slots, the choice is rewritten from the experts' numbers to those of
their slots, at the last node before the experts. All that reads the choice from there on has to
read slots too: the matrices, the biases that are added by it, and the scales that are gathered by
it. A graph in which anything else reads it is refused, with what that is.

Beliefs: `build_moe_ffn` and `build_lora_mm_id` let MUL_MAT_ID, ADD_ID and GET_ROWS of repeated
scales read the choice, and the weights of the choice are gathered and expanded before the experts -
src/llama-graph.cpp:1555, 2145, 2170-2330; an operation with weights runs where its weights lie, so
that the graph names the weights themselves and no copy - ggml/src/ggml-backend.cpp:955; the nodes
of a view keep their source - ggml/src/ggml-backend.cpp, `ggml_backend_sched_split_graph` @ 0.3.36 -
checked by tests/engine/test_device_slots.py for every architecture of the tests.

Knows: the nodes of a graph that was met and not yet built anew.
Does not know: memory of devices, or which expert is in which slot.
"""

from collections.abc import Iterator
from typing import Final

from moerun.engine import abi
from moerun.engine.device_slots import MATRIX_AXIS, LayerTensors, SlotTensor
from moerun.engine.graph_cuts import Graph, Place
from moerun.engine.graph_tensors import (
    copied_name,
    is_copy,
    name_of,
    operation_of,
    shown_tensor,
    source_of,
)

_VALUES, _ROWS, _BIAS, _CHOICE = 0, 1, 1, 2  # the sources of the operations, by what they are
_BIAS_AXIS, _SCALE_AXIS = 1, 0  # along which their experts are counted
_VIEWS: Final = frozenset({abi.Operation.VIEW, abi.Operation.RESHAPE})
# What an adapter adds to a matrix of experts - src/llama-adapter.cpp @ 0.3.36
_ADAPTER: Final = ".lora_"


class _Refused(Exception):
    """Slots cannot stand in for the experts of a layer."""


def layer_tensors(graph: Graph, layer: int, *, is_slotted: bool) -> LayerTensors:
    """Look at one layer of a graph that was met node by node; `is_slotted` when it reads slots.

    Where it does not, the choice may still be copied to the host on its way to the experts.
    """
    place = graph.places.get(layer)
    try:
        if place is None or not place.cut_at:
            raise _Refused("the choice of its experts is not heard before they are read")
        found = tuple(dict.fromkeys(_readers(graph, place, is_slotted=is_slotted)))
        _check_alone(graph, place, found)
        counts = {abi.Tensor.from_address(t.pointer).ne[t.axis] for t in found}
        if len(counts) != 1:
            raise _Refused(f"its tensors are of {sorted(counts)} experts")
    except _Refused as refused:
        return LayerTensors(layer=layer, refusal=str(refused))
    return LayerTensors(
        layer=layer,
        tensors=found,
        experts_used=abi.Tensor.from_address(place.choice).ne[0],
        expert_count=counts.pop(),
    )


def _readers(graph: Graph, place: Place, *, is_slotted: bool) -> Iterator[SlotTensor]:
    """Yield the tensors that are read by the choice once it is rewritten."""
    storage = shown_tensor(place.choice)
    if abi.Tensor.from_address(storage).op == abi.Operation.NONE:
        raise _Refused("its choice is no result of the graph, and cannot be rewritten")
    for node in graph.order[graph.order.index(place.cut_at) + 1 :]:
        tensor = abi.Tensor.from_address(node)
        for index, source in enumerate(tensor.src):
            if not source or tensor.op in _VIEWS:
                continue
            is_copied = _is_copy_of(source, place.choice)
            if is_copied and is_slotted:
                raise _Refused("its router and its slots are on different devices")
            if is_copied or shown_tensor(source) == storage:
                yield _read_by(graph, node, index, place)


def _read_by(graph: Graph, node: int, index: int, place: Place) -> SlotTensor:
    """Return the tensor that a node reads by the choice, which is its source of that index."""
    operation, name = operation_of(node), name_of(node).decode("utf-8", "replace")
    if operation == abi.Operation.MUL_MAT_ID and index == _CHOICE:
        found = SlotTensor(
            pointer=source_of(node, _VALUES), name=_told(node, _VALUES), axis=MATRIX_AXIS
        )
    elif operation == abi.Operation.ADD_ID and index == _CHOICE:
        bias = shown_tensor(source_of(node, _BIAS))
        found = SlotTensor(pointer=bias, name=_name(bias), axis=_BIAS_AXIS)
    elif operation == abi.Operation.GET_ROWS and index == _ROWS:
        scale = _scale_behind(graph, source_of(node, _VALUES))
        found = SlotTensor(pointer=scale, name=_name(scale), axis=_SCALE_AXIS)
    else:
        raise _Refused(f"{name} reads the choice of its experts after them")
    if _ADAPTER in found.name:
        raise _Refused("an adapter changes its experts")
    if not found.name.startswith(f"blk.{place.layer.number}.") or is_copy(found.name.encode()):
        raise _Refused(f"{name} reads {found.name} by the choice, which is none of its weights")
    return found


def _scale_behind(graph: Graph, pointer: int) -> int:
    """Return the weights that were reshaped, perhaps copied, and repeated for every token."""
    if operation_of(pointer) == abi.Operation.REPEAT:
        pointer = source_of(pointer, _VALUES)
    name = name_of(pointer)
    if is_copy(name):
        views = (node for node in graph.order if name_of(node) == copied_name(name))
        pointer = next(views, pointer)
    return shown_tensor(pointer)


def _check_alone(graph: Graph, place: Place, found: tuple[SlotTensor, ...]) -> None:
    """Raise when anything reads these tensors otherwise: it would find the slots."""
    if not any(tensor.axis == MATRIX_AXIS for tensor in found):
        raise _Refused("nothing is multiplied by its choice")
    pointers = {tensor.pointer for tensor in found}
    storage = shown_tensor(place.choice)
    for node in graph.order:
        tensor = abi.Tensor.from_address(node)
        sources = [pointer or 0 for pointer in tensor.src]
        if pointers.isdisjoint(sources) or tensor.op in _VIEWS:
            continue
        if tensor.op == abi.Operation.REPEAT:
            continue  # of a scale, which is gathered from it
        if not any(
            s and (shown_tensor(s) == storage or _is_copy_of(s, place.choice)) for s in sources
        ):
            raise _Refused(f"{_name(node)} reads its experts, and not by the choice")


def _is_copy_of(source: int, choice: int) -> bool:
    """Whether a source is the scheduler's copy of the choice, or of what it is a part of."""
    name = name_of(source)
    names = (name_of(choice), name_of(shown_tensor(choice)))
    return is_copy(name) and copied_name(name) in names


def _name(pointer: int) -> str:
    return name_of(pointer).decode("utf-8", "replace")


def _told(node: int, index: int) -> str:
    return _name(source_of(node, index))
