"""Refusing by name what the engine would refuse late, or crash on.

Beliefs: the types that ggml-cpu computes in each operation - `ggml_backend_cpu_device_supports_op`
in ggml/src/ggml-cpu/ggml-cpu.cpp, `type_traits_cpu` in ggml-cpu.c, binary-ops.cpp, ops.cpp
@ llama-cpp-python 0.3.36 (an F64 router loads and then segfaults; anything but F32 in a norm or a
bias aborts) - checked by tests/test_support.py and tests/engine/test_state_bytes.py.

Knows: which encodings a tensor may have for what it does, which tensors a model cannot lack.
Does not know: how a header is read, or devices.
"""

import re
from typing import Final

from moerun.errors import UnsupportedModel
from moerun.model import architectures
from moerun.model.description import ExpertPart, Tensor, TensorRole, TensorUse
from moerun.model.encodings import BY_NAME
from moerun.model.gguf_values import shown
from moerun.model.hyperparameters import HyperParameters
from moerun.model.keys import Keys
from moerun.model.tensor_names import LEGACY_EXPERT, Operation, meaning

_NOT_WEIGHTS: Final = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
_MATRIX: Final = frozenset(BY_NAME) - _NOT_WEIGHTS
ALLOWED: Final[dict[Operation, frozenset[str]]] = {
    Operation.MATRIX: _MATRIX,
    Operation.EXPERT_MATRIX: _MATRIX,
    Operation.LOOKUP: _MATRIX,
    Operation.ELEMENTWISE: frozenset({"F32"}),
    Operation.INDEX: frozenset({"I32"}),
}
# mixing factors of RWKV are the left operand of their sums, where half precision is computed
_RWKV_FACTOR: Final = re.compile(r"blk\.\d+\.(?:time|channel)_mix_.*")
_HALF: Final = frozenset({"F32", "F16", "BF16"})


def check_support(keys: Keys, hyper: HyperParameters, tensors: tuple[Tensor, ...]) -> None:
    """Raise UnsupportedModel for the first thing that the engine cannot load or compute."""
    for tensor in tensors:
        _check_place(keys, hyper, tensor)
        if tensor.use is not TensorUse.SKIPPED:
            _check_encoding(keys, tensor)
            _check_experts(keys, hyper, tensor)
    _check_present(keys, hyper, tensors)
    _check_routed(keys, tensors)


def _check_place(keys: Keys, hyper: HyperParameters, tensor: Tensor) -> None:
    if LEGACY_EXPERT.fullmatch(tensor.name):
        raise UnsupportedModel(
            f"{keys.label} has one tensor for each expert ({tensor.name}), a layout that "
            "llama.cpp no longer reads; download a current file of the model"
        )
    if not meaning(tensor.name).is_known:
        raise keys.refusal(
            f"has tensor '{shown(tensor.name)}', which this engine does not know; the file may be "
            "for a newer one"
        )
    if tensor.layer is not None and tensor.layer >= hyper.block_count:
        raise keys.refusal(
            f"has tensor '{shown(tensor.name)}' of layer {tensor.layer} and only "
            f"{hyper.block_count} layers (block_count)"
        )
    if (
        tensor.layer is not None
        and tensor.layer >= hyper.trunk_blocks
        and keys.architecture not in architectures.SKIPS_PREDICTION_BLOCKS
    ):
        # the loader of the architecture ends before such blocks, and then the count is wrong
        raise keys.refusal(
            f"has a block for speculative decoding ('{shown(tensor.name)}'), which the engine "
            "does not read in this architecture"
        )


def _check_encoding(keys: Keys, tensor: Tensor) -> None:
    operation = meaning(tensor.name).operation
    allowed = ALLOWED[operation]
    if operation is Operation.ELEMENTWISE and _RWKV_FACTOR.fullmatch(tensor.name):
        allowed = _HALF
    if tensor.encoding not in allowed:
        raise UnsupportedModel(
            f"{keys.label} has tensor '{shown(tensor.name)}' ({tensor.role.value}) as "
            f"{tensor.encoding}, which the engine cannot use for {operation.value}; download "
            "another file of the model"
        )


def _check_experts(keys: Keys, hyper: HyperParameters, tensor: Tensor) -> None:
    if tensor.role is not TensorRole.EXPERT:
        return
    if not hyper.expert_count:
        raise keys.refusal(f"has experts ('{shown(tensor.name)}') and no expert_count")
    if tensor.name.endswith(".weight") and "_chexps" not in tensor.name:
        held = tensor.shape[2] if len(tensor.shape) > 2 else 1
        if held != hyper.expert_count:
            raise keys.refusal(
                f"holds {held} experts in '{shown(tensor.name)}' and claims {hyper.expert_count}"
            )


def _check_present(keys: Keys, hyper: HyperParameters, tensors: tuple[Tensor, ...]) -> None:
    names = {tensor.name for tensor in tensors}
    if "token_embd.weight" not in names and keys.architecture != "codeshell":
        raise keys.refusal("has no token_embd.weight, which the engine needs")
    if "output.weight" not in names and keys.architecture in architectures.NEEDS_OUTPUT:
        raise keys.refusal("has no output.weight, which the engine needs")
    if keys.architecture in architectures.LAYERS_WITHOUT_TENSORS:
        return
    present = {tensor.layer for tensor in tensors if tensor.name.startswith(("blk.", "enc.blk."))}
    missing = [layer for layer in range(hyper.trunk_blocks) if layer not in present]
    if missing and len(missing) == hyper.trunk_blocks and present:
        raise keys.refusal(
            "holds only blocks for speculative decoding, and its main file is what runs"
        )
    if missing:
        raise keys.refusal(
            f"has no tensors of layer {missing[0]} ({len(missing)} of {hyper.trunk_blocks} layers "
            "are missing)"
        )


def _check_routed(keys: Keys, tensors: tuple[Tensor, ...]) -> None:
    """Refuse a layer that routes to experts it does not hold."""
    routed: set[int] = set()
    held: set[int] = set()
    for tensor in tensors:
        if tensor.layer is None or tensor.use is TensorUse.SKIPPED:
            continue
        if tensor.part is ExpertPart.DOWN:
            held.add(tensor.layer)
        elif tensor.name.endswith(".ffn_gate_inp.weight"):
            routed.add(tensor.layer)
    missing = sorted(routed - held)
    if missing:
        raise keys.refusal(
            f"routes to experts in layer {missing[0]} and has no ffn_down_exps there"
        )
