"""Which architectures the pinned engine knows, and how each arranges its layers.

Every set and table is a belief about llama-cpp-python 0.3.36: names from LLM_ARCH_NAMES in
src/llama-arch.cpp, the rest from `load_arch_hparams` and `load_arch_tensors` in src/models/*.cpp
and `create_memory` in src/llama-model.cpp - checked by tests/test_architectures.py and, against
the cache sizes that the engine reports, by tests/engine/test_state_bytes.py.

Knows: names, and the rules that depend on nothing but the name.
Does not know: files, keys, tensors or sizes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS - src/llama-hparams.h
MAX_EXPERTS: Final = 1024  # LLAMA_MAX_EXPERTS - src/llama-hparams.h


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# `*_exps` are loaded by src/models/<name>.cpp, or by the class it derives from
SPARSE: Final = _names("""
    afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2
    deepseek2-ocr deepseek32 deepseek4 dots1 dots3note ernie4_5-moe exaone-moe gemma4 glm-dsa
    glm4moe glm5-next granite granite_swa granitehybrid granitemoe grok grovemoe hunyuan-moe hy_v3
    hy_v4 jamba kimi-k3 kimi-linear laguna lfm2moe llada-moe llama llama4 maple mellum mimo2
    minicpm minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 nemotron_h_moe nomic-bert-moe olmoe
    gpt-oss phimoe qwen2moe qwen35moe qwen3moe qwen3next qwen3vlmoe qwen4exp refact rnd1
    smallthinker step35
""")

DENSE: Final = _names("""
    apertus arcee arwkv7 baichuan bert bitnet bloom chameleon chatglm codeshell cogvlm cohere2
    command-r deci dream ernie4_5 eurobert exaone exaone4 falcon falcon-h1 gemma gemma-embedding
    gemma2 gemma3 gemma3n glm4 gpt2 gptneox graniteswitch hrm_text hunyuan-dense hunyuan_vl
    internlm2 jais jais2 jina-bert-v2 jina-bert-v3 lfm2 llada llama-embed maincoder mamba mamba2
    minicpm3 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h neo-bert nomic-bert olmo
    olmo2 openelm orion paddleocr pangu-embedded phi2 phi3 plamo plamo2 plamo3 plm qwen qwen2
    qwen2vl qwen3 qwen35 qwen3vl rwkv6 rwkv6qwen2 rwkv7 seed_oss smollm3 spark2_5 stablelm
    starcoder starcoder2 t5 t5encoder talkie xverse
""")

# files of the same family that are no language model by themselves, and what they are
NOT_A_MODEL: Final[dict[str, str]] = {
    "clip": "a projector of images or sound for another model",
    "mmproj": "a projector of images or sound for another model",
    "dflash": "a draft model for speculative decoding of another model",
    "eagle3": "a draft model for speculative decoding of another model",
    "gemma4-assistant": "a draft model for speculative decoding of another model",
    "wavtokenizer-dec": "the sound decoder of a speech model",
    "pockettts": "a speech model that reads no chat",
    "qwen3tts": "a speech model that reads no chat",
    "gptj": "an architecture that the engine names and cannot load",
}

KNOWN: Final = SPARSE | DENSE

ENCODERS: Final = _names("""
    bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert
    nomic-bert nomic-bert-moe t5encoder
""")
DIFFUSION: Final = _names("dream llada llada-moe rnd1")
# `create_memory` answers nullptr for these
WITHOUT_MEMORY: Final = (ENCODERS | DIFFUSION) - {"llama-embed", "t5encoder"}

RECURRENT: Final = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")
RECURRENT_WITHOUT_KV_HEADS: Final = _names("""
    jamba granitehybrid plamo2 lfm2 lfm2moe kimi-linear kimi-k3 bailingmoe3 glm5-next
""")
RECURRENT_BY_INTERVAL: Final[dict[str, int]] = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
READS_WKV: Final = _names("rwkv6 rwkv6qwen2 rwkv7 arwkv7")
READS_SHORT_CONVOLUTION: Final = _names("lfm2 lfm2moe")
READS_KDA: Final = _names("kimi-linear kimi-k3 bailingmoe3 glm5-next")
WITHOUT_STATE_GROUPS: Final = _names("mamba jamba")
NEMOTRON_HYBRIDS: Final = _names("nemotron_h nemotron_h_moe")
RECURRENT_AND_ATTENTION: Final = _names("falcon-h1")  # every layer does both

READS_LATENT_KEYS: Final = _names("""
    deepseek2 mistral4 deepseek32 glm-dsa dots3note hy_v4 kimi-linear kimi-k3 bailingmoe3 glm5-next
""")
# the value length is taken from the latent rank; it matters only where values are cached
INDEXED: Final = _names("deepseek32 glm-dsa dots3note hy_v4 minimax-m3 glm5-next qwen4exp")

# blocks past the trunk are skipped unless the engine is asked for drafts (load_mtp)
SKIPS_PREDICTION_BLOCKS: Final = _names("""
    bailingmoe2 bailingmoe3 cohere2moe deepseek2 mistral4 deepseek32 deepseek4 dots3note
    exaone-moe exaone4 glm-dsa glm4 glm4moe glm5-next hy_v3 mimo2 nemotron_h nemotron_h_moe
    qwen35 qwen35moe qwen3next step35
""")

# blocks are run several times over, or some do nothing
LAYERS_WITHOUT_TENSORS: Final = _names("hrm_text nanbeige deci")

# every other architecture loads the token embedding once more where output.weight is missing
NEEDS_OUTPUT: Final = _names("""
    apertus arwkv7 baichuan bailingmoe bailingmoe2 codeshell dbrx deepseek4 dots1 glm5-next
    gpt-oss gptneox hy_v4 internlm2 jais kimi-k3 kimi-linear llada-moe maple mellum mimo2
    minimax-m2 minimax-m3 muse-glimmer nemotron olmo2 olmoe orion phi2 phimoe plamo qwen qwen2moe
    rwkv6 rwkv6qwen2 rwkv7 stablelm step35 talkie xverse
""")
HAS_NO_OUTPUT: Final = _names("""
    bert bitnet eurobert jina-bert-v2 jina-bert-v3 modern-bert neo-bert nomic-bert nomic-bert-moe
""")

REQUIRED_EXPERT_COUNT: Final = SPARSE - _names("""
    gemma4 granite granite_swa granitehybrid llama minicpm mistral3 refact jamba
""")


class WindowSource(StrEnum):
    """How an architecture learns its sliding window."""

    REQUIRED = "required"  # the key must be there
    OPTIONAL = "optional"  # no window when the key is absent or 0
    DEFAULTED = "defaulted"  # the rule's length when the key is absent
    FIXED = "fixed"  # the rule's length, whatever the key says; none when the key is 0 or absent
    CHUNKED = "chunked"  # the rule's length, also when the key is absent; none when it is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """Which layers of an architecture attend within a window.

    Every layer but each `period`-th does (the last of a period, or its first with
    `full_layer_first`); period 0 is every layer; None: the key holds one flag for each layer.
    """

    source: WindowSource
    period: int | None
    full_layer_first: bool = False
    length_tokens: int = 0
    only_with_layers: int | None = None


def _rule(
    source: WindowSource,
    period: int | None,
    *,
    full_layer_first: bool = False,
    length_tokens: int = 0,
    only_with_layers: int | None = None,
) -> WindowRule:
    return WindowRule(
        source=source,
        period=period,
        full_layer_first=full_layer_first,
        length_tokens=length_tokens,
        only_with_layers=only_with_layers,
    )


WINDOWS: Final[dict[str, WindowRule]] = {
    "afmoe": _rule(WindowSource.OPTIONAL, 4),
    "cohere2": _rule(WindowSource.REQUIRED, 4),
    "cohere2moe": _rule(WindowSource.REQUIRED, 4, full_layer_first=True),
    "deepseek4": _rule(WindowSource.REQUIRED, 0),
    "dots3note": _rule(WindowSource.REQUIRED, None),
    "exaone-moe": _rule(WindowSource.REQUIRED, 4),
    "exaone4": _rule(WindowSource.DEFAULTED, 4, length_tokens=4096, only_with_layers=64),
    "gemma2": _rule(WindowSource.DEFAULTED, 2, length_tokens=4096),
    "gemma3": _rule(WindowSource.OPTIONAL, 6),
    "gemma3n": _rule(WindowSource.REQUIRED, 5),
    "gemma4": _rule(WindowSource.REQUIRED, None),
    "gpt-oss": _rule(WindowSource.REQUIRED, 2),
    "granite_swa": _rule(WindowSource.REQUIRED, None),
    "laguna": _rule(WindowSource.OPTIONAL, 4, full_layer_first=True),
    "llama4": _rule(WindowSource.CHUNKED, 4, length_tokens=8192),
    "maple": _rule(WindowSource.REQUIRED, None),
    "mellum": _rule(WindowSource.OPTIONAL, 4),
    "mimo2": _rule(WindowSource.REQUIRED, None),
    "muse-glimmer": _rule(WindowSource.REQUIRED, 4),
    "olmo2": _rule(WindowSource.OPTIONAL, 4),
    "plamo3": _rule(WindowSource.OPTIONAL, 8),
    "smallthinker": _rule(WindowSource.FIXED, 4, full_layer_first=True, length_tokens=4096),
    "spark2_5": _rule(WindowSource.REQUIRED, None),
    "step35": _rule(WindowSource.REQUIRED, None),
}
# lfm2 is the one whose windowed layers follow from another rule: all that are not recurrent
WINDOW_ON_ALL_ATTENTION: Final = _names("lfm2")
