"""LoRA adapters as the engine takes them: loaded beside a model, and set for its context.

Beliefs: an adapter lives as long as its model and is freed with it; setting adapters makes the next
batch reserve its buffers again; a scale of 1 applies them as they were trained -
src/llama-adapter.cpp, `llama_context::set_adapters_lora` in src/llama-context.cpp @ 0.3.36 -
checked by tests/engine/test_adapters.py.

Knows: the calls.
Does not know: which adapters fit a model, or where they are kept.
"""

import ctypes
from typing import Any, Final

from moerun.engine import abi
from moerun.engine.engine_log import EngineLog
from moerun.engine.load_log import error_line
from moerun.errors import EngineRefused

_IN_FULL: Final = 1.0


def apply_adapters(
    opened: abi.Abi, log: EngineLog, model: Any, context: Any, paths: tuple[str, ...]
) -> None:
    """Load adapters and set them for all that the context computes; EngineRefused with its words.

    The caller frees model and context when they are refused.
    """
    if not paths:
        return
    mark = log.mark()
    found = []
    for path in paths:
        adapter = opened.llama.llama_adapter_lora_init(model, abi.encode_path(path))
        if not adapter:
            why = error_line(log.since(mark)) or "it says no more"
            raise EngineRefused(f"The engine does not take the adapter {path}: {why}")
        found.append(ctypes.cast(adapter, ctypes.c_void_p).value)
    # The binding declares pointers to void pointers, and passes what it is given as it is.
    pointers = (ctypes.c_void_p * len(found))(*found)
    declared = opened.llama.llama_set_adapters_lora.argtypes[1]
    scales = (ctypes.c_float * len(found))(*(_IN_FULL for _ in found))
    refused = opened.llama.llama_set_adapters_lora(
        context, ctypes.cast(pointers, declared), len(found), scales
    )
    if refused:
        raise EngineRefused("The engine does not set the adapters for this context.")
