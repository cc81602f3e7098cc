"""LoRA adapters: a file of small matrices that are added to matrices of a model.

Beliefs: an adapter is a GGUF of `general.type` adapter and `adapter.type` lora, of the model's
architecture, with a pair `<matrix>.lora_a` and `<matrix>.lora_b` for each matrix that it changes;
vectors of norms in it are passed over; each pair lies in memory beside its matrix, never mapped,
and in ordinary memory where the matrix is repacked - `llama_adapter_lora_init_impl` in
src/llama-adapter.cpp @ 0.3.36 - checked by tests/engine/test_adapters.py.

Knows: what makes an adapter fit a model, and which tensors it adds.
Does not know: where adapters are kept, or how they are applied.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from moerun.errors import UnsupportedModel
from moerun.model.description import Model, ModelFile, Tensor, TensorRole, TensorUse
from moerun.model.gguf_values import GgufFile, TensorEntry, shown

FIRST: Final = ".lora_a"
SECOND: Final = ".lora_b"
_AGAIN: Final = "again:"
_PASSED_OVER: Final = "_norm.weight"
_MERGE: Final = "llama-export-lora of llama.cpp merges an adapter into the GGUF"
_INPUT: Final = "token_embd.weight"


def with_adapters(model: Model, files: tuple[GgufFile, ...]) -> Model:
    """Return the model with its adapters; UnsupportedModel for one that does not fit it."""
    for file in files:
        model = _with_adapter(model, file)
    return model


def matrix_of(name: str) -> str:
    """Return the matrix that a tensor of an adapter belongs to."""
    return name.replace(_AGAIN, "").removesuffix(FIRST).removesuffix(SECOND)


def _with_adapter(model: Model, file: GgufFile) -> Model:
    label = shown(Path(file.path).name)
    _check_kind(file, model, label)
    added = _tensors(file, model, label)
    ours = {tensor.name for tensor in model.tensors}
    named = tuple(replace(t, name=_own_name(t.name, ours)) for t in added)
    layers = tuple(
        replace(layer, tensors=(*layer.tensors, *(t for t in named if t.layer == layer.index)))
        for layer in model.layers
    )
    facts = [model.digest, *(f"{e.name} {e.shape} {e.encoding}" for e in file.tensors)]
    return replace(
        model,
        layers=layers,
        shared=(*model.shared, *(t for t in named if t.layer is None)),
        adapters=(
            *model.adapters,
            ModelFile(
                path=file.path,
                size_bytes=file.size_bytes,
                data_offset_bytes=file.data_offset_bytes,
            ),
        ),
        digest=hashlib.sha256("\n".join(facts).encode()).hexdigest(),
    )


def _own_name(name: str, taken: set[str]) -> str:
    """Return a name that no other has: two adapters may change one matrix."""
    return name if name not in taken else _own_name(f"{_AGAIN}{name}", taken)


def _check_kind(file: GgufFile, model: Model, label: str) -> None:
    kind, form = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if kind != "adapter" or form != "lora":
        said = f"of the type '{shown(str(kind or 'model'), 40)}'"
        said = said if kind != "adapter" else f"an adapter of the type '{shown(str(form), 40)}'"
        raise UnsupportedModel(
            f"{label} is {said}, and only LoRA adapters can be applied",
            hint="convert_lora_to_gguf.py of llama.cpp makes one of a folder of safetensors",
        )
    architecture = file.metadata.get("general.architecture")
    if architecture != model.architecture:
        raise UnsupportedModel(
            f"{label} is an adapter for models of {shown(str(architecture), 40)}, and "
            f"{model.name} is one of {model.architecture}"
        )
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise UnsupportedModel(
            f"{label} is to be switched on by certain tokens (an aLoRA), and moerun applies "
            "adapters to whole conversations alone"
        )


def _tensors(file: GgufFile, model: Model, label: str) -> tuple[Tensor, ...]:
    entries = {entry.name: entry for entry in file.tensors}
    matrices = {tensor.name: tensor for tensor in model.tensors}
    found: list[Tensor] = []
    for entry in file.tensors:
        if entry.name.endswith(_PASSED_OVER):
            continue
        if not entry.name.endswith((FIRST, SECOND)):
            raise UnsupportedModel(f"{label} has a tensor that is none of a LoRA: {entry.name}")
        matrix = matrices.get(matrix_of(entry.name))
        if matrix is None or matrix.use is TensorUse.SKIPPED:
            raise UnsupportedModel(
                f"{label} changes {shown(matrix_of(entry.name))}, which {model.name} does not "
                "have; it was made for another model"
            )
        _check_pair(matrix, entries, label, model)
        found.append(_tensor(entry, matrix, len(model.files) + len(model.adapters)))
    if not found:
        raise UnsupportedModel(f"{label} holds an adapter without matrices")
    return tuple(found)


def _check_pair(matrix: Tensor, entries: dict[str, TensorEntry], label: str, model: Model) -> None:
    first, second = entries.get(matrix.name + FIRST), entries.get(matrix.name + SECOND)
    if first is None or second is None:
        raise UnsupportedModel(f"{label} has one half of the pair that changes {matrix.name}")
    if matrix.role is TensorRole.EXPERT:
        raise UnsupportedModel(
            f"{label} changes experts ({matrix.name}), and moerun applies adapters to what every "
            "token uses alone",
            hint=_MERGE,
        )
    if matrix.name == _INPUT:
        raise UnsupportedModel(
            f"{label} changes the input embedding ({_INPUT}), which moerun does not apply",
            hint=_MERGE,
        )
    shapes = first.shape, second.shape, matrix.shape
    is_sound = all(len(shape) == 2 for shape in shapes) and (
        first.shape[0] == matrix.shape[0]
        and second.shape[1] == matrix.shape[1]
        and first.shape[1] == second.shape[0]
    )
    if not is_sound:
        raise UnsupportedModel(
            f"{label} changes {matrix.name} by matrices of the shapes {list(first.shape)} and "
            f"{list(second.shape)}, which do not make one of {list(matrix.shape)}; it was made "
            f"for another model than {model.name}"
        )


def _tensor(entry: TensorEntry, matrix: Tensor, file_index: int) -> Tensor:
    return Tensor(
        name=entry.name,
        role=matrix.role,
        layer=matrix.layer,
        part=None,
        shape=entry.shape,
        encoding=entry.encoding,
        size_bytes=entry.size_bytes,
        offset_bytes=entry.offset_bytes,
        file_index=file_index,
        use=TensorUse.ADAPTER,
    )
