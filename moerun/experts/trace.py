"""Traces of routing in files: read, and written while a model runs.

Knows: files, and the supplier's side of the engine.
Does not know: what a trace is used for, or how an engine finds the router's choice.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from moerun.engine.interface import ExpertSupplier, MappedFile, Routing
from moerun.errors import MoerunError, UsageError
from moerun.experts.layout import ExpertLayout, expert_layout
from moerun.experts.order import StreamingOrder
from moerun.experts.routes import (
    Phase,
    Trace,
    TracedLayer,
    TraceHeader,
    header_lines,
    read_lines,
    row_lines,
)
from moerun.machine.description import SSD
from moerun.model.description import Model
from moerun.planning.strategy import StreamingMode

if TYPE_CHECKING:
    import numpy
    import numpy.typing

_BUFFER_BYTES: Final = 1 << 18


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace; UsageError when there is none, or a line of it is damaged."""
    place = Path(path)
    try:
        with open(place, encoding="utf-8", errors="replace") as file:
            return read_lines(file, label=place.name)
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the trace {place} cannot be read ({reason}); `moerun trace MODEL` records one"
        ) from error


def trace_header(model: Model, layout: ExpertLayout) -> TraceHeader:
    """Return what a trace says of a model whose layout names all matrices that are routed."""
    slot_bytes = layout.slot_bytes
    return TraceHeader(
        model_name=Path(model.files[0].path).name,
        architecture=model.architecture,
        layer_count=len(model.layers),
        expert_count=model.expert_count,
        experts_used=model.experts_used,
        layers=tuple(
            TracedLayer(
                layer=layer.index,
                expert_bytes=slot_bytes.get(layer.index, 0),
                dense_bytes=layer.dense_bytes,
            )
            for layer in model.layers
        ),
        shared_bytes=sum(t.size_bytes for t in model.loaded_tensors if t.layer is None),
    )


def start_trace(path: str | os.PathLike[str], header: TraceHeader) -> None:
    """Write a file with the header alone, to which a recorder adds rows."""
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in header_lines(header))
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


class TraceWriter:
    """Rows added to a trace that was started, in the order in which the engine asks.

    A batch of several tokens is of a prompt, and begins a turn when an answer went before; the
    first tokens of all are of a prompt too. A prompt of which the engine computes one token, since
    it still knows the rest, looks like one more token of the answer before. Where a layer has
    fewer rows than the pass has tokens (an engine computes the last layer only for tokens whose
    output is wanted), they are of the last tokens.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._turn = 0
        self._phase = Phase.PREFILL
        self._step = 0  # of the first token of this pass
        self._tokens = 0
        self._layer: int | None = None
        try:
            self._file: TextIO | None = open(  # noqa: SIM115 - `close` ends it
                path, "a", buffering=_BUFFER_BYTES, encoding="utf-8", newline="\n"
            )
        except (OSError, ValueError) as error:
            raise _unwritable(path, error) from error

    def note(self, routing: Routing, read_bytes: Mapping[int, int] | None = None) -> None:
        """Write what the router chose.

        `read_bytes` are of the experts that had to be read, and None where that is not known.
        """
        rows: list[list[int]] = routing.rows.tolist()
        if self._layer is None or routing.layer <= self._layer:
            self._begin_pass(len(rows))
        self._layer = routing.layer
        weights = _as_rows(routing.weights, rows)
        still_to_read = dict(read_bytes) if read_bytes is not None else None
        lines: list[str] = []
        step = self._step + self._tokens - len(rows)
        for number, experts in enumerate(rows):
            lines += row_lines(
                place=(self._turn, self._phase, step + number, routing.layer),
                experts=experts,
                weights=weights[number] if weights is not None else None,
                read_bytes=(
                    [still_to_read.pop(expert, 0) for expert in experts]
                    if still_to_read is not None
                    else None
                ),
            )
        self._write(lines)

    def close(self) -> None:
        """Write what is left; nothing happens a second time."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                raise _unwritable(self._path, error) from error

    def _begin_pass(self, tokens: int) -> None:
        is_first = self._tokens == 0
        self._step += self._tokens
        self._tokens = tokens
        if tokens > 1 or is_first:
            if self._phase is Phase.DECODE:
                self._turn += 1
                self._step = 0
            self._phase = Phase.PREFILL
        else:
            self._phase = Phase.DECODE

    def _write(self, lines: list[str]) -> None:
        if self._file is None:
            return
        try:
            self._file.writelines(lines)
        except OSError as error:
            raise _unwritable(self._path, error) from error


class TraceRecorder:
    """A supplier that writes down every choice, alone or before another supplier is asked.

    Alone it supplies nothing: every expert is in memory already. `traced` are the matrices whose
    routing is wanted, with their layers. What another supplier had to read is not told here, and
    those cells stay empty.
    """

    def __init__(
        self, writer: TraceWriter, *, traced: Mapping[str, int], inner: ExpertSupplier | None = None
    ) -> None:
        self._writer = writer
        self._inner = inner
        self._inner_layers = (
            frozenset(inner.streamed.values()) if inner is not None else frozenset()
        )
        self._streamed = {**traced, **(inner.streamed if inner is not None else {})}

    @property
    def streamed(self) -> Mapping[str, int]:
        """The matrices whose routing the engine tells."""
        return self._streamed

    @property
    def wants_hidden(self) -> bool:
        """Whether the other supplier wants the hidden state."""
        return self._inner is not None and self._inner.wants_hidden

    @property
    def wants_weights(self) -> bool:
        """Always: a trace has a column for them."""
        return True

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        """Hand the mappings on."""
        if self._inner is not None:
            self._inner.attach(mapped)

    def supply(self, routing: Routing) -> None:
        """Write the choice down, and have it supplied where it is not in memory."""
        is_streamed = routing.layer in self._inner_layers
        self._writer.note(routing, None if is_streamed else {})
        if self._inner is not None and is_streamed:
            self._inner.supply(routing)

    def supply_layer(self, layer: int) -> None:
        """Have a layer supplied whose choice was not seen; there is nothing to write."""
        if self._inner is not None and layer in self._inner_layers:
            self._inner.supply_layer(layer)

    def check(self) -> None:
        """Ask the other supplier whether what was computed may leave."""
        if self._inner is not None:
            self._inner.check()

    def close(self) -> None:
        """End the file, and the other supplier even if that fails."""
        try:
            self._writer.close()
        finally:
            if self._inner is not None:
                self._inner.close()


def traced_supplier(order: StreamingOrder, inner: ExpertSupplier | None) -> ExpertSupplier | None:
    """Return a supplier that also writes the trace which an order asks for, else the given one."""
    if order.trace_path is None:
        return inner
    traced = dict(order.traced) or {tensor.name: tensor.layer for tensor in order.layout.tensors}
    return TraceRecorder(TraceWriter(order.trace_path), traced=traced, inner=inner)


def traced_order(
    model: Model, order: StreamingOrder | None, path: str | os.PathLike[str]
) -> StreamingOrder:
    """Return an order with a trace of all layers; one for the trace alone where nothing streams."""
    layout = routed_layout(model)
    if order is None:
        order = StreamingOrder(
            layout=layout, mode=StreamingMode.OFF, limit_bytes=0, cache_bytes=0, minimum_bytes=0
        )
    return replace(
        order,
        trace_path=os.fspath(path),
        traced=tuple((tensor.name, tensor.layer) for tensor in layout.tensors),
    )


def routed_layout(model: Model) -> ExpertLayout:
    """Return all matrices of a model that are routed; UsageError when it has none."""
    layout = expert_layout(model, {tensor.name: SSD for tensor in model.loaded_tensors})
    if not layout.tensors:
        raise UsageError(
            f"{model.name} has no routed experts whose choice could be recorded or streamed"
        )
    return layout


def _as_rows(
    weights: "numpy.typing.NDArray[numpy.float32] | None", rows: list[list[int]]
) -> list[list[float]] | None:
    """Return the weights as a row for each token, None when the engine gave none that fit."""
    if weights is None:
        return None
    found: list[list[float]] = weights.reshape(len(rows), -1).tolist()
    return found if all(map(lambda a, b: len(a) == len(b), found, rows)) else None


def _unwritable(path: str | os.PathLike[str], error: Exception) -> MoerunError:
    reason = getattr(error, "strerror", None) or str(error)
    return MoerunError(
        f"the trace {os.fspath(path)} cannot be written ({reason}); name another place with "
        "--output, or free some space"
    )
