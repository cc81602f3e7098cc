"""A child process that lets the engine build models from keys alone, and prints what it reports.

`python -m tests.engine.header_model ARCHITECTURE...` prints one JSON line for each: the tensors
that the engine makes, and the cache sizes of its log for a few settings. The engine aborts on
keys that do not go together, so this runs apart from the tests.
"""

import ctypes
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from tests.engine.reports import file_keys
from tests.sparse_gguf import TENSOR_TYPES, write_sparse

CACHE = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB")
COMPRESSOR = re.compile(r"dsv4_comp_state: \w+ ratio = .* size = +([\d.]+) MiB")
RECURRENT = re.compile(r"llama_memory_recurrent: size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a context is made with."""

    context_tokens: int
    ubatch_tokens: int
    sequences: int = 1
    unified: bool = False
    swa_full: bool = False
    flash_attention: bool = True


SETTINGS = (
    Setting(context_tokens=300, ubatch_tokens=64),
    Setting(context_tokens=4096, ubatch_tokens=512),
    Setting(context_tokens=8192, ubatch_tokens=128, sequences=4),
    Setting(context_tokens=8192, ubatch_tokens=512, sequences=4, unified=True),
    Setting(context_tokens=16384, ubatch_tokens=512, swa_full=True),
    Setting(context_tokens=8192, ubatch_tokens=256, flash_attention=False),
)


class GgufParameters(ctypes.Structure):
    """`struct gguf_init_params` of ggml."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


NO_DEVICES = (ctypes.c_void_p * 1)(None)


def without_devices() -> llama_cpp.llama_model_params:
    """Return the defaults with a list of devices that ends at once.

    Without a list the engine asks every device that this process has registered, and aborts when
    one was an RPC worker that is gone.
    """
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.devices = ctypes.cast(NO_DEVICES, ctypes.c_void_p)
    return parameters


class Probe:
    """The engine, with its log caught."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tensors: list[tuple[str, list[int]]] = []
        self._log = llama_cpp.llama_log_callback(
            lambda _level, text, _data: self.lines.append(text.decode(errors="replace"))
        )
        self._fill = llama_cpp.llama_model_set_tensor_data_t(
            lambda tensor, _data: self._note(tensor)
        )
        libraries = Path(llama_cpp.__file__).parent / "lib"
        base = next(libraries.glob("*ggml-base.*"))
        self._gguf = ctypes.CDLL(str(base)).gguf_init_from_file
        self._gguf.argtypes = [ctypes.c_char_p, GgufParameters]
        self._gguf.restype = ctypes.c_void_p
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def report(self, architecture: str, folder: Path) -> dict[str, object]:
        """Return what the engine makes of an architecture's keys."""
        path = write_sparse(folder / f"{architecture}.gguf", file_keys(architecture), [])
        self.lines.clear()
        self.tensors.clear()
        header = self._gguf(str(path).encode(), GgufParameters(no_alloc=True, ctx=None))
        parameters = without_devices()
        model = llama_cpp.llama_model_init_from_user(
            ctypes.c_void_p(header), self._fill, None, parameters
        )
        if not model:
            return {"architecture": architecture, "error": "".join(self.lines[-3:])}
        contexts = [self._context(model, asdict(setting)) for setting in SETTINGS]
        llama_cpp.llama_model_free(model)
        return {
            "architecture": architecture,
            "tensors": list(self.tensors),
            "contexts": contexts,
        }

    def context_log(self, model: object, setting: dict[str, Any]) -> str:
        """Make a context, free it, and return what the engine logged; "" when it refused."""
        self.lines.clear()
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = setting["context_tokens"]
        parameters.n_ubatch = setting["ubatch_tokens"]
        parameters.n_batch = 512
        parameters.n_seq_max = setting["sequences"]
        parameters.kv_unified = setting["unified"]
        parameters.swa_full = setting["swa_full"]
        parameters.flash_attn_type = int(setting["flash_attention"])
        parameters.type_k = TENSOR_TYPES[setting.get("key_encoding", "F16")]
        parameters.type_v = TENSOR_TYPES[setting.get("value_encoding", "F16")]
        context = llama_cpp.llama_init_from_model(model, parameters)
        if not context:
            return ""
        llama_cpp.llama_free(context)
        return "".join(self.lines)

    def _context(self, model: object, setting: dict[str, Any]) -> dict[str, object]:
        log = self.context_log(model, setting)
        return {
            "setting": setting,
            "made": bool(log),
            "cache_mib": CACHE.findall(log) + COMPRESSOR.findall(log),
            "recurrent_mib": RECURRENT.findall(log),
        }

    def _note(self, tensor: int) -> None:
        # struct ggml_tensor: ne at 16, name at 256 (size 336) - ggml/include/ggml.h @ 0.3.36
        extents = list((ctypes.c_int64 * 4).from_address(tensor + 16))
        self.tensors.append((ctypes.string_at(tensor + 256).decode(), extents))


def main(names: list[str]) -> None:
    probe = Probe()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            sys.stdout.write(json.dumps(probe.report(name, Path(folder))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
