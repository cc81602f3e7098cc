"""Hearing the router's choice in each layer before the engine reads the experts that it chose.

The scheduler asks a callback about every node of a graph before it computes it, and hands over
those that the callback wanted, computed, before it goes on. The graph is cut so once in each layer
(`graph_cuts` tells where), and the supplier has the experts in memory before the cut ends. Nodes
that were met before are known by their addresses, so that an ask is one look into a dictionary.

Beliefs: `ggml_backend_sched_compute_splits` asks about all nodes in the order of the graph, and
waits for what it computed before it hands over a node - ggml/src/ggml-backend.cpp:1814; a graph
that is used again is counted before it is computed - src/llama-context.cpp:1422; an operation that
is NONE is computed nowhere - ggml/src/ggml-cpu/ggml-cpu.c:1743, ggml/src/ggml-cuda/ggml-cuda.cu:
4647; the processor asks its abort callback after every node - ggml/src/ggml-cpu/ggml-cpu.c:3150
@ 0.3.36 - checked by tests/engine/test_router_hook.py.

Knows: the callback, when a graph is another one, and how an evaluation is given up.
Does not know: where experts lie, or how they come into memory.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final

from moerun.engine import abi
from moerun.engine.graph_cuts import Action, Graph, GraphReader
from moerun.engine.graph_tensors import OPERATION_OFFSET, operation_of
from moerun.engine.interface import ExpertSupplier
from moerun.engine.slot_use import SlotUse
from moerun.errors import EngineRefused

_FIRST_TOKEN: Final = 0
_EXPERTS: Final = frozenset({abi.Operation.MUL_MAT_ID})
_GATHERING: Final = _EXPERTS | {abi.Operation.ADD_ID, abi.Operation.GET_ROWS}


class RouterHook:
    """The callback of one context; `context` is to be set as soon as there is one.

    Every `llama_decode`, which must be of one micro-batch, stands between `begin` and `end`.
    """

    def __init__(
        self, opened: abi.Abi, supplier: ExpertSupplier, slots: SlotUse | None = None
    ) -> None:
        self.context: Any = None
        self._llama = opened.llama
        self._slots = slots
        self._reader = GraphReader(opened, supplier, slots)
        self._graph: Graph | None = None
        self._reused = 0
        self._is_first_ask = False
        self._is_dry = False
        self._must_be_new = False
        self._failure: BaseException | None = None
        self._silenced: list[tuple[int, int]] = []
        self._always = self._llama.ggml_abort_callback(lambda _: True)
        self._never = self._llama.ggml_abort_callback()
        self._answers = _Answers(self, self._fail)
        # must live as long as the context
        self._callback = abi.EvaluationCallback(self._answers.__getitem__)
        self.callback = ctypes.cast(self._callback, self._llama.ggml_backend_sched_eval_callback)

    def learn(self, tokens: int = 1) -> Graph | None:
        """Have the graph of one token asked about and nothing of it computed; return it.

        The first token's cuts are then where they belong. The memory of past tokens is to be
        cleared afterwards. What cannot be asked so teaches by its first token. The nodes of the
        graph are there until the next evaluation.
        """
        if self._llama.llama_model_has_encoder(self._llama.llama_get_model(self.context)):
            return None
        array = (self._llama.llama_token * tokens)(*([_FIRST_TOKEN] * tokens))
        batch = self._llama.llama_batch_get_one(array, tokens)
        self._is_dry = True
        self.begin(tokens)
        try:
            self._llama.llama_decode(self.context, batch)
            graph = self._graph
            self.end(is_complete=False)
        finally:
            self._is_dry = False
        return graph

    def begin(self, tokens: int) -> None:
        """A graph of so many tokens is about to be computed."""
        slots = self._slots
        self._must_be_new = slots is not None and slots.begin(tokens, is_dry=self._is_dry)
        if self._must_be_new:
            # there is no control vector; to say so once more has the next graph built anew
            self._llama.llama_set_adapter_cvec(self.context, None, 0, 0, 0, 0)
            self._reused = self._llama.llama_perf_context(self.context).n_reused
        self._is_first_ask = True
        if slots is not None and slots.is_deaf and not self._is_dry:
            self._graph = None
            self._answers.ignore()
            return
        self._reader.heard = 0
        if self._reader.ask_wishes():
            self._graph = None  # other nodes are to be read
        self._answers.forget()

    def end(self, *, is_complete: bool) -> None:
        """The graph was computed, or given up; raises what was raised meanwhile."""
        for pointer, operation in self._silenced:
            ctypes.c_int.from_address(pointer + OPERATION_OFFSET).value = operation
        self._silenced.clear()
        if self._slots is not None:
            self._slots.end(is_built=is_complete or not self._is_first_ask)
        graph, failure = self._graph, self._failure
        if failure is not None:
            self._failure, self._graph = None, None
            self._llama.llama_set_abort_callback(self.context, self._never, None)
            raise failure
        if not is_complete or graph is None:
            self._graph = None
            self._check_new()
            return
        if not graph.is_whole:
            graph.close()
        elif self._reader.heard != graph.cut_count:
            self._graph = None
            raise EngineRefused(
                f"The engine computed {self._reader.heard} layers with a choice of experts, and "
                f"its graph has {graph.cut_count}: what it computed is not to be trusted.",
                hint="--streaming off runs the model without looking at its graph.",
            )

    def before(self, pointer: int) -> bool:
        """Meet a node that is not known; whether it is wanted when it is computed."""
        if self._failure is not None:
            self._silence(pointer)
            return False
        if self._is_first_ask:
            self._is_first_ask = False
            actions = self._begin_graph().actions
            if pointer in actions:
                known = actions[pointer]
                return known is not None and known.before(pointer)
        graph = self._graph
        if graph is None or graph.is_whole:  # nodes that the graph did not have: it is another
            graph = self._new_graph()
        action = self._reader.meet(graph, pointer, is_dry=self._is_dry)
        if self._is_dry:
            self._silence(pointer)
            return False
        return action is not None and action.before(pointer)

    def after(self) -> None:
        """Nothing is known of a node that was not known before it was computed."""

    @property
    def _uses_slots(self) -> bool:
        return self._slots is not None and self._slots.is_on

    def _begin_graph(self) -> Graph:
        """Return the graph of the last time where the engine uses it again, else an empty one."""
        reused = self._llama.llama_perf_context(self.context).n_reused
        self._check_new()
        is_same, self._reused = reused == self._reused + 1, reused
        if is_same and self._graph is not None:
            self._answers.use(self._graph)
            return self._graph
        return self._new_graph()

    def _check_new(self) -> None:
        """Raise where the engine used a graph again that was built for other places of experts."""
        if not self._must_be_new:
            return
        if self._llama.llama_perf_context(self.context).n_reused != self._reused:
            raise EngineRefused(
                "The engine used a graph again whose experts have moved since it was built.",
                hint="--streaming off runs the model without slots.",
            )

    def _new_graph(self) -> Graph:
        self._graph = Graph()
        self._answers.use(self._graph)
        return self._graph

    def _fail(self, error: BaseException, pointer: int | None) -> None:
        """Give the evaluation up: no experts are read any more, and the processor stops.

        A device computes the rest of its part, without experts, since it cannot be stopped; its
        routers still choose, so that every index that the engine looks at is sound.
        """
        if self._failure is None:
            self._failure = error
            self._answers.use(Graph())
            self._llama.llama_set_abort_callback(self.context, self._always, None)
        if pointer is not None:
            self._silence(pointer)

    def _silence(self, pointer: int) -> None:
        """Let a node compute nothing, until `end`; only what reads experts, but when dry.

        With slots that is all that gathers by a choice, which was not rewritten: numbers of experts
        reach beyond the slots.
        """
        operation = operation_of(pointer)
        if self._is_dry or operation in (_GATHERING if self._uses_slots else _EXPERTS):
            self._silenced.append((pointer, operation))
            node = ctypes.c_int.from_address(pointer + OPERATION_OFFSET)
            node.value = int(abi.Operation.NONE)


class _Answers(dict[int, bool]):
    """The callback: an answer for each node, looked up by its address.

    Some 3,000 nodes of a token of 48 layers are plain; the dictionary itself answers for these,
    without a step of Python: 0.11 microseconds against 0.20 of a function. All others are absent
    and come to `__missing__`. The engine tells a node's turn before and after it is computed by an
    argument that is not taken: right after a node that was wanted, the next call is about it again.
    """

    def __init__(self, unknown: Action, fail: Callable[[BaseException, int | None], None]) -> None:
        super().__init__()
        self._unknown = unknown
        self._fail = fail
        self._actions: dict[int, Action | None] = {}
        self._wanted: int | None = None
        self._ignores = False

    def forget(self) -> None:
        """Know no node, as before the first one of an evaluation."""
        self._wanted = None
        self._ignores = False
        self._take({}, {})

    def ignore(self) -> None:
        """Want no node at all, of this graph or any; those that were met before stay known."""
        if not self._ignores:
            self.forget()
            self._ignores = True

    def use(self, graph: Graph) -> None:
        """Answer for the nodes of a graph."""
        self._take(graph.actions, graph.plain)

    def __missing__(self, pointer: int) -> bool:
        """Do what is to be done at a node that is not plain, or not known."""
        if self._ignores:
            self[pointer] = False
            return False
        is_computed, self._wanted = pointer == self._wanted, None
        try:
            action = self._actions.get(pointer, self._unknown)
            if is_computed:
                if action is not None:
                    action.after()
                return True
            is_wanted = action is not None and action.before(pointer)
        except BaseException as error:  # it must not pass through C; `end` raises it again
            self._fail(error, None if is_computed else pointer)
            is_wanted = True
        if is_wanted and not is_computed:
            self._wanted = pointer
        return is_wanted

    def _take(self, actions: dict[int, Action | None], plain: dict[int, bool]) -> None:
        self._actions = actions
        self.clear()
        self.update(plain)
