"""A child process that decodes one token with tensors of an encoding; the engine may abort.

`python -m tests.engine.encoding_model OPERATION ENCODING...` prints each encoding after its token.
"""

import sys
import tempfile
from pathlib import Path

import llama_cpp

from moerun.model.tensor_names import Operation, meaning
from tests.model_files import VOCABULARY, a_models_keys, a_models_tensors
from tests.model_keys import KeyValue
from tests.sparse_gguf import TensorShape, write_sparse


def write_model(folder: Path, operation: Operation, encoding: str) -> Path:
    """Write a model of zeros whose tensors of one operation have one encoding."""
    keys: dict[str, KeyValue] = {
        **a_models_keys(),
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
    }
    rows: list[TensorShape] = list(a_models_tensors())
    rows += [
        (f"blk.{layer}.attn_{part}_norm.weight", (64,), "F32")
        for layer in range(2)
        for part in ("q", "k")
    ]
    changed = [
        (name, shape, encoding if meaning(name).operation is operation else usual)
        for name, shape, usual in rows
    ]
    return write_sparse(folder / f"{operation.name}-{encoding}.gguf", keys, changed)


def decode(path: Path) -> bool:
    """Load a file and decode one token of it; False when the engine declines."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        return False
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 256
    settings.n_threads = settings.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, settings)
    tokens = (llama_cpp.llama_token * 1)(1)
    done = bool(llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 1)) == 0)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return done


def main(operation: str, encodings: list[str]) -> None:
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        for encoding in encodings:
            if decode(write_model(Path(folder), Operation[operation], encoding)):
                sys.stdout.write(encoding + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
