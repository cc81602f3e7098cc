"""The dry run against the real load: the same buffers, and nothing left behind."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineArgs, Override
from moerun.engine.dry_run import as_measured, measure_unaided
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind
from moerun.planning.strategy import LoadMode
from tests.engine.builders import ENGINE, arguments, device_references
from tests.engine.conftest import keeps_assignments

pytestmark = pytest.mark.engine

EXPERTS = Override(pattern=r"\.ffn_(gate|up|down|gate_up)_exps\.", device=HOST)
UNUSED = Override(pattern="no such tensor", device=HOST)
WIDTH, BATCH_TOKENS = 512, 256
ROUNDING_BYTES = 3 * 5243  # each of up to three buffers of a kind is printed to 0.01 MiB


def compare(args: EngineArgs) -> None:
    """Hold each sum of the dry run to the real load's."""
    measured = Counter({(b.device, b.kind): b.size_bytes for b in ENGINE.measure(args).buffers})
    real = loaded_sums(args)
    assert real
    assert set(measured) == set(real)
    for key, size_bytes in real.items():
        assert abs(measured[key] - size_bytes) <= ROUNDING_BYTES, key


def loaded_sums(args: EngineArgs) -> Counter:
    session = ENGINE.load(args)
    sums = Counter({(b.device, b.kind): b.size_bytes for b in as_measured(session.report.buffers)})
    session.close()
    return sums


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss", "granitehybrid"])
def test_on_the_processor(tiny_model, architecture: str):
    compare(arguments(tiny_model(architecture), ubatch_tokens=64))
    compare(arguments(tiny_model(architecture), ubatch_tokens=64, load_mode=LoadMode.COPY))


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "granitehybrid"])
def test_on_a_device_with_experts_on_the_host(tiny_model, architecture: str):
    with loopback_worker() as worker:
        devices = device_references((worker,))
        compare(
            arguments(
                tiny_model(architecture),
                ubatch_tokens=64,
                devices=devices,
                n_gpu_layers=99,
                overrides=(EXPERTS,),
            )
        )


def test_over_two_devices(tmp_path: Path):
    path = tmp_path / "wide.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=4, width=512, vocabulary=2000))
    with loopback_worker() as first, loopback_worker() as second:
        devices = device_references((first, second))
        args = arguments(
            path,
            batch_tokens=256,
            ubatch_tokens=256,
            devices=devices,
            n_gpu_layers=99,
            tensor_split=(1.0, 1.0),
            overrides=(EXPERTS,),
        )
        compare(args)
        measurements = ENGINE.measure(args)
    assert measurements.context_tokens == 512
    assert measurements.ubatch_tokens == 256
    assert measurements.engine_version == "0.3.36"
    # Five parts, the output among them: the first device gets three, the second two.
    assert dict(measurements.gpu_layers) == {devices[0].id: 3, devices[1].id: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Arguments for all of a model on two devices, and how many copies of its inputs they make."""

    args: EngineArgs
    copies: int


@pytest.fixture(params=[((), 4), ((UNUSED,), 1)], ids=["pipelined", "in turn"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipeline]:
    """Overrides, even such as match nothing, turn pipelining off."""
    overrides, copies = request.param
    path = tmp_path / "wide.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=4, width=WIDTH, vocabulary=2000))
    with loopback_worker() as first, loopback_worker() as second:
        args = arguments(
            path,
            batch_tokens=BATCH_TOKENS,
            ubatch_tokens=BATCH_TOKENS,
            devices=device_references((first, second)),
            n_gpu_layers=99,
            tensor_split=(1.0, 1.0),
            overrides=overrides,
        )
        yield Pipeline(args=args, copies=copies)


@keeps_assignments
def test_all_on_two_devices(pipeline: Pipeline):
    compare(pipeline.args)


def test_the_engine_alone_is_off_by_a_batch_of_hidden_states_in_each_copy(pipeline: Pipeline):
    """What is left where assignments cannot be kept, and why they are kept elsewhere."""
    alone = Counter(
        {(b.device, b.kind): b.size_bytes for b in measure_unaided(pipeline.args).buffers}
    )
    real = loaded_sums(pipeline.args)
    batch_bytes = WIDTH * BATCH_TOKENS * 4
    behind_the_border = (pipeline.args.devices[1].id, ChargeKind.COMPUTE)
    apart = {key: abs(alone[key] - size_bytes) for key, size_bytes in real.items()}

    assert apart[behind_the_border] > ROUNDING_BYTES
    assert apart[behind_the_border] <= pipeline.copies * batch_bytes + ROUNDING_BYTES
    assert max(apart[key] for key in apart if key != behind_the_border) <= ROUNDING_BYTES


def test_kv_is_what_the_formula_says(tiny_model):
    measurements = ENGINE.measure(arguments(tiny_model("qwen3moe"), context_tokens=4096))
    size_bytes = measurements.size_bytes(HOST, ChargeKind.KV_CACHE)
    assert size_bytes is not None
    assert size_bytes % (4096 * 2 * 2) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_weights_are_read_and_nothing_stays(tmp_path: Path):
    """Weights that are not there cannot be read: the file ends after its header."""
    path = tmp_path / "sparse.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=6, width=512, expert_width=512, experts=16))
    size = path.stat().st_size
    os.truncate(path, 200_000)
    os.truncate(path, size)  # zeroes from here on: an invalid model, but for its header
    for _ in range(3):
        assert ENGINE.measure(arguments(path, load_mode=LoadMode.STREAM)).buffers
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        assert "sparse.gguf" not in maps.read()
    assert not [fd for fd in os.listdir("/proc/self/fd") if _target(fd).endswith("sparse.gguf")]


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
