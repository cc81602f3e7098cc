"""The engine's log read as values, on logs recorded by `python -m tests.engine.record_logs`."""

from pathlib import Path

import pytest

from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.load_log import (
    error_line,
    find_memory_failure,
    read_dry_run_log,
    read_flash_attention,
    read_gpu_layers,
    read_load_log,
    read_notes,
)
from moerun.machine.description import HOST, DeviceId
from moerun.units import MIB
from tests.builders import some_arguments

LOGS = Path(__file__).parent / "fixtures" / "logs"
FIRST = DeviceId("gpu:RPC0[127.0.0.1:50052]")
SECOND = DeviceId("gpu:RPC1[127.0.0.1:50053]")


def recorded(name: str) -> list[str]:
    return (LOGS / f"{name}.txt").read_text("utf-8").splitlines()


def args_with(*devices: tuple[DeviceId, str]) -> EngineArgs:
    return some_arguments(
        devices=tuple(EngineDeviceRef(id=device, engine_name=name) for device, name in devices)
    )


BOTH = args_with((FIRST, "RPC0"), (SECOND, "RPC1"))


def summary(reports):
    return [(r.kind, r.device, round(r.size_bytes / MIB, 2)) for r in reports]


def test_everything_on_the_host():
    reports = read_load_log(recorded("host_mapped"), args_with())
    assert summary(reports) == [("model", HOST, 2.10), ("kv", HOST, 1.0), ("compute", HOST, 3.51)]
    assert [r.buffer for r in reports] == ["CPU_Mapped", "CPU", "CPU"]
    assert reports[0].component == "load_tensors"


def test_experts_on_the_host_beside_a_device():
    reports = read_load_log(recorded("experts_on_host"), args_with((FIRST, "RPC0")))
    assert summary(reports) == [
        ("model", HOST, 2.10),
        ("model", FIRST, 0.90),
        ("kv", FIRST, 1.0),
        ("compute", FIRST, 3.01),
        ("compute", HOST, 2.03),
    ]


def test_two_devices_and_two_caches():
    reports = read_load_log(recorded("two_devices_sliding_window"), BOTH)
    kv = [(r.device, r.size_bytes) for r in reports if r.kind == "kv"]
    assert sorted(kv) == [(FIRST, MIB // 4), (FIRST, MIB // 2), (SECOND, MIB // 4)]


def test_recurrent_state():
    reports = read_load_log(recorded("two_devices_recurrent"), BOTH)
    recurrent = {r.device for r in reports if r.kind == "recurrent"}
    assert recurrent == {FIRST, SECOND}


def test_names_of_buffer_types_win_over_addresses():
    named = {"RPC0[127.0.0.1:50053]": DeviceId("gpu:other")}
    reports = read_load_log(recorded("two_devices_sliding_window"), BOTH, buffer_types=named)
    assert {r.device for r in reports if r.buffer == "RPC0[127.0.0.1:50053]"} == {"gpu:other"}


def test_a_dry_run_shares_each_cache_out_over_its_layers():
    reports = read_dry_run_log(recorded("dry_run_two_devices"), BOTH)
    assert not [r for r in reports if r.kind == "model"]
    real = read_load_log(recorded("two_devices_sliding_window"), BOTH)
    for device in (FIRST, SECOND):
        expected = sum(r.size_bytes for r in real if r.kind == "kv" and r.device == device)
        assert sum(r.size_bytes for r in reports if r.kind == "kv" and r.device == device) == (
            expected
        )
    first = [r.size_bytes for r in reports if r.kind == "compute" and r.device == FIRST]
    assert first == [r.size_bytes for r in real if r.kind == "compute" and r.device == FIRST]


def test_layers_on_each_device():
    layers = read_gpu_layers(recorded("two_devices_sliding_window"), BOTH)
    assert dict(layers) == {FIRST: 3, SECOND: 1}
    assert read_gpu_layers(recorded("host_mapped"), args_with()) == ()


@pytest.mark.parametrize(
    ("line", "device"),
    [
        # As src/llama-model.cpp prints what the CUDA, Vulkan and Metal backends name.
        ("load_tensors:        CUDA0 model buffer size =   512.00 MiB", "gpu:0000:01:00.0"),
        ("load_tensors:    CUDA_Host model buffer size =   512.00 MiB", HOST),
        ("load_tensors:   CPU_REPACK model buffer size =   512.00 MiB", HOST),
        ("load_tensors:          AMX model buffer size =   512.00 MiB", HOST),
        ("load_tensors:  MTL0_Mapped model buffer size =   512.00 MiB", "gpu:MTL0"),
        ("load_tensors:      Vulkan7 model buffer size =   512.00 MiB", None),
    ],
)
def test_buffers_of_other_backends(line: str, device: str | None):
    args = args_with((DeviceId("gpu:0000:01:00.0"), "CUDA0"), (DeviceId("gpu:MTL0"), "MTL0"))
    (report,) = read_load_log([line], args)
    assert report.device == device
    assert report.size_bytes == 512 * MIB


def test_the_last_reservation_of_a_compute_buffer_stands():
    lines = [
        "sched_reserve:        CPU compute buffer size =     3.00 MiB",
        "sched_reserve:        CPU compute buffer size =     2.00 MiB",
    ]
    assert summary(read_load_log(lines, args_with())) == [("compute", HOST, 2.0)]


def test_out_of_memory_as_recorded():
    failure = find_memory_failure(recorded("out_of_memory_on_device"))
    assert failure is not None
    assert failure.requested_bytes == 2**31
    assert failure.buffer == "RPC0[127.0.0.1:50052]"


@pytest.mark.parametrize(
    ("lines", "buffer", "requested_bytes"),
    [
        (
            [
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: "
                "cudaMalloc failed: out of memory",
                "alloc_tensor_range: failed to allocate CUDA0 buffer of size 9663676416",
                "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            ],
            "CUDA0",
            9663676416,
        ),
        (
            [
                "ggml_metal_buffer_init: error: failed to allocate buffer, size =    96.00 MiB",
                "llama_model_load: error loading model: unable to allocate MTL0 buffer",
            ],
            "MTL0",
            96 * MIB,
        ),
        (
            [
                "ggml_vulkan: Device memory allocation of size 1048576 failed.",
                "ErrorOutOfDeviceMemory",
            ],
            None,
            1048576,
        ),
        (
            [
                "llama_init_from_model: failed to initialize the context: "
                "failed to allocate compute pp buffers"
            ],
            None,
            None,
        ),
    ],
)
def test_out_of_memory_in_the_words_of_the_backends(lines, buffer, requested_bytes):
    failure = find_memory_failure(lines)
    assert failure is not None
    assert (failure.buffer, failure.requested_bytes) == (buffer, requested_bytes)


def test_other_failures_are_not_taken_for_memory():
    assert find_memory_failure(recorded("truncated")) is None
    for name in ("host_mapped", "two_devices_recurrent", "odd_kv"):
        assert find_memory_failure(recorded(name)) is None


def test_what_the_engine_did_otherwise_is_noted():
    assert read_notes(recorded("two_devices_recurrent")) == ()
    lines = [
        "warning: failed to mlock 8192-byte buffer (after previously locking 0 bytes): "
        "Cannot allocate memory",
        "resolve_fused_ops: Flash Attention not supported, set to disabled",
    ]
    notes = read_notes(lines)
    assert len(notes) == 2
    assert "ulimit -l" in notes[0]
    assert notes[1].startswith("flash attention is off")


@pytest.mark.parametrize(
    ("lines", "is_on"),
    [
        (["llama_context: flash_attn            = auto"], None),
        (["llama_context: flash_attn            = auto", "f: Flash Attention enabled"], True),
        (["llama_context: flash_attn            = enabled"], True),
        (["llama_context: flash_attn            = disabled"], False),
        (["f: Flash Attention not supported, set to disabled"], False),
        (["f: flash_attn is not compatible with Grok - forcing off"], False),
        (["f: enabling flash_attn since it is required for quantized V cache"], True),
    ],
)
def test_flash_attention_as_the_engine_decided(lines: list[str], is_on: bool | None):
    assert read_flash_attention(lines) is is_on


def test_the_error_is_the_engines_own_without_its_function():
    assert error_line(recorded("truncated")) == (
        "tensor 'blk.3.ffn_down_exps.weight' data is not within the file bounds, model is "
        "corrupted or incomplete"
    )
    assert error_line([]) is None
    assert error_line(["llama_model_load_from_file_impl: failed to load model"]) == (
        "failed to load model"
    )
