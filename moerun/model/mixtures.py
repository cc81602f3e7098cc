"""Which encoding the quantizer gives to each tensor of a file: the mixture behind a label.

Beliefs: `tensor_allows_quantization`, `llama_tensor_get_type_impl`, `tensor_type_fallback`,
`llama_ftype_get_default_type` in src/llama-quant.cpp @ llama-cpp-python 0.3.36, without the lines
for Falcon, for GLM5-Next, and for dense models of 80 layers, none of which the catalogue holds.
Files of the i-quants are made with an importance matrix, others are taken to be made without one
(it matters for Q4_0 and Q5_0 only). The labels that end in _L beyond Q3_K_L are a habit of
publishers: the mixture before it with embedding and output in Q8_0 - checked against the engine's
own quantizer by tests/engine/test_mixtures.py, against published sizes by tests/test_catalog.py.

Knows: labels, the rules of each, and what they depend on.
Does not know: models, files, or bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final

from moerun.model.encodings import BY_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSketch:
    """A tensor before it is quantized: its name and its shape, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureFacts:
    """What of a model the rules depend on.

    `layer_count` counts blocks for further tokens too; `heads_per_kv_head` is that of the first
    layer (0 where it has no keys).
    """

    layer_count: int
    expert_count: int
    heads_per_kv_head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    """What a label stands for: the quantizer's file type, its default, and its exceptions."""

    file_type: str
    default: str
    ends_in_q8: bool = False  # embedding and output


def _labels() -> dict[str, _Label]:
    same = (
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q6_K Q2_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ1_M IQ4_NL"
    )
    defaults = {name: name for name in f"{same} IQ4_XS IQ3_S TQ1_0 TQ2_0 MXFP4".split()}
    defaults |= {f"Q{bits}_K_{size}": f"Q{bits}_K" for bits in (3, 4, 5) for size in "SM"}
    defaults |= {"Q2_K_S": "Q2_K", "Q3_K_L": "Q3_K", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S"}
    defaults |= {"IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S"}
    labels = {name: _Label(file_type=name, default=kind) for name, kind in defaults.items()}
    published = {"Q2_K_L": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_K_M", "Q5_K_L": "Q5_K_M"}
    for name, base in {**published, "Q6_K_L": "Q6_K"}.items():
        labels[name] = _Label(file_type=base, default=defaults[base], ends_in_q8=True)
    return labels


_LABELS: Final = _labels()
QUANTIZATIONS: Final = frozenset(_LABELS)
_SMALLEST: Final = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_NARROW_OUTPUT: Final = _SMALLEST | {"IQ3_XXS"}
_FALLBACKS: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NEVER: Final = re.compile(
    r".*_norm\.weight|.*ffn_gate_inp\.weight|.*ssm_conv1d.*|.*shortconv\.conv\.weight"
)
_LAYER: Final = re.compile(r"blk\.(\d+)\.")


class _Category(StrEnum):
    EMBEDDING = "embedding"
    OUTPUT = "output"
    QKV = "attn_qkv"
    KV_B = "attn_kv_b"
    VALUE = "attn_v"
    KEY = "attn_k"
    QUERY = "attn_q"
    ATTENTION_OUTPUT = "attn_output"
    UP = "ffn_up"
    GATE = "ffn_gate"
    DOWN = "ffn_down"
    OTHER = "other"


_VALUES: Final = frozenset({_Category.VALUE, _Category.QKV, _Category.KV_B})
_BY_FRAGMENT: Final = (
    ("attn_qkv.weight", _Category.QKV),
    ("attn_kv_b.weight", _Category.KV_B),
    ("attn_v.weight", _Category.VALUE),
    ("attn_k.weight", _Category.KEY),
    ("attn_q.weight", _Category.QUERY),
    ("attn_output.weight", _Category.ATTENTION_OUTPUT),
    ("ffn_up", _Category.UP),
    ("ffn_gate", _Category.GATE),
    ("ffn_down", _Category.DOWN),
)


@dataclass(slots=True, kw_only=True, frozen=True)
class _Quantizer:
    """One run over the tensors of a file; `seen` counts those whose turn matters to the rules."""

    label: _Label
    facts: MixtureFacts
    value_count: int
    is_tied: bool
    seen: dict[str, int] = field(default_factory=lambda: {"value": 0, "down": 0})

    def encoding(self, tensor: TensorSketch) -> str:
        if not _is_quantized(tensor):
            return "F32"
        if not BY_NAME[self.label.default].is_block_quantized:
            return self.label.default
        category = _category(tensor.name)
        if self.label.ends_in_q8 and category in (_Category.EMBEDDING, _Category.OUTPUT):
            return "Q8_0"
        return _fitting(self._chosen(tensor, category), tensor.shape[0])

    def _chosen(self, tensor: TensorSketch, category: _Category) -> str:
        kind, default = self.label.file_type, self.label.default
        if category is _Category.OUTPUT or (self.is_tied and category is _Category.EMBEDDING):
            return self._of_output(tensor.shape[0])
        if kind == "MXFP4":
            return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[2] > 1 else "Q8_0"
        if category is _Category.EMBEDDING:
            return _of_embedding(kind) or default
        if kind in _SMALLEST:
            return self._of_smallest(tensor.name, category)
        if category in _VALUES:
            return self._of_value(kind, category)
        if category in (_Category.KEY, _Category.QUERY):
            if category is _Category.KEY and self.facts.expert_count == 8:
                return "Q8_0"
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(kind, default)
        if category is _Category.DOWN:
            return self._of_down(kind, _layer_of(tensor.name)) or default
        if category is _Category.ATTENTION_OUTPUT:
            return self._of_attention_output(kind) or default
        layers = self.facts.layer_count
        middle = layers // 8 <= _layer_of(tensor.name) < 7 * layers // 8
        if kind == "IQ3_XS" and middle and category in (_Category.GATE, _Category.UP):
            return "IQ3_XXS"
        return default

    def _of_output(self, columns: int) -> str:
        kind, default = self.label.file_type, self.label.default
        if kind == "MXFP4" or columns % BY_NAME[default].block_values:
            return "Q8_0"
        if kind in _NARROW_OUTPUT:
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def _of_smallest(self, name: str, category: _Category) -> str:
        """Choose for the files of less than three bits."""
        kind, default, experts = self.label.file_type, self.label.default, self.facts.expert_count
        is_larger = kind in ("IQ2_S", "IQ2_M")
        if category in _VALUES:
            if self.facts.heads_per_kv_head >= 4 or experts >= 4:
                return "Q4_K"
            return "IQ3_S" if is_larger else "Q2_K"
        if category is _Category.KEY and experts == 8:
            return "Q4_K"
        if category is _Category.DOWN:
            turn = self.seen["down"]
            self.seen["down"] += 1
            if turn < self.facts.layer_count // 8:
                return "IQ3_S" if is_larger else "Q2_K"
        if category is _Category.ATTENTION_OUTPUT:
            if experts == 8:
                return "Q5_K"
            if kind in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return "IQ3_S" if is_larger else default
        return default

    def _of_value(self, kind: str, category: _Category) -> str:
        turn = self.seen["value"]
        self.seen["value"] += 1
        if self.facts.expert_count == 8:
            return "Q8_0"
        is_narrow = self.facts.heads_per_kv_head >= 4
        match kind:
            case "Q2_K":
                return "Q4_K" if is_narrow else "Q3_K"
            case "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if is_narrow:
                return "Q4_K"
            case "IQ3_M":
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if turn < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if is_narrow:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _takes_more_bits(turn, self.value_count):
                return "Q6_K"
            case "Q4_K_S" if turn < 4:
                return "Q5_K"
        return self.label.default

    def _of_down(self, kind: str, layer: int) -> str | None:
        layers = self.facts.layer_count
        is_early = layer < layers // 8
        takes_more = _takes_more_bits(layer, layers)
        match kind:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if is_early:
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if layer < layers // 16 else "Q4_K"
            case "IQ3_M" if is_early or (self.facts.expert_count == 8 and takes_more):
                return "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if takes_more:
                return "Q6_K"
            case "Q4_K_S" if is_early:
                return "Q5_K"
        return None

    def _of_attention_output(self, kind: str) -> str | None:
        if self.facts.expert_count == 8:
            wide = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M",
                    "IQ3_S", "IQ3_M", "IQ4_XS")  # fmt: skip
            return "Q5_K" if kind in wide else None
        kinds = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return {**kinds, "IQ3_M": "Q4_K"}.get(kind)


def encodings_of(
    tensors: Iterable[TensorSketch], quantization: str, facts: MixtureFacts
) -> tuple[str, ...]:
    """Return the encoding of each tensor in a file of that label; KeyError for an unknown label.

    The order of the result is that of `tensors`; the quantizer itself goes by layer and name.
    """
    sketches = tuple(tensors)
    label = _LABELS[quantization.upper()]
    quantizer = _Quantizer(
        label=label,
        facts=facts,
        value_count=sum(_category(tensor.name) in _VALUES for tensor in sketches),
        is_tied=all(tensor.name != "output.weight" for tensor in sketches),
    )
    order = sorted(range(len(sketches)), key=lambda i: _sorting(sketches[i].name))
    chosen = {i: quantizer.encoding(sketches[i]) for i in order}
    return tuple(chosen[i] for i in range(len(sketches)))


def file_type_of(quantization: str) -> str:
    """Return the quantizer's own name of what a label stands for; KeyError when unknown."""
    return _LABELS[quantization.upper()].file_type


def _of_embedding(kind: str) -> str | None:
    if kind in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return "Q2_K"
    if kind in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    return "Q4_K" if kind in ("TQ1_0", "TQ2_0") else None


# The quantizations of one model ask the same of the same names again and again.
@lru_cache(maxsize=8192)
def _category(name: str) -> _Category:
    if name == "output.weight":
        return _Category.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return _Category.EMBEDDING
    found = (category for fragment, category in _BY_FRAGMENT if fragment in name)
    return next(found, _Category.OTHER)


@lru_cache(maxsize=8192)
def _is_quantized(tensor: TensorSketch) -> bool:
    dimensions = len(tensor.shape)
    while dimensions > 1 and tensor.shape[dimensions - 1] == 1:
        dimensions -= 1
    return (
        dimensions > 1 and tensor.name.endswith("weight") and _NEVER.fullmatch(tensor.name) is None
    )


def _fitting(encoding: str, columns: int) -> str:
    """Return the encoding, or what takes its place where rows are no whole blocks of it."""
    if columns % BY_NAME[encoding].block_values == 0:
        return encoding
    other = _FALLBACKS.get(encoding, encoding)
    return "F16" if columns % BY_NAME[other].block_values else other


def _takes_more_bits(turn: int, count: int) -> bool:
    return turn < count // 8 or turn >= 7 * count // 8 or (turn - count // 8) % 3 == 2


@lru_cache(maxsize=8192)
def _layer_of(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _sorting(name: str) -> tuple[int, str]:
    return _layer_of(name), name
