"""Tiny but complete GGUFs of many architectures, which the real engine loads and decodes.

Knows: which architectures can be written, and what each one covers.
Does not know: the engine.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tests.tiny_models import hybrids, transformers
from tests.tiny_models.blocks import scale_experts, vocabulary_keys
from tests.tiny_models.draft import Draft, Shape
from tests.tiny_models.transformers import Recipe

__all__ = [
    "ARCHITECTURES",
    "DENSE_ARCHITECTURES",
    "MOE_ARCHITECTURES",
    "Shape",
    "TinyArchitecture",
    "write_tiny_model",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyArchitecture:
    """One architecture that can be written: its name here, in the file, and what it covers."""

    name: str
    in_file: str
    recipe: Recipe
    covers: str
    shape: Shape


def _entry(
    name: str, recipe: Recipe, covers: str, *, in_file: str = "", shape: Shape | None = None
) -> TinyArchitecture:
    return TinyArchitecture(
        name=name,
        in_file=in_file or name,
        recipe=recipe,
        covers=covers,
        shape=shape or Shape(),
    )


_SPARSE = (
    _entry("mixtral", transformers.mixtral, "llama with experts", in_file="llama"),
    _entry("qwen2moe", transformers.qwen2moe, "gated shared expert, biased queries"),
    _entry("qwen3moe", transformers.qwen3moe, "normalised heads"),
    _entry(
        "deepseek2",
        transformers.deepseek2,
        "latent attention, shared experts, a dense first layer, group routing, merged gate and up",
    ),
    _entry("gpt-oss", transformers.gpt_oss, "biased MXFP4 experts, sinks, sliding window"),
    _entry(
        "olmoe",
        transformers.olmoe,
        "as many key heads as query heads, normalised together",
        shape=Shape(kv_heads=4),
    ),
    _entry("glm4moe", transformers.glm4moe, "a skipped prediction layer, partial rotation"),
    _entry("llama4", transformers.llama4, "experts on every second layer, chunked attention"),
    _entry("granitemoe", transformers.granitemoe, "scaled embeddings, residuals and logits"),
    _entry(
        "granitehybrid",
        hybrids.granitehybrid,
        "Mamba-2 layers with experts",
        shape=Shape(layers=3),
    ),
    _entry("qwen3next", hybrids.qwen3next, "gated delta nets, gated attention"),
    _entry("jamba", hybrids.jamba, "Mamba layers, experts on every second layer"),
    _entry(
        "nemotron_h_moe",
        hybrids.nemotron_h_moe,
        "layers of one kind each, experts without a gate",
        shape=Shape(layers=5),
    ),
    _entry("lfm2moe", hybrids.lfm2moe, "short convolutions, sigmoid routing"),
    _entry("phimoe", transformers.phimoe, "biased norms and output, repeated rotation factors"),
    _entry("dbrx", transformers.dbrx, "fused and clamped queries, keys and values"),
    _entry("bailingmoe2", transformers.bailingmoe2, "fused queries, group routing"),
    _entry("hunyuan-moe", transformers.hunyuan_moe, "a shared expert without a gate"),
    _entry("ernie4_5-moe", transformers.ernie4_5_moe, "a dense first layer, corrected routing"),
    _entry("minimax-m2", transformers.minimax_m2, "corrected sigmoid routing, partial rotation"),
    _entry(
        "grok",
        transformers.grok,
        "a dense network beside the experts, capped logits",
        shape=Shape(dense_ff=128),
    ),
)

_DENSE = (
    _entry("llama", transformers.llama, "the plain dense case"),
    _entry("gemma2", transformers.gemma2, "tied output, sliding window, capped logits"),
    _entry(
        "gemma3", transformers.gemma3, "tied output, five windows to one", shape=Shape(layers=6)
    ),
)

ARCHITECTURES = {entry.name: entry for entry in (*_SPARSE, *_DENSE)}
MOE_ARCHITECTURES = tuple(entry.name for entry in _SPARSE)
DENSE_ARCHITECTURES = tuple(entry.name for entry in _DENSE)


def write_tiny_model(
    path: Path,
    architecture: str,
    *,
    seed: int = 0,
    shards: int = 1,
    tied_output: bool = False,
    vocabulary: int | None = None,
    shape: Shape | None = None,
    scaled_experts: bool = False,
) -> Path:
    """Write a model of one of ARCHITECTURES and return the file that the engine is given.

    `tied_output` leaves the output matrix out where the architecture allows it; `vocabulary`
    asks for many tokens (320 otherwise); with several `shards` the path names the first.
    `scaled_experts` adds a number for every matrix of an expert that its products are scaled by.
    """
    entry = ARCHITECTURES[architecture]
    chosen = shape or entry.shape
    if vocabulary is not None:
        chosen = replace(chosen, vocabulary=vocabulary)
    draft = Draft(entry.in_file, chosen, seed=seed, tied_output=tied_output)
    draft.plain_keys({"general.name": f"tiny {architecture}", "general.file_type": 7})
    entry.recipe(draft)
    if scaled_experts:
        scale_experts(draft)
    draft.plain_keys(vocabulary_keys(chosen.vocabulary))
    return draft.write(path, shards=shards)
