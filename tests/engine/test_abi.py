"""What moerun believes of llama.cpp's binary interface, held to the installed engine."""

import ctypes
import dataclasses
import subprocess
import sys

import gguf
import pytest

from moerun.engine import abi
from moerun.engine.load import KV_ENCODINGS

pytestmark = pytest.mark.engine


def test_the_installed_engine_matches_every_belief():
    opened = abi.open_engine()
    assert abi.installed_version() == abi.VERSION
    assert abi.mismatches(opened) == ()


def test_struct_sizes():
    opened = abi.open_engine()
    assert ctypes.sizeof(opened.llama.llama_model_params) == abi.MODEL_PARAMETERS_BYTES
    assert ctypes.sizeof(opened.llama.llama_context_params) == abi.CONTEXT_PARAMETERS_BYTES
    assert ctypes.sizeof(abi.TensorBufferOverride) == 16
    assert ctypes.sizeof(abi.BackendRegistration) == 48
    assert ctypes.sizeof(abi.DeviceProperties) == 56
    object_head = 32
    assert object_head + ctypes.sizeof(abi.Tensor) == abi.TENSOR_OVERHEAD_BYTES == 368


def test_every_default_is_read_and_compared():
    """A field that drifts by one place shows, since its neighbours differ."""
    opened = abi.open_engine()

    class Shifted:
        def __init__(self, changes):
            self.changes = changes

        def __getattr__(self, name):
            if name == "llama_model_default_params":
                return self.parameters
            return getattr(opened.llama, name)

        def parameters(self):
            values = opened.llama.llama_model_default_params()
            for name, value in self.changes.items():
                setattr(values, name, value)
            return values

    for field, value in (("use_extra_bufts", False), ("load_mode", 3), ("no_alloc", True)):
        drifted = dataclasses.replace(opened, llama=Shifted({field: value}))
        problems = abi.mismatches(drifted)
        assert len(problems) == 1
        assert field in problems[0]


def test_another_backend_version_is_noticed():
    opened = abi.open_engine()
    registration = abi.BackendRegistration(api_version=3)
    other = dataclasses.replace(
        opened, device_registration=lambda _: ctypes.addressof(registration)
    )
    assert abi.mismatches(other) == ("a backend has API version 3, not 2",)


def test_libraries_are_those_that_libllama_uses():
    """A second copy of libggml would have a registry of its own, without our workers."""
    if sys.platform != "linux":
        pytest.skip("reads /proc/self/maps")
    abi.open_engine()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split()[-1] for line in maps if "libggml" in line}
    for name in ("libggml.so", "libggml-base.so", "libggml-rpc.so", "libggml-cpu.so"):
        assert len([file for file in files if f"{name}" in file]) == 1


def test_kv_encodings_have_ggmls_numbers():
    for name, number in KV_ENCODINGS.items():
        assert gguf.GGMLQuantizationType[name] == number


def test_load_modes_and_flash_attention_have_llamas_numbers():
    llama = abi.open_engine().llama
    for mode in abi.EngineLoadMode:
        assert getattr(llama, f"LLAMA_LOAD_MODE_{mode.name}") == mode
    assert llama.LLAMA_FLASH_ATTN_TYPE_AUTO == abi.FlashAttention.AUTO
    assert llama.LLAMA_FLASH_ATTN_TYPE_DISABLED == abi.FlashAttention.OFF
    assert llama.LLAMA_FLASH_ATTN_TYPE_ENABLED == abi.FlashAttention.ON


def test_asking_for_the_version_does_not_open_the_engine():
    program = (
        "import sys; from moerun.engine import abi; assert abi.installed_version(); "
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="a dialogue may open")
def test_an_abort_says_its_words_last():
    program = (
        "import ctypes; from moerun.engine import abi; opened = abi.open_engine(); "
        "base = ctypes.CDLL(str(abi.library_path(opened.folder, 'ggml-base'))); "
        "base.ggml_abort(b'here.c', 7, b'these words')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode < 0
    assert done.stderr.decode().splitlines()[-1].endswith("these words")


class GgmlParameters(ctypes.Structure):
    """`ggml_init_params` — ggml/include/ggml.h @ 0.3.36."""

    _fields_ = (
        ("size_bytes", ctypes.c_size_t),
        ("buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def test_fields_of_a_tensor_are_where_they_are_looked_for():
    """A product with experts, made by the engine, is read by offsets."""
    opened = abi.open_engine()
    base = ctypes.CDLL(str(abi.library_path(opened.folder, "ggml-base")))
    pointer, length = ctypes.c_void_p, ctypes.c_int64
    base.ggml_init.restype, base.ggml_init.argtypes = pointer, (GgmlParameters,)
    base.ggml_new_tensor_3d.restype = pointer
    base.ggml_new_tensor_3d.argtypes = (pointer, ctypes.c_int, *[length] * 3)
    base.ggml_mul_mat_id.restype, base.ggml_mul_mat_id.argtypes = pointer, (pointer,) * 4
    base.ggml_set_name.restype, base.ggml_set_name.argtypes = pointer, (pointer, ctypes.c_char_p)
    base.ggml_view_2d.restype = pointer
    base.ggml_view_2d.argtypes = (pointer, pointer, length, length, *[ctypes.c_size_t] * 2)
    base.ggml_free.argtypes = (pointer,)
    context = base.ggml_init(GgmlParameters(1 << 20, None, False))

    experts = base.ggml_new_tensor_3d(context, abi.TYPE_F32, 8, 4, 3)
    hidden = base.ggml_new_tensor_3d(context, abi.TYPE_F32, 8, 1, 5)
    everything = base.ggml_new_tensor_3d(context, abi.TYPE_I32, 6, 5, 1)
    choice = base.ggml_view_2d(context, everything, 2, 5, 24, 4)
    product = base.ggml_mul_mat_id(context, experts, hidden, choice)
    base.ggml_set_name(product, b"x" * 63)

    seen, view = abi.Tensor.from_address(product), abi.Tensor.from_address(choice)
    assert seen.op == abi.Operation.MUL_MAT_ID
    assert list(seen.src[:4]) == [experts, hidden, choice, None]
    assert list(seen.ne) == [4, 2, 5, 1]
    assert list(seen.nb) == [4, 16, 32, 160]
    assert seen.name == b"x" * 63
    assert (view.view_src, view.view_offs, view.nb[1]) == (everything, 4, 24)
    assert view.data == abi.Tensor.from_address(everything).data + 4
    assert (view.type, seen.type) == (abi.TYPE_I32, abi.TYPE_F32)
    assert opened.tensor_bytes(choice) == 4 * 24 + 8
    base.ggml_free(context)


def test_another_tensor_or_operation_is_noticed():
    opened = abi.open_engine()
    grown = dataclasses.replace(opened, tensor_overhead=lambda: 376)
    assert abi.mismatches(grown) == ("a tensor takes 376 bytes, not 368",)
    moved = dataclasses.replace(opened, operation_name=lambda n: b"MUL_MAT" if n else b"NONE")
    assert "operation 30 is MUL_MAT, not MUL_MAT_ID" in abi.mismatches(moved)
