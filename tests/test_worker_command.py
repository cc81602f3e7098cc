"""`moerun worker` on a command line: what it refuses, before anything is lent."""

import socket

import pytest

from moerun.cli.app import main
from moerun.machine.description import GpuBackend
from moerun.machine.workers import LentDevice, Worker, parse_worker, with_workers
from moerun.planning.plan import ChargeKind
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from moerun.units import MIB
from tests.builders import a_machine, a_model
from tests.engine.serving import free_port_pair, running_worker


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen", "nowhere"], "not the address of a worker"),
        (["--listen", "127.0.0.1:65535"], "not the address of a worker"),
        (["--listen", "[::1]:5"], "IPv4 only"),
        (["--listen", "127.0.0.1:50052=8G"], "give it to --memory"),
        (["--memory", "much"], "--memory: 'much' is not a size"),
        (["--memory", "8"], "--memory: '8' means 8 bytes"),
        (["--cache-size", "-1"], "--cache-size: '-1' is not a size"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_what_cannot_be_lent_is_a_sentence(arguments: list[str], why: str, capsys):
    assert main(["worker", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert why in err
    assert "Traceback" not in err


@pytest.mark.engine
def test_a_port_that_is_taken_is_a_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        side_port = taken.getsockname()[1]
        assert main(["worker", "--listen", f"127.0.0.1:{side_port - 1}", "--no-cache"]) == 6
    assert f"could not listen at 127.0.0.1:{side_port}" in capsys.readouterr().err


@pytest.mark.engine
def test_a_worker_that_is_there_already_is_not_taken_for_the_new_one(capsys, monkeypatch, tmp_path):
    """Its side channel answers at the very port, but for another instance."""
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    with running_worker() as worker:
        assert main(["worker", "--listen", worker.endpoint, "--no-cache"]) == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert f"could not listen at 127.0.0.1:{worker.address.side_port}" in err
    assert "Lending" not in err
    assert "Fatal" not in err


@pytest.mark.engine
def test_a_port_of_the_engine_that_is_taken_is_told_with_the_reason(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port_pair()))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["worker", "--listen", f"127.0.0.1:{port}", "--no-cache"]) == 6
    assert f"could not listen at 127.0.0.1:{port}: Address already in use." in (
        capsys.readouterr().err
    )


@pytest.mark.engine
def test_a_device_that_is_none_is_a_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    assert main(["worker", "--listen", "50952", "--device", "CUDA9", "--no-cache"]) == 6
    assert "no device 'CUDA9'; it lists CPU" in capsys.readouterr().err


def test_of_what_is_lent_a_sixteenth_stays_free():
    """The margin of a card would leave nothing of a worker that lends as much as that."""
    lent = LentDevice(name="RAM", free_bytes=512 * MIB, total_bytes=512 * MIB)
    worker = Worker(address=parse_worker("a:1"), devices=(lent,))
    machine = with_workers(a_machine(), (worker,))
    plan = plan_placement(a_model(), machine, Strategy(context_tokens=512))
    (gpu,) = machine.gpus
    assert gpu.backend is GpuBackend.RPC
    assert plan.devices == (gpu.id,)
    assert plan.ledger.kind_bytes(gpu.id, ChargeKind.MARGIN) == 32 * MIB
