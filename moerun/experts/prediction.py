"""Foretelling a layer's experts from the hidden state of the layer before.

A layer adds little to the state that runs through the network, so the next router, asked with the
state of this one, mostly chooses what it will choose. What a router sees is normed with weights
of its layer; these are taken out, and those of the next layer put in.

Knows: routers, their norms and biases, as the files name and store them.
Does not know: what is held or read, or when to ask.
"""

import ctypes
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moerun.engine.interface import MappedFile
from moerun.errors import MoerunError
from moerun.experts.layout import FileRange
from moerun.model.gguf_header import Header, read_header
from moerun.model.gguf_values import TensorEntry

Floats = NDArray[np.float32]

# What the norm before the router is called: `ffn_norm`, or the norm after the attention where a
# model has no other — src/llama-arch.cpp and the graphs in src/models @ 0.3.36 — a wrong guess
# foretells worse and no more; tests/engine/test_prediction.py holds it against real choices.
_NORMS: Final = ("ffn_norm", "post_attention_norm")
_SMALLEST_NORM: Final = 1e-6
_BYTES_OF: Final = {"F32": 4, "F16": 2, "BF16": 2}
# `enum llama_expert_gating_func_type` — src/llama-hparams.h @ 0.3.36
_SIGMOID, _SQRT_SOFTPLUS = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The router of one layer: (experts, width) weights, and what is added before the choice."""

    weights: Floats
    logit_bias: Floats | None = None
    choice_bias: Floats | None = None
    gating: int = 1

    def scores(self, hidden: Floats) -> Floats:
        """Return what the choice goes by for one state; only the order matters."""
        logits: Floats = self.weights @ hidden
        if self.logit_bias is not None:
            logits += self.logit_bias
        if self.choice_bias is None:
            return logits
        return _gated(logits, self.gating) + self.choice_bias


class RouterPredictor:
    """The routers of all streamed layers but the first, each asked one layer early."""

    def __init__(
        self, routers: Mapping[int, Router], norms: Mapping[int, Floats], layers: Sequence[int]
    ) -> None:
        self._next: dict[int, tuple[int, Router, Floats | None]] = {}
        for layer, following in itertools.pairwise(layers):
            if following in routers:
                ratio = _ratio(norms.get(layer), norms.get(following))
                self._next[layer] = (following, routers[following], ratio)

    def __len__(self) -> int:
        """Return for how many layers experts can be foretold."""
        return len(self._next)

    def predict(self, layer: int, hidden: Floats, count: int) -> tuple[int, tuple[int, ...]] | None:
        """Return the next layer and its `count` likeliest experts; None after the last."""
        found = self._next.get(layer)
        if found is None:
            return None
        following, router, ratio = found
        state = hidden.reshape(-1)[-router.weights.shape[1] :]
        scores = router.scores(state if ratio is None else state * ratio)
        if count >= len(scores):
            return following, tuple(range(len(scores)))
        return following, tuple(np.argpartition(scores, -count)[-count:].tolist())


def open_predictor(
    path: str, layers: Sequence[int], *, mapped: Sequence[MappedFile], resident: Sequence[FileRange]
) -> tuple[RouterPredictor, str | None]:
    """Return what foretells the layers, and a note where not all can be.

    Weights that the engine keeps in memory anyway are looked at there, without a copy.
    """
    header = read_header(path)
    source = _Source(header, mapped, resident)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    architecture = header.text("general.architecture") or ""
    gating = header.number(f"{architecture}.expert_gating_func")
    routers: dict[int, Router] = {}
    norms: dict[int, Floats] = {}
    for layer in layers:
        router = _router(layer, tensors, source, gating)
        if router is not None:
            routers[layer] = router
        norm = next((t for n in _NORMS if (t := tensors.get(f"blk.{layer}.{n}.weight"))), None)
        if norm is not None and (weights := source.read(norm)) is not None:
            norms[layer] = weights
    predictor = RouterPredictor(routers, norms, layers)
    missing = len(layers) - 1 - len(predictor)
    note = None
    if missing > 0:
        note = (
            f"the choice of {missing} of {len(layers) - 1} layers cannot be foretold: their "
            "routers are absent or quantized"
        )
    return predictor, note


def _router(
    layer: int, tensors: Mapping[str, TensorEntry], source: "_Source", gating: int | None
) -> Router | None:
    entry = tensors.get(f"blk.{layer}.ffn_gate_inp.weight")
    if entry is None or len(entry.shape) != 2 or (weights := source.read(entry)) is None:
        return None
    width, experts = entry.shape
    logit_bias = tensors.get(f"blk.{layer}.ffn_gate_inp.bias")
    choice_bias = tensors.get(f"blk.{layer}.exp_probs_b.bias")
    return Router(
        weights=weights.reshape(experts, width),
        logit_bias=source.read(logit_bias) if logit_bias is not None else None,
        choice_bias=source.read(choice_bias) if choice_bias is not None else None,
        # DeepSeek-V3 and those after it name a gating beside their bias; a bias alone is sigmoid's
        gating=_SIGMOID if gating is None else gating,
    )


class _Source:
    """Floats of a model's tensors: where the engine has them, else from the file."""

    def __init__(
        self, header: Header, mapped: Sequence[MappedFile], resident: Sequence[FileRange]
    ) -> None:
        self._paths = tuple(file.path for file in header.files)
        self._real_paths = tuple(os.path.realpath(path) for path in self._paths)
        self._mapped = tuple((os.path.realpath(part.path), part) for part in mapped)
        self._resident = resident

    def read(self, entry: TensorEntry) -> Floats | None:
        """Return a tensor's values as F32; None of an encoding that is no float."""
        if entry.encoding not in _BYTES_OF or entry.size_bytes % _BYTES_OF[entry.encoding]:
            return None
        if entry.encoding == "F32" and (address := self._address(entry)) is not None:
            span = (ctypes.c_float * (entry.size_bytes // 4)).from_address(address)
            return np.ctypeslib.as_array(span)
        return self._from_file(entry)

    def _address(self, entry: TensorEntry) -> int | None:
        """Return where the engine has a tensor; None when it may not be in this memory."""
        start, end = entry.offset_bytes, entry.offset_bytes + entry.size_bytes
        is_here = any(
            r.file_index == entry.file_index
            and r.offset_bytes <= start
            and end <= r.offset_bytes + r.size_bytes
            for r in self._resident
        )
        if not is_here or sys.byteorder != "little":
            return None
        real_path = self._real_paths[entry.file_index]
        for path, part in self._mapped:
            if (
                path == real_path
                and part.offset_bytes <= start
                and end <= part.offset_bytes + part.size_bytes
            ):
                address = part.address + start - part.offset_bytes
                return address if address % 4 == 0 else None
        return None

    def _from_file(self, entry: TensorEntry) -> Floats:
        path = self._paths[entry.file_index]
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset_bytes)
                data = file.read(entry.size_bytes)
        except OSError as error:
            raise MoerunError(
                f"{entry.name} cannot be read from {path}: {error.strerror or error}"
            ) from error
        if len(data) != entry.size_bytes:
            raise MoerunError(f"{path} became shorter while it was read; load the model again")
        if entry.encoding == "F16":
            return np.frombuffer(data, dtype="<f2").astype(np.float32)
        if entry.encoding == "BF16":
            return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _ratio(own: Floats | None, following: Floats | None) -> Floats | None:
    """Return what takes one norm's weights out of a state and puts another's in."""
    if own is None or following is None or own.shape != following.shape:
        return None
    is_small = np.abs(own) < _SMALLEST_NORM
    ratio: Floats = np.where(is_small, 0, following / np.where(is_small, 1, own))
    return ratio.astype(np.float32)


def _gated(logits: Floats, gating: int) -> Floats:
    """Return what the model's gating makes of logits — build_moe_ffn, src/llama-graph.cpp."""
    if gating == _SIGMOID:
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    if gating == _SQRT_SOFTPLUS:
        return np.sqrt(np.logaddexp(0, logits)).astype(np.float32)
    grown: Floats = np.exp(logits - logits.max())
    return np.asarray(grown / grown.sum(), dtype=np.float32)
