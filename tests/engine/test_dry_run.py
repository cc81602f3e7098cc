"""The dry run against the real load: the same buffers, and nothing left behind."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineArgs, Override
from moerun.engine.dry_run import as_measured
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind
from moerun.planning.strategy import LoadMode
from tests.engine.builders import ENGINE, arguments, device_references

pytestmark = pytest.mark.engine

EXPERTS = Override(pattern=r"\.ffn_(gate|up|down|gate_up)_exps\.", device=HOST)
UNUSED = Override(pattern="no such tensor", device=HOST)
ROUNDING_BYTES = 3 * 5243  # each of up to three buffers of a kind is printed to 0.01 MiB


def compare(args: EngineArgs, *, allowed_bytes: int = ROUNDING_BYTES) -> None:
    """Hold each sum of the dry run to the real load's."""
    measured = Counter({(b.device, b.kind): b.size_bytes for b in ENGINE.measure(args).buffers})
    session = ENGINE.load(args)
    real = Counter({(b.device, b.kind): b.size_bytes for b in as_measured(session.report.buffers)})
    session.close()
    assert real
    assert set(measured) == set(real)
    for key, size_bytes in real.items():
        assert abs(measured[key] - size_bytes) <= allowed_bytes, key


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


@pytest.mark.parametrize(("overrides", "copies"), [((), 4), ((UNUSED,), 1)])
def test_all_on_two_devices_is_off_by_one_batch_of_activations_at_most(
    tmp_path: Path, overrides: tuple[Override, ...], copies: int
):
    """Overrides, even such as match nothing, turn pipelining off."""
    path = tmp_path / "wide.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=4, width=512, vocabulary=2000))
    with loopback_worker() as first, loopback_worker() as second:
        args = arguments(
            path,
            batch_tokens=256,
            ubatch_tokens=256,
            devices=device_references((first, second)),
            n_gpu_layers=99,
            tensor_split=(1.0, 1.0),
            overrides=overrides,
        )
        compare(args, allowed_bytes=ROUNDING_BYTES + copies * 512 * 256 * 4)


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
