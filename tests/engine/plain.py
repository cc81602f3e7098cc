"""Plain llama-cpp-python through its low-level calls: the reference that placements are held to.

Knows: llama.cpp's own loading on the processor, with stated settings.
Does not know: anything of moerun's engine room.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as llama
from numpy.typing import NDArray

FLASH_ON, FLASH_OFF = 1, 0
LOAD_MMAP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the arithmetic, and is therefore the same on both sides.

    One thread, like the workers: past 256 tokens the attention sees 512 cells, and flash attention
    then splits them over the threads — ggml/src/ggml-cpu/ops.cpp @ 0.3.36.
    """

    ubatch_tokens: int = 512
    flash_attention: bool = True
    threads: int = 1
    context_tokens: int = 512
    extra_buffers: bool = False
    swa_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What is run: a prompt in one batch, then single tokens."""

    prompt: tuple[int, ...]
    steps: tuple[int, ...]


def plain_logits(path: Path, settings: Settings, script: Script) -> NDArray[np.float32]:
    """Return a row of logits for each token of the script, all on the processor."""
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = settings.extra_buffers
    parameters.load_mode = LOAD_MMAP
    no_devices = (ctypes.c_void_p * 1)(None)
    parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"plain llama-cpp-python cannot load {path}"
    context = llama.llama_init_from_model(model, _context_parameters(settings))
    assert context, f"plain llama-cpp-python cannot make a context for {path}"
    rows = [_decode(context, script.prompt)]
    rows += [_decode(context, (token,)) for token in script.steps]
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.concatenate(rows)


def last_logits(context: Any) -> NDArray[np.float32]:
    """Return a copy of the logits after the last token that a context has run."""
    return _copy(llama.llama_get_logits_ith(context, -1), context, 1)


def _context_parameters(settings: Settings) -> Any:
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = settings.context_tokens
    parameters.n_batch = 2048
    parameters.n_ubatch = settings.ubatch_tokens
    parameters.n_threads = settings.threads
    parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = FLASH_ON if settings.flash_attention else FLASH_OFF
    parameters.swa_full = settings.swa_full
    return parameters


def _decode(context: Any, tokens: tuple[int, ...]) -> NDArray[np.float32]:
    array = (llama.llama_token * len(tokens))(*tokens)
    batch = llama.llama_batch_get_one(array, len(tokens))
    wanted = (ctypes.c_int8 * len(tokens))(*([1] * len(tokens)))
    batch.logits = wanted
    status = llama.llama_decode(context, batch)
    assert status == 0, f"plain llama-cpp-python cannot decode: status {status}"
    return _copy(llama.llama_get_logits(context), context, len(tokens))


def _copy(pointer: Any, context: Any, rows: int) -> NDArray[np.float32]:
    vocabulary = llama.llama_model_get_vocab(llama.llama_get_model(context))
    columns = llama.llama_vocab_n_tokens(vocabulary)
    return np.array(np.ctypeslib.as_array(pointer, shape=(rows, columns)), dtype=np.float32)
