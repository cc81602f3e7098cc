"""The planner's formula for compute buffers, against dry runs of the engine on real headers.

The files have true sizes and no weights, so no plan could be loaded; a dry run reads the header.
The formula may take too much, which costs some room; what it takes too little (the allocator
leaves gaps) is far below the margin.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineArgs, EngineDeviceRef, Override
from moerun.engine.llama import LlamaEngine
from moerun.machine.description import HOST, DeviceId
from moerun.model.gguf_header import read_model
from moerun.planning.fixed_charges import FORMULA_FRACTIONS, Work, compute, shapes
from moerun.planning.plan import ChargeKind
from moerun.planning.strategy import Strategy, Toggle
from tests.engine.builders import arguments, device_references
from tests.real_shapes import write_sparse_gguf

pytestmark = pytest.mark.engine

MODELS = ("qwen3-30b-a3b-q4_k_m", "gpt-oss-20b-mxfp4", "mixtral-8x7b-q4_k_m", "deepseek-v3-q4_k_m")
EVERYTHING = Work.LAYERS | Work.EXPERTS | Work.OUTPUT
TOO_LITTLE, TOO_MUCH = FORMULA_FRACTIONS
STRATEGY = Strategy()


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("headers")

    @cache
    def write(name: str) -> Path:
        return write_sparse_gguf(folder / f"{name}.gguf", name)

    return write


@pytest.fixture(scope="module")
def device(two_workers: tuple[str, str]) -> tuple[EngineDeviceRef, str]:
    address = two_workers[0]
    (reference,) = device_references((address,))
    return reference, address


def measured(args: EngineArgs, place: DeviceId) -> int:
    size = LlamaEngine(log_sink=None).measure(args).size_bytes(place, ChargeKind.COMPUTE)
    assert size is not None
    return size


def check(
    path: Path, args: EngineArgs, place: DeviceId, work: Work, *, is_pipelined: bool = False
) -> None:
    strategy = replace(
        STRATEGY, ubatch_tokens=args.ubatch_tokens, flash_attention=args.flash_attention
    )
    formula = compute(
        shapes(read_model(path)),
        strategy,
        context_tokens=args.context_tokens,
        work=work,
        is_pipelined=is_pipelined,
    )
    real = measured(args, place)
    assert TOO_LITTLE * real <= formula.size_bytes <= TOO_MUCH * real, (place, work)


def on_the_cpu(path: Path, **changes: object) -> EngineArgs:
    return arguments(
        path, **{"context_tokens": 8192, "batch_tokens": 2048, "ubatch_tokens": 512, **changes}
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_cpu_that_computes_everything(name: str, file_of: Callable[[str], Path]):
    path = file_of(name)
    check(path, on_the_cpu(path), HOST, EVERYTHING)
    check(path, on_the_cpu(path, flash_attention=Toggle.OFF), HOST, EVERYTHING)
    check(path, on_the_cpu(path, ubatch_tokens=128, context_tokens=32768), HOST, EVERYTHING)


@pytest.mark.parametrize("name", MODELS)
def test_a_device_that_computes_everything_and_a_host_that_only_has_the_inputs(
    name: str, file_of: Callable[[str], Path], device: tuple[EngineDeviceRef, str]
):
    path, (reference, address) = file_of(name), device
    args = on_the_cpu(path, devices=(reference,), workers=(address,), n_gpu_layers=999)
    check(path, args, reference.id, EVERYTHING)
    check(path, args, HOST, Work.INPUTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_host_that_computes_the_experts(
    name: str, file_of: Callable[[str], Path], device: tuple[EngineDeviceRef, str]
):
    path, (reference, address) = file_of(name), device
    experts = (Override(pattern=r"_exps\.", device=HOST),)
    args = on_the_cpu(
        path, devices=(reference,), workers=(address,), n_gpu_layers=999, overrides=experts
    )
    check(path, args, HOST, Work.EXPERTS)


@pytest.mark.parametrize("name", MODELS)
def test_two_devices_that_work_in_turn_keep_their_inputs_several_times(
    name: str, file_of: Callable[[str], Path], two_workers: tuple[str, str]
):
    path, references = file_of(name), device_references(two_workers)
    args = on_the_cpu(path, devices=references, workers=two_workers, n_gpu_layers=999)
    check(path, args, references[0].id, Work.LAYERS | Work.EXPERTS, is_pipelined=True)
    check(path, args, references[1].id, EVERYTHING, is_pipelined=True)
    check(path, args, HOST, Work.INPUTS, is_pipelined=True)
