"""What llama.cpp calls its tensors, and what each of them does.

Belief: LLM_TENSOR_NAMES and LLM_TENSOR_INFOS - src/llama-arch.cpp @ llama-cpp-python 0.3.36 -
checked by tests/test_tensor_names.py and, on loaded models, by tests/engine/test_state_bytes.py.

Knows: names, roles, the operation that reads a tensor.
Does not know: architectures, sizes, or which encodings an operation can read.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from moerun.model.description import ExpertPart, TensorRole
from moerun.model.known_names import IN_BLOCKS, IN_MODEL, IN_STACKS


class Operation(StrEnum):
    """How the engine reads a tensor, which decides the encodings that it may have."""

    MATRIX = "matrix multiplication"
    EXPERT_MATRIX = "expert matrix multiplication"
    LOOKUP = "row lookup"
    ELEMENTWISE = "elementwise arithmetic"
    INDEX = "index lookup"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeaning:
    """What a name says: role, layer (None for those of the whole model), expert part, operation.

    A name that is not `is_known` is one that the engine never asks for.

    Tensors that the engine keeps with the first layer although their name has no number
    (rotary factors, embedding norms) have layer 0.
    """

    role: TensorRole
    layer: int | None
    part: ExpertPart | None
    operation: Operation
    is_known: bool


_BLOCK: Final = re.compile(r"(?P<stack>(?:dec\.|enc\.)?)blk\.(?P<layer>\d{1,4})\.(?P<rest>.+)")
_EXPERT: Final = re.compile(r"ffn_(?P<part>gate_up|gate|up|down)_(?:ch)?exps")
_NORM: Final = re.compile(r".*norm(?:_\d|_exps)?|.*norm_(?:key|query|conv)")
_SUFFIX: Final = re.compile(
    r"(?P<base>.+?)(?:\.(?P<suffix>weight|bias|scales?|input_scale|lora_a|lora_b))?"
)
LEGACY_EXPERT: Final = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight")

_INPUT: Final = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
_WITH_FIRST_LAYER: Final = frozenset(
    {
        "rope_freqs",
        "rope_factors_long",
        "rope_factors_short",
        "token_embd_norm",
        "per_layer_model_proj",
        "per_layer_proj_norm",
        "hrm.z_l_init",
        "conv1d",
        "nextn.pre_projection",
    }
)
_ROUTER: Final = frozenset({"ffn_gate_inp", "exp_probs_b", "exp_probs_b_vl", "ffn_gate_tid2eid"})
_INDEX: Final = frozenset({"ffn_gate_tid2eid", "d2t", "masked_embd_ordering"})
_LOOKUP: Final = _INPUT | {
    "attn_compressor_ape",
    "indexer_compressor_ape",
    "nextn.embed_tokens",
    "attn_rel_b",
    "cross_attn_rel_b",
    "markov_w1",
    "selector_predecessor",
    "selector_successor",
}
_ELEMENTWISE: Final = frozenset(
    {
        "attn_sinks",
        "attn_conv_base",
        "attn_res_score",
        "ffn_res_score",
        "ffn_conv_base",
        "ffn.act",
        "exp_probs_b",
        "exp_probs_b_vl",
        "layer_output_scale",
        "altup_correct_scale",
        "output_res_score",
        "output_hc_base",
        "output_hc_scale",
        "hc_attn_base",
        "hc_attn_scale",
        "hc_ffn_base",
        "hc_ffn_scale",
        "hrm.z_l_init",
        "ple_conv1d",
        "rope_freqs",
        "rope_factors_long",
        "rope_factors_short",
        "shortconv.conv",
        "ssm_a",
        "ssm_d",
        "ssm_conv1d",
        "ssm_conv1d_q",
        "ssm_conv1d_k",
        "ssm_conv1d_v",
        "channel_mix_lerp_k",
        "channel_mix_lerp_r",
        "time_mix_a0",
        "time_mix_decay",
        "time_mix_first",
        "time_mix_k_a",
        "time_mix_k_k",
        "time_mix_ln",
        "time_mix_r_k",
        "time_mix_v0",
        "time_mix_w0",
        "gamma",
    }
)


@lru_cache(maxsize=8192)
def meaning(name: str) -> TensorMeaning:
    """Return what a tensor of that name does; unknown names have the role OTHER."""
    block = _BLOCK.fullmatch(name)
    base, suffix = _split_suffix(block["rest"] if block else name)
    layer = int(block["layer"]) if block else (0 if base in _WITH_FIRST_LAYER else None)
    role, part = _block_role(base) if block else (_shared_role(base), None)
    return TensorMeaning(
        role=role,
        layer=layer,
        part=part,
        operation=_operation(base, suffix, role),
        is_known=base in _names_in(block["stack"] if block else None),
    )


def _names_in(stack: str | None) -> frozenset[str]:
    if stack is None:
        return IN_MODEL
    return IN_STACKS if stack else IN_BLOCKS


def _split_suffix(name: str) -> tuple[str, str | None]:
    match = _SUFFIX.fullmatch(name)
    assert match is not None  # the pattern takes every text without line breaks
    return match["base"], match["suffix"]


def _shared_role(base: str) -> TensorRole:
    if base in _INPUT:
        return TensorRole.INPUT
    if _NORM.fullmatch(base):
        return TensorRole.NORM
    if base.startswith(("output", "cls", "dense_", "altup_")):
        return TensorRole.OUTPUT
    return TensorRole.OTHER


def _block_role(base: str) -> tuple[TensorRole, ExpertPart | None]:
    expert = _EXPERT.fullmatch(base)
    if expert:
        return TensorRole.EXPERT, ExpertPart(expert["part"])
    if base in _ROUTER:
        return TensorRole.ROUTER, None
    if base.endswith("_shexp"):
        return TensorRole.SHARED_EXPERT, None
    if _NORM.fullmatch(base):
        return TensorRole.NORM, None
    if base.startswith(("ssm_", "time_mix_", "channel_mix_", "shortconv.")):
        return TensorRole.RECURRENT, None
    if base.startswith(("attn_", "cross_attn_", "indexer")):
        return TensorRole.ATTENTION, None
    if base.startswith("ffn"):
        return TensorRole.DENSE_FFN, None
    return TensorRole.OTHER, None


def _operation(base: str, suffix: str | None, role: TensorRole) -> Operation:
    if base in _INDEX:
        return Operation.INDEX
    if suffix in ("bias", "scale", "scales", "input_scale"):
        return Operation.ELEMENTWISE
    if role is TensorRole.EXPERT:
        return Operation.EXPERT_MATRIX
    if base in _LOOKUP:
        return Operation.LOOKUP
    # RWKV mixes with these five by a broadcast; only the fused one is read as an operand of ADD
    if base in _ELEMENTWISE or _NORM.fullmatch(base) or base.startswith("time_mix_lerp"):
        return Operation.ELEMENTWISE
    return Operation.MATRIX
