"""From header facts to a `Model`: layers with roles, uses and exact bytes.

Beliefs: `load_tensors` in src/llama-model.cpp and `load_arch_tensors` in src/models/*.cpp
@ llama-cpp-python 0.3.36: blocks for drafts are skipped unless asked for, a missing output matrix
means that the token embedding is loaded twice - checked by tests/test_assembly.py and
tests/engine/test_skipped_blocks.py.

Knows: how tensors make layers, what the engine skips or loads twice.
Does not know: how a header is read, or where anything will be placed.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Final

from moerun.errors import UnsupportedModel
from moerun.model import architectures
from moerun.model.description import Layer, Model, ModelFile, Tensor, TensorUse
from moerun.model.encodings import FILE_TYPES
from moerun.model.gguf_values import ArrayValue, GgufFile, TensorEntry, shown
from moerun.model.hyperparameters import HyperParameters, read_hyperparameters
from moerun.model.keys import Keys
from moerun.model.layer_state import layer_states
from moerun.model.support import check_support
from moerun.model.tensor_names import meaning

GUESSED_FILE_TYPE: Final = 1024  # LLAMA_FTYPE_GUESSED - include/llama.h
ROTARY_FACTORS: Final = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
_HEADS: Final = r"nextn\.(?:embed_tokens|shared_head_head|shared_head_norm)\.weight"
_NETWORKS: Final = (
    r"ffn_(?:gate|up|down|gate_inp)\.weight|ffn_(?:gate|up|down|gate_up)_exps\.weight"
    r"|ffn_(?:gate|up|down)_shexp\.weight|exp_probs_b(?:\.bias)?"
)
# optional tensors of skipped blocks that are loaded all the same, because they are asked for
# without the flag that skips - `load_arch_tensors`, src/models/<name>.cpp
_LOADED_OF_SKIPPED: Final[dict[str, re.Pattern[str]]] = {
    "cohere2moe": re.compile(rf"blk\.\d+\.{_HEADS}"),
    "deepseek32": re.compile(r"blk\.\d+\.exp_probs_b\.bias"),
    "glm-dsa": re.compile(r"blk\.\d+\.exp_probs_b\.bias"),
    "hy_v3": re.compile(rf"blk\.\d+\.(?:{_HEADS}|{_NETWORKS})"),
    "step35": re.compile(
        rf"blk\.\d+\.(?:{_HEADS}|{_NETWORKS}|attn_[qk]_norm\.weight|attn_gate\.weight)"
    ),
}
_NEVER_LOADED: Final = re.compile(r"dec\.blk\.\d+\.cross_attn_rel_b\.weight|masked_embd_.*")


def assemble(files: tuple[GgufFile, ...]) -> Model:
    """Return the model that these files hold, in order; UnsupportedModel when it cannot run."""
    first = files[0]
    label = shown(Path(first.path).name)
    architecture = _architecture(first, label)
    keys = Keys.of(first, label=label, architecture=architecture)
    entries = tuple(entry for file in files for entry in file.tensors)
    if not entries:
        raise UnsupportedModel(
            f"{label} holds a vocabulary and no weights; download the file of the model itself"
        )
    names = frozenset(entry.name for entry in entries)
    hyper = read_hyperparameters(keys, names.__contains__)
    has_tied_output = (
        "output.weight" not in names and architecture not in architectures.HAS_NO_OUTPUT
    )
    tensors = tuple(_tensor(entry, architecture, hyper, tied=has_tied_output) for entry in entries)
    check_support(keys, hyper, tensors)
    return Model(
        name=_name(first),
        architecture=architecture,
        files=tuple(
            ModelFile(
                path=file.path,
                size_bytes=file.size_bytes,
                data_offset_bytes=file.data_offset_bytes,
            )
            for file in files
        ),
        layers=_layers(keys, hyper, tensors),
        shared=tuple(tensor for tensor in tensors if tensor.layer is None),
        expert_count=hyper.expert_count,
        experts_used=max(hyper.experts_used),
        train_context_tokens=hyper.context_tokens,
        embedding_length=hyper.embedding_length,
        vocabulary_size=_vocabulary_size(first, tensors),
        parameter_count=sum(_values(tensor.shape) for tensor in tensors),
        has_tied_output=has_tied_output,
        quantization=_quantization(first, tensors),
        digest=_digest(files),
        generates_text=architecture not in architectures.ENCODERS | architectures.DIFFUSION,
        cautions=_cautions(architecture, hyper),
    )


def _architecture(file: GgufFile, label: str) -> str:
    kind = file.metadata.get("general.type")
    if isinstance(kind, str) and kind not in ("", "model"):
        raise UnsupportedModel(
            f"{label} is of the type '{shown(kind, 40)}' and not a model by itself; name the file "
            "of the model that it belongs to"
        )
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise UnsupportedModel(
            f"{label} does not say its architecture (general.architecture); download or convert "
            "the model again"
        )
    what = architectures.NOT_A_MODEL.get(name)
    if what is not None:
        raise UnsupportedModel(
            f"{label} is {what} (architecture {name}); name the file of the model itself"
        )
    if name not in architectures.KNOWN:
        raise UnsupportedModel(
            f"{label} has the architecture '{shown(name, 40)}', and this engine knows "
            f"{len(architectures.KNOWN)} others; a newer moerun may know it"
        )
    return name


def _tensor(entry: TensorEntry, architecture: str, hyper: HyperParameters, *, tied: bool) -> Tensor:
    said = meaning(entry.name)
    layer = said.layer
    use = TensorUse.LOADED
    if _is_skipped(entry.name, architecture, hyper, layer):
        use = TensorUse.SKIPPED
    elif tied and entry.name == "token_embd.weight":
        use = TensorUse.DUPLICATED
    elif entry.name in ROTARY_FACTORS:
        use = TensorUse.REPEATED
    elif architecture in ("lfm2", "lfm2moe") and entry.name == "token_embd_norm.weight":
        layer = None  # the final norm under a wrong name - LLM_TENSOR_OUTPUT_NORM_LFM2
    return Tensor(
        name=entry.name,
        role=said.role,
        layer=layer,
        part=said.part,
        shape=entry.shape,
        encoding=entry.encoding,
        size_bytes=entry.size_bytes,
        offset_bytes=entry.offset_bytes,
        file_index=entry.file_index,
        use=use,
    )


def _is_skipped(name: str, architecture: str, hyper: HyperParameters, layer: int | None) -> bool:
    if _NEVER_LOADED.fullmatch(name):
        return True
    if architecture not in architectures.SKIPS_PREDICTION_BLOCKS:
        return False
    if layer is None or layer < hyper.trunk_blocks:
        return False
    loaded = _LOADED_OF_SKIPPED.get(architecture)
    return loaded is None or not loaded.fullmatch(name)


def _layers(keys: Keys, hyper: HyperParameters, tensors: tuple[Tensor, ...]) -> tuple[Layer, ...]:
    by_layer: list[list[Tensor]] = [[] for _ in range(hyper.block_count)]
    for tensor in tensors:
        if tensor.layer is not None:
            by_layer[tensor.layer].append(tensor)
    return tuple(
        Layer(
            index=index,
            tensors=tuple(by_layer[index]),
            attention=state.attention,
            recurrent=state.recurrent,
        )
        for index, state in enumerate(layer_states(keys, hyper))
    )


def _name(file: GgufFile) -> str:
    name = file.metadata.get("general.name")
    return shown(name) if isinstance(name, str) and name else Path(file.path).stem


def _vocabulary_size(file: GgufFile, tensors: tuple[Tensor, ...]) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, ArrayValue):
        return tokens.length
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) > 1:
            return tensor.shape[1]
    return 0


def _quantization(file: GgufFile, tensors: tuple[Tensor, ...]) -> str:
    number = file.metadata.get("general.file_type")
    if isinstance(number, int) and number & ~GUESSED_FILE_TYPE in FILE_TYPES:
        return FILE_TYPES[number & ~GUESSED_FILE_TYPE]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.encoding] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


def _digest(files: tuple[GgufFile, ...]) -> str:
    """Return a hash of what the header states; long arrays count by type, length and place."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.size_bytes} {file.data_offset_bytes}\n".encode())
        for key, value in file.metadata.items():
            if isinstance(value, ArrayValue) and value.values is None:
                value_text = f"{value.item_type.name}[{value.length}] {value.span_bytes}"
            elif isinstance(value, ArrayValue):
                value_text = repr(value.values)
            else:
                value_text = repr(value)
            digest.update(f"{key}={value_text}\n".encode("utf-8", "surrogatepass"))
        for tensor in file.tensors:
            line = f"{tensor.name} {tensor.shape} {tensor.encoding} {tensor.offset_bytes}\n"
            digest.update(line.encode())
    return digest.hexdigest()


def _cautions(architecture: str, hyper: HyperParameters) -> tuple[str, ...]:
    cautions: list[str] = []
    if architecture in architectures.ENCODERS:
        cautions.append("this model turns text into vectors and answers no prompts")
    if architecture in architectures.DIFFUSION:
        cautions.append("this model writes by diffusion, which moerun does not run")
    if hyper.prediction_blocks and architecture in architectures.SKIPS_PREDICTION_BLOCKS:
        cautions.append(
            f"{hyper.prediction_blocks} of {hyper.block_count} blocks predict further tokens; the "
            "engine does not run them"
        )
    return tuple(cautions)


def _values(shape: tuple[int, ...]) -> int:
    values = 1
    for extent in shape:
        values *= extent
    return values
