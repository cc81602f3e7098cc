"""Which experts a model used most, kept for a warm start of its next run.

Uses of earlier runs fade by half with every run, so that the set follows what people ask.

Knows: counts of uses, and the order in which they are worth having.
Does not know: memory, or how experts are read.
"""

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.experts.interface import ExpertKey
from moerun.experts.state_file import read_value, write_value

HOT_SET_SCHEMA: Final = 1
_FOLDER: Final = "hot"
_NAME_DIGITS: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUses:
    """How often each expert of a layer was used; earlier runs count less."""

    layer: int
    uses: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSet:
    """The uses of all layers of one model."""

    model_digest: str
    layers: tuple[LayerUses, ...]

    def hottest(self, count: int) -> tuple[ExpertKey, ...]:
        """Return up to `count` experts that were used at all, the most used first."""
        keys = (
            (-uses, layer.layer, expert)
            for layer in self.layers
            for expert, uses in enumerate(layer.uses)
            if uses > 0
        )
        return tuple(ExpertKey(layer, expert) for _, layer, expert in heapq.nsmallest(count, keys))


def merged(digest: str, earlier: HotSet | None, uses: Mapping[int, Sequence[int]]) -> HotSet:
    """Return the uses of this run on top of half of the earlier ones."""
    before = {layer.layer: layer.uses for layer in earlier.layers} if earlier is not None else {}
    layers = []
    for layer in sorted(uses):
        now = uses[layer]
        old = before.get(layer, ())
        faded = old if len(old) == len(now) else (0,) * len(now)
        layers.append(
            LayerUses(
                layer=layer,
                uses=tuple(n + o // 2 for n, o in zip(now, faded, strict=True)),
            )
        )
    return HotSet(model_digest=digest, layers=tuple(layers))


def hot_set_path(state: Path, digest: str) -> Path:
    """Return where the uses of a model are kept."""
    name = hashlib.sha256(digest.encode()).hexdigest()[:_NAME_DIGITS]
    return state / _FOLDER / f"{name}.json"


def read_hot_set(
    state: Path, digest: str, expert_counts: Mapping[int, int]
) -> tuple[HotSet | None, str | None]:
    """Return the uses of earlier runs and a note; layers that the model has not are left out."""
    hot, note = read_value(hot_set_path(state, digest), HotSet, schema=HOT_SET_SCHEMA)
    if hot is None or hot.model_digest != digest:
        return None, note
    layers = tuple(
        layer for layer in hot.layers if len(layer.uses) == expert_counts.get(layer.layer)
    )
    return HotSet(model_digest=digest, layers=layers), note


def write_hot_set(state: Path, hot: HotSet) -> str | None:
    """Write the uses; return a sentence when they cannot be written."""
    return write_value(hot_set_path(state, hot.model_digest), hot, schema=HOT_SET_SCHEMA)
