"""Workers that die, freeze or are cut off in mid-answer: an error in time, and no wrong token.

Each is done once here and ten times when slow tests are asked for.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.cli.open_model import opened_model
from moerun.cli.options import PlacementFlags
from moerun.engine.arguments import EngineArgs, EngineDeviceRef
from moerun.engine.interface import GenerationRequest, Sampling
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.errors import WorkerLost
from moerun.machine.description import DeviceId
from moerun.machine.probe import this_host
from moerun.runner.parent import Runner
from moerun.worker.connections import PATIENCE_S
from moerun.worker.link_records import LinkRecords
from tests.engine.placements import on_the_host
from tests.engine.plain import Settings
from tests.engine.serving import (
    Network,
    RunningWorker,
    has_networks,
    plain_worker,
    running_worker,
    worker_in,
)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

LAYERS_THERE = 3  # of four and the output; a token begins here and ends there
MOST_S = 10.0  # from the loss to the sentence
REQUEST = GenerationRequest(prompt="w300", sampling=Sampling(temperature=0), maximum_tokens=900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lost") / "tiny.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=4))
    return path


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the whole answer of one process without workers."""
    pieces: list[str] = []
    with Runner(log_folder=tmp_path_factory.mktemp("logs")) as runner:
        runner.load(arguments(model, None))
        runner.generate(REQUEST, on_text=pieces.append)
    return "".join(pieces)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if not has_networks():
        pytest.skip("network namespaces take root on Linux and the tool `ip`")
    network = Network()
    network.open()
    yield network
    network.close()


def arguments(model: Path, worker: RunningWorker | None) -> EngineArgs:
    settings = Settings(context_tokens=4096, ubatch_tokens=64)
    args = on_the_host(model, settings)
    if worker is None:
        return args
    device = EngineDeviceRef(id=DeviceId(f"gpu:RPC0[{worker.endpoint}]"), engine_name="RPC0")
    return replace(args, devices=(device,), workers=(worker.endpoint,), n_gpu_layers=LAYERS_THERE)


def lose(
    model: Path,
    worker: RunningWorker,
    folder: Path,
    harm: Callable[[], None],
    *,
    patience_s: float = PATIENCE_S,
) -> tuple[WorkerLost, str, float]:
    """Answer on a worker, do it harm in mid-answer; return error, text, and seconds since."""
    pieces: list[str] = []
    harmed_s: list[float] = []
    ready = threading.Event()

    def receive(text: str) -> None:
        pieces.append(text)
        if len(pieces) > 20:
            ready.set()

    def do_harm() -> None:
        ready.wait(60)
        harm()
        harmed_s.append(time.monotonic())

    with Runner(log_folder=folder, patience_s=patience_s) as runner:
        runner.load(arguments(model, worker))
        thread = threading.Thread(target=do_harm)
        thread.start()
        with pytest.raises(WorkerLost) as caught:
            runner.generate(REQUEST, on_text=receive)
        took_s = time.monotonic() - harmed_s[0]
        thread.join()
    return caught.value, "".join(pieces), took_s


def check(lost: tuple[WorkerLost, str, float], worker: RunningWorker, reference: str) -> float:
    error, text, took_s = lost
    assert f"The worker at {worker.endpoint} was lost while the runner answered" in error.message
    assert text
    assert text != reference
    assert reference.startswith(text)  # never a wrong token
    assert took_s < MOST_S
    return took_s


def killed(model: Path, folder: Path, reference: str) -> float:
    with running_worker() as worker:
        lost = lose(model, worker, folder, lambda: os.kill(worker.pid, signal.SIGKILL))
        return check(lost, worker, reference)


def frozen(model: Path, folder: Path, reference: str) -> float:
    with running_worker() as worker:
        lost = lose(model, worker, folder, lambda: os.kill(worker.pid, signal.SIGSTOP))
        return check(lost, worker, reference)


def cut_off(model: Path, folder: Path, reference: str, network: Network) -> float:
    with worker_in(network) as worker, contextlib.ExitStack() as mending:

        def cut() -> None:
            network.drop_packets()
            mending.callback(network.mend)

        return check(lose(model, worker, folder, cut), worker, reference)


def test_a_worker_that_is_killed(model: Path, tmp_path: Path, reference: str):
    killed(model, tmp_path, reference)


def test_a_worker_that_freezes(model: Path, tmp_path: Path, reference: str):
    frozen(model, tmp_path, reference)


def test_a_worker_that_is_cut_off(model: Path, tmp_path: Path, reference: str, network: Network):
    cut_off(model, tmp_path, reference, network)


# The engine's own server has no side channel: its connection is watched from within.


def test_a_plain_server_that_is_killed(model: Path, tmp_path: Path, reference: str):
    with plain_worker() as worker:
        lost = lose(model, worker, tmp_path, lambda: os.kill(worker.pid, signal.SIGKILL))
        check(lost, worker, reference)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells since when it is silent")
def test_a_plain_server_that_freezes(model: Path, tmp_path: Path, reference: str):
    with plain_worker() as worker:
        freeze = lambda: os.kill(worker.pid, signal.SIGSTOP)  # noqa: E731
        check(lose(model, worker, tmp_path, freeze, patience_s=3), worker, reference)


def test_a_plain_server_that_is_cut_off(
    model: Path, tmp_path: Path, reference: str, network: Network
):
    with plain_worker(network) as worker, contextlib.ExitStack() as mending:

        def cut() -> None:
            network.drop_packets()
            mending.callback(network.mend)

        check(lose(model, worker, tmp_path, cut), worker, reference)


def test_a_plain_server_that_nobody_waits_for_may_be_silent(model: Path, tmp_path: Path):
    """Between two answers nothing is sent for longer than the patience."""
    with plain_worker() as worker, Runner(log_folder=tmp_path, patience_s=1) as runner:
        runner.load(arguments(model, worker))
        few = replace(REQUEST, maximum_tokens=5)
        first: list[str] = []
        second: list[str] = []
        runner.generate(few, on_text=first.append)
        time.sleep(3)
        runner.generate(few, on_text=second.append)
        assert first == second != []


def test_the_next_answer_is_made_without_the_worker(model: Path, monkeypatch, tmp_path: Path):
    """A conversation goes on: the model is placed anew on what is left."""
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # RAM so slow that a worker is worth its way, whatever else this machine does now
    LinkRecords(tmp_path).memory_rate(this_host().physical_cores, lambda threads: 1e6)
    request = replace(REQUEST, maximum_tokens=20)
    answers: list[list[str]] = [[], [], []]
    with running_worker() as worker:
        given = {"workers": worker.endpoint, "extra_buffers": "off", "threads": "1"}
        flags = PlacementFlags(settings=tuple(given.items()))
        with opened_model(str(model), flags, is_quiet=True) as opened:
            opened.runner.generate(request, on_text=answers[0].append)
            assert opened.loaded.plan.devices
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                opened.runner.generate(request, on_text=answers[1].append)
            assert not opened.runner.is_alive  # by which a conversation knows that it must
            opened.load_again()
            opened.runner.generate(request, on_text=answers[2].append)
            assert opened.loaded.plan.devices == ()
    assert answers[1] == []
    assert "".join(answers[0]) == "".join(answers[2]) != ""


@pytest.mark.slow
def test_ten_times_each(
    model: Path, tmp_path: Path, reference: str, network: Network, capsys: pytest.CaptureFixture
):
    ways = {
        "killed": lambda: killed(model, tmp_path, reference),
        "frozen": lambda: frozen(model, tmp_path, reference),
        "cut off": lambda: cut_off(model, tmp_path, reference, network),
    }
    for name, way in ways.items():
        times = [way() for _ in range(10)]
        with capsys.disabled():
            sys.stdout.write(
                f"\n{name}: a clear error after {min(times):.1f} to {max(times):.1f} s, 10 of 10\n"
            )
