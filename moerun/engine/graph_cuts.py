"""Where a graph is cut to hear the router's choice, and what is read there.

A cut belongs at the last node before the layer's first product with experts that stream: there
the choice is made, and a device's fused kernels for it stay whole. In a graph that is met node by
node this is known from graphs met before, by the number of nodes after the choice.

Beliefs: the choice is named `ffn_moe_topk-<layer>` and is a view with the stride of all experts -
`build_moe_ffn`, src/llama-graph.cpp:2126; experts are multiplied by MUL_MAT_ID, whose second
source is the input and whose third is the choice, or what was made of it - src/llama-graph.cpp:
1556; weights of the choice are expanded before the experts - src/llama-graph.cpp:2168; the
router's matrix is `blk.<layer>.ffn_gate_inp.weight` - src/llama-arch.cpp @ 0.3.36 - checked by
tests/engine/test_router_hook.py for every architecture of the tests.

Knows: nodes and their order.
Does not know: the callback, or what a supplier does.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy
import numpy.typing

from moerun.engine import abi
from moerun.engine.graph_tensors import (
    ReadRows,
    TensorRows,
    copied_name,
    is_copy,
    name_of,
    operation_of,
    rows_reader,
    shown_name,
    shown_tensor,
    source_of,
)
from moerun.engine.interface import ExpertSupplier, Routing
from moerun.engine.slot_use import SlotUse
from moerun.errors import EngineRefused

_MATRIX, _INPUT, _CHOICE = 0, 1, 2  # the sources of a product with experts; a plain one has two
_WEIGHTS: Final = b"ffn_moe_weights"
_SUMS: Final = b"ffn_moe_weights_sum"
_FEW: Final = 64  # up to here a dictionary finds the different numbers sooner than sorting does


class Action(Protocol):
    """What is done at a node that is not plain."""

    def before(self, pointer: int) -> bool:
        """Do what comes before the node is computed; whether it is wanted afterwards."""
        ...

    def after(self) -> None:
        """Do what comes after the node was computed."""
        ...


class Layer:
    """What is known of a layer in any graph.

    `steps` counts the nodes from the choice to the last one before the experts; `shares_input`
    says whether the experts' input is the router's. None is what was not seen yet.
    """

    __slots__ = ("choice_name", "number", "shares_input", "steps")

    def __init__(self, number: int) -> None:
        self.number = number
        self.choice_name = b"ffn_moe_topk-%d" % number
        self.steps: int | None = None
        self.shares_input: bool | None = None


class Place:
    """The nodes of a layer in one graph; 0 stands for what was not met yet."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.choice = self.choice_index = self.experts_choice = self.cut_at = 0
        self.weights = self.router = self.router_input = 0
        self.hidden: numpy.typing.NDArray[numpy.float32] | None = None


class Graph:
    """One graph as it was built: what is done at each node, by its address; None where nothing.

    `due` are the layers to be cut at an index of the order that is still to come; `plain` are the
    nodes of a whole graph where nothing is done, none of which is wanted.
    """

    def __init__(self) -> None:
        self.actions: dict[int, Action | None] = {}
        self.plain: dict[int, bool] = {}
        self.order: list[int] = []
        self.places: dict[int, Place] = {}
        self.due: dict[int, Place] = {}
        self.cut_count = 0
        self.is_whole = False

    def place_of(self, layer: Layer) -> Place:
        """Return where the layer is in this graph, as far as it is known."""
        return self.places.setdefault(layer.number, Place(layer))

    def close(self) -> None:
        """All nodes have been met."""
        self.is_whole = True
        self.plain = {pointer: False for pointer, action in self.actions.items() if action is None}
        self.order.clear()
        self.due.clear()
        self.cut_count = sum(isinstance(action, _Cut) for action in self.actions.values())


class GraphReader:
    """Looks at the nodes of graphs as they are met, and cuts; `heard` counts the cuts."""

    def __init__(
        self, opened: abi.Abi, supplier: ExpertSupplier, slots: SlotUse | None = None
    ) -> None:
        self.heard = 0
        self._slots = slots
        self._opened = opened
        self._supplier = supplier
        self._wants_hidden = self._wants_weights = False
        layers = {number: Layer(number) for number in sorted(set(supplier.streamed.values()))}
        self._by_choice = {layer.choice_name: layer for layer in layers.values()}
        self._by_experts = {
            name.encode(): layers[number] for name, number in supplier.streamed.items()
        }
        self._by_router = {
            b"blk.%d.ffn_gate_inp.weight" % number: layer for number, layer in layers.items()
        }

    def ask_wishes(self) -> bool:
        """Ask the supplier what it wants of the next evaluation; whether that has changed."""
        before = self._wants_hidden, self._wants_weights
        self._wants_hidden = self._supplier.wants_hidden
        self._wants_weights = self._supplier.wants_weights
        return before != (self._wants_hidden, self._wants_weights)

    def meet(self, graph: Graph, pointer: int, *, is_dry: bool) -> Action | None:
        """Look at the next node, note what is done there and return it.

        A layer whose choice was not heard is supplied as a whole here, before it is computed.
        """
        index = len(graph.order)
        graph.order.append(pointer)
        graph.actions[pointer] = None
        name, operation = name_of(pointer), operation_of(pointer)
        if operation == abi.Operation.MUL_MAT_ID:
            self._meet_experts(graph, pointer, is_dry=is_dry)
        elif operation == abi.Operation.MUL_MAT and self._wants_hidden:
            self._meet_router(graph, pointer)
        elif self._wants_weights and name.startswith(_WEIGHTS) and not name.startswith(_SUMS):
            self._meet_weights(graph, pointer, name)
        layer = self._by_choice.get(name)
        if layer is not None:
            self._meet_choice(graph, pointer, layer)
        place = graph.due.pop(index, None)
        if place is not None and not place.experts_choice:
            self._cut(graph, place, pointer)
        return graph.actions[pointer]

    def supply(self, routing: Routing, choice: TensorRows) -> None:
        """Hand over a choice, and rewrite it where the experts are read from slots."""
        self._supplier.supply(routing)
        if self._slots is not None and self._slots.is_used(routing.layer):
            choice.write(self._slots.rewritten(routing))

    def supply_layer(self, layer: int) -> None:
        """Have the whole layer supplied."""
        if self._slots is not None and self._slots.is_used(layer):
            raise EngineRefused(
                f"The choice of experts of layer {layer} was not heard before they were read, and "
                "their slots may hold others.",
                hint="--streaming off runs the model without slots.",
            )
        self._supplier.supply_layer(layer)

    def _meet_choice(self, graph: Graph, pointer: int, layer: Layer) -> None:
        """Take the first node of the name: grovemoe names another choice of the layer alike."""
        place = graph.place_of(layer)
        if place.choice or place.experts_choice:
            return
        place.choice, place.choice_index = pointer, len(graph.order) - 1
        graph.due[place.choice_index + (layer.steps or 0)] = place

    def _meet_weights(self, graph: Graph, pointer: int, name: bytes) -> None:
        number = shown_name(name).rpartition(b"-")[2]
        place = graph.places.get(int(number)) if number.isdigit() else None
        if place is not None and place.choice and not place.experts_choice:
            place.weights = pointer

    def _meet_router(self, graph: Graph, pointer: int) -> None:
        layer = self._by_router.get(copied_name(name_of(source_of(pointer, _MATRIX))))
        if layer is None:
            return
        place = graph.place_of(layer)
        place.router, place.router_input = pointer, source_of(pointer, _INPUT)
        if layer.shares_input is not True:
            read = rows_reader(self._opened, place.router_input)
            graph.actions[pointer] = _KeepHidden(place=place, read=read)

    def _meet_experts(self, graph: Graph, pointer: int, *, is_dry: bool) -> None:
        """Compare what the experts are chosen by with what was heard, and learn from it."""
        matrix = name_of(source_of(pointer, _MATRIX))
        layer = self._by_experts.get(copied_name(matrix))
        if layer is None:
            return
        place = graph.place_of(layer)
        choice = source_of(pointer, _CHOICE)
        if place.experts_choice and _is_same(choice, place.experts_choice):
            return  # the layer's other matrices
        was_heard = bool(place.cut_at) and _is_same(choice, place.choice)
        is_first, place.experts_choice = not place.experts_choice, choice
        if is_first and self._learn(graph, place, pointer):
            missing = not was_heard
        else:
            graph.actions[pointer] = _SupplyLayer(reader=self, layer=layer.number)
            missing = False
        if was_heard or is_dry:
            return
        if is_copy(matrix):
            raise EngineRefused(
                f"The engine copied experts of layer {layer.number} to a device before their "
                "choice could be heard, so they cannot be streamed.",
                hint="--streaming off keeps them in memory.",
            )
        if missing:
            self.supply_layer(layer.number)

    def _learn(self, graph: Graph, place: Place, pointer: int) -> bool:
        """Note where the layer is to be cut, here and in other graphs; False if nowhere."""
        layer, last = place.layer, len(graph.order) - 2
        found = _origin(graph, place)
        if found is None or last < 0:
            return False
        is_other = found != place.choice_index or not place.choice
        place.choice, place.choice_index = graph.order[found], found
        steps = last - found
        if is_other:
            del self._by_choice[layer.choice_name]
            layer.choice_name = name_of(place.choice)
            self._by_choice[layer.choice_name] = layer
            layer.steps = steps
        layer.steps = steps if layer.steps is None else min(layer.steps, steps)
        if self._wants_hidden and place.router:
            self._learn_input(graph, place, pointer)
        if place.cut_at:
            graph.actions[place.cut_at] = None
        self._cut(graph, place, graph.order[last])
        return True

    def _learn_input(self, graph: Graph, place: Place, pointer: int) -> None:
        """Note whether the experts' input is the router's, so that one cut is enough for both."""
        mine, router = source_of(pointer, _INPUT), place.router_input
        name, router_name = name_of(mine), name_of(router)
        shares = shown_tensor(mine) == shown_tensor(router) or (
            is_copy(name)
            and not is_copy(router_name)
            and shown_name(name) == shown_name(router_name)
        )
        place.layer.shares_input = shares and place.layer.shares_input is not False
        if place.layer.shares_input:
            graph.actions[place.router] = None

    def _cut(self, graph: Graph, place: Place, pointer: int) -> None:
        place.cut_at = pointer
        hidden = None
        if self._wants_hidden and place.layer.shares_input and place.router_input:
            hidden = rows_reader(self._opened, place.router_input)
        graph.actions[pointer] = _Cut(
            reader=self,
            place=place,
            choice=TensorRows(self._opened, place.choice),
            read_hidden=hidden,
            read_weights=self._weights_reader(place) if place.weights else None,
        )

    def _weights_reader(self, place: Place) -> ReadRows:
        """Weights are [1, chosen, tokens], or [chosen, tokens] where they were normalised."""
        choice = abi.Tensor.from_address(place.choice)
        weights = abi.Tensor.from_address(place.weights)
        is_flat = tuple(weights.ne[:2]) == tuple(choice.ne[:2])
        return rows_reader(self._opened, place.weights, column_axis=0 if is_flat else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Hands the router's choice to the supplier as soon as it is computed."""

    reader: GraphReader
    place: Place
    choice: TensorRows
    read_hidden: ReadRows | None
    read_weights: ReadRows | None

    def before(self, pointer: int) -> bool:
        return True

    def after(self) -> None:
        self.reader.heard += 1
        rows = self.choice.read()
        if not rows.size:
            return  # a micro-batch without outputs ends before its last layer's experts
        hidden = self.place.hidden if self.read_hidden is None else self.read_hidden()
        self.reader.supply(
            Routing(
                layer=self.place.layer.number,
                experts=_different(rows),
                rows=rows,
                hidden=hidden,
                weights=None if self.read_weights is None else self.read_weights(),
            ),
            self.choice,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeepHidden:
    """Keeps what the router saw until its choice is made, where the experts see something else."""

    place: Place
    read: ReadRows

    def before(self, pointer: int) -> bool:
        return True

    def after(self) -> None:
        self.place.hidden = self.read().copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class _SupplyLayer:
    """Has a layer supplied whose choice is never heard."""

    reader: GraphReader
    layer: int

    def before(self, pointer: int) -> bool:
        self.reader.supply_layer(self.layer)
        return False

    def after(self) -> None:
        return


def _is_same(choice: int, node: int) -> bool:
    """Whether what experts are chosen by is a node, or the scheduler's copy of it."""
    if choice == node:
        return True
    name = name_of(choice)
    return bool(node) and is_copy(name) and copied_name(name) == copied_name(name_of(node))


def _origin(graph: Graph, place: Place) -> int | None:
    """Return the index of the node that a layer's experts are chosen by; None if it is none."""
    if place.choice and _is_same(place.experts_choice, place.choice):
        return place.choice_index
    indices = range(len(graph.order) - 2, -1, -1)
    return next((i for i in indices if _is_same(place.experts_choice, graph.order[i])), None)


def _different(rows: "numpy.typing.NDArray[Any]") -> tuple[int, ...]:
    """Return the different numbers: in their order where they are few, else sorted."""
    if rows.size <= _FEW:
        return tuple(dict.fromkeys(rows.ravel().tolist()))
    return tuple(numpy.unique(rows).tolist())
