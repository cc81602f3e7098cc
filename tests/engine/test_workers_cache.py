"""The cache of a worker: weights are sent once, and what is not whole is never used."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineDeviceRef
from moerun.engine.interface import GenerationRequest, Sampling
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.machine.description import DeviceId
from moerun.machine.workers import parse_worker
from moerun.runner.parent import Runner
from moerun.units import MIB
from moerun.worker.side_client import ask_offer, open_side_channel
from moerun.worker.survey import ask_one
from tests.engine.placements import ALL_LAYERS, on_the_host
from tests.engine.plain import Settings
from tests.engine.serving import RunningWorker, running_worker

pytestmark = pytest.mark.engine

SHAPE = TinyShape(layers=1, width=512, expert_width=2560, experts=8)
CACHED = 3  # tensors of more than 10 MiB
REQUEST = GenerationRequest(prompt="w280", sampling=Sampling(temperature=0), maximum_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cached") / "tiny.gguf"
    write_tiny_moe(path, shape=SHAPE, expert_encoding="Q8_0")
    return path


def answer(model: Path, worker: RunningWorker | None, folder: Path) -> str:
    args = on_the_host(model, Settings(ubatch_tokens=64))
    if worker is not None:
        device = EngineDeviceRef(id=DeviceId(f"gpu:RPC0[{worker.endpoint}]"), engine_name="RPC0")
        args = replace(args, devices=(device,), workers=(worker.endpoint,), n_gpu_layers=ALL_LAYERS)
    pieces: list[str] = []
    with Runner(log_folder=folder) as runner:
        runner.load(args)
        runner.generate(REQUEST, on_text=pieces.append)
    return "".join(pieces)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never came to be")


def settled(cache: Path) -> list[str]:
    try:
        return [name for name, *_ in json.loads((cache / "whole.json").read_text())["files"]]
    except (OSError, ValueError):
        return []


def is_idle(worker: RunningWorker) -> bool:
    with open_side_channel(worker.address, within_s=5) as side:
        return not ask_offer(side, within_s=5).is_busy


def test_weights_are_sent_once_and_used_only_when_whole(model: Path, tmp_path: Path):
    expected = answer(model, None, tmp_path)
    cache = tmp_path / "cache"
    with running_worker(cache=cache) as worker:
        assert answer(model, worker, tmp_path) == expected
        wait_for(lambda: len(settled(cache)) == CACHED)
        written = {file.name: file.stat().st_mtime_ns for file in cache.glob("?" * 16)}
        assert answer(model, worker, tmp_path) == expected
        wait_for(lambda: is_idle(worker))
        again = {file.name: file.stat().st_mtime_ns for file in cache.glob("?" * 16)}
        assert again == written
    cut = cache / settled(cache)[0]
    cut.write_bytes(cut.read_bytes()[:MIB])
    with running_worker(cache=cache) as worker:
        assert not cut.exists()
        assert answer(model, worker, tmp_path) == expected
        wait_for(lambda: cut.exists() and cut.stat().st_size > MIB)


def test_a_worker_says_what_it_is_and_keeps_to_its_limit():
    with running_worker(memory_bytes=300 * MIB, threads=3) as worker:
        address = parse_worker(f"{worker.endpoint}=200M")
        found = ask_one(address, engine_version="0.3.36")
        assert found.offer is not None
        assert found.offer.threads == 3
        assert found.offer.engine_version.startswith("0.3.36")
        assert not found.offer.has_cache
        (device,) = found.devices
        assert device.free_bytes == device.total_bytes == 300 * MIB
        assert found.offer.devices == found.devices
        assert found.link is not None
        assert found.link.latency_s > 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_without_a_limit_a_processor_lends_what_is_free():
    with running_worker() as worker:
        (device,) = ask_one(worker.address, engine_version=None).devices
    available_bytes = 1024 * int(
        next(
            line.split()[1]
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable")
        )
    )
    assert 0 < device.free_bytes < available_bytes * 1.1  # which others use meanwhile
