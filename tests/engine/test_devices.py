"""Devices and workers, listed here and from a child process."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.engine.arguments import EngineDeviceRef
from moerun.engine.child_probe import probe_engine
from moerun.engine.children import child_environment, module_command
from moerun.engine.devices import buffer_type_names, device_pointers, list_devices
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.workers import greet_worker, reach_worker, split_address
from moerun.errors import EngineRefused, UsageError
from moerun.machine.description import DeviceId, EngineDeviceKind
from moerun.units import MIB
from tests.engine.builders import device_references

pytestmark = pytest.mark.engine


def test_the_processor_is_listed():
    processors = [d for d in list_devices() if d.kind is EngineDeviceKind.CPU]
    assert len(processors) == 1
    assert processors[0].name == "CPU"
    assert processors[0].total_bytes > 0


def test_workers_are_devices_with_the_memory_they_report():
    with loopback_worker() as large, loopback_worker(256 * MIB) as small:
        devices = [d for d in list_devices((large, small)) if d.description in (large, small)]
        assert [d.registry for d in devices] == ["RPC", "RPC"]
        assert [d.kind for d in devices] == [EngineDeviceKind.GPU] * 2
        assert devices[1].total_bytes == devices[1].free_bytes == 256 * MIB
        assert devices[0].total_bytes > 256 * MIB
        references = device_references((large, small))
        assert set(buffer_type_names(references)) == {f"RPC0[{large}]", f"RPC0[{small}]"}


def test_a_worker_that_ended_is_met_with_a_sentence():
    """The engine itself would abort the process."""
    with loopback_worker() as worker:
        references = device_references((worker,))
        assert len(references) == 1
    with pytest.raises(EngineRefused, match="cannot be reached"):
        list_devices((worker,))
    assert worker not in [d.description for d in list_devices()]
    assert len(device_pointers(references)) == 1


def test_a_child_lists_the_same():
    with loopback_worker(64 * MIB) as worker:
        probe = probe_engine(timeout_s=60, workers=(worker,))
    assert probe.has_rpc
    assert "CPU" in probe.build
    assert [d.description for d in probe.devices if d.registry == "RPC"] == [worker]


def test_the_working_folder_provides_no_modules(tmp_path: Path):
    """Somebody else's folder must not run code because moerun was started there."""
    for name in ("llama_cpp", "moerun", "gguf", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')")
    program = (
        "from moerun.engine.child_probe import probe_engine; probe_engine(); "
        "from moerun.engine.self_check import run_self_check; check = run_self_check(); "
        "assert check.is_sound, check"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_a_child_refuses_arrives_as_the_same_error():
    with pytest.raises(EngineRefused, match="cannot be reached"):
        probe_engine(timeout_s=60, workers=("127.0.0.1:1",))


def test_a_device_that_is_gone_is_named():
    gone = EngineDeviceRef(id=DeviceId("gpu:0000:99:00.0"), engine_name="CUDA9")
    with pytest.raises(EngineRefused, match=r"gpu:0000:99:00.0 \(CUDA9\)"):
        device_pointers((gone,))


@pytest.mark.parametrize("address", ["", "here", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_addresses_that_are_none(address: str):
    with pytest.raises(UsageError, match="host:port"):
        split_address(address)
    assert split_address("::1:50052") == ("::1", 50052)


def test_a_server_of_another_kind_is_refused_in_words():
    web = b"HTTP/1.1 400 Bad Request, and go away\r\n\r\n"
    with answering(web) as address, pytest.raises(EngineRefused, match="protocol"):
        greet_worker(address, timeout_s=5)
    with answering(b"no") as address, pytest.raises(EngineRefused, match="not an RPC worker"):
        greet_worker(address, timeout_s=5)


def test_a_worker_that_is_busy_does_not_hang_the_engine():
    with (
        loopback_worker() as worker,
        socket.create_connection(split_address(worker)),
        pytest.raises(EngineRefused, match="did not answer within"),
    ):
        greet_worker(worker, timeout_s=0.5)
    with pytest.raises(EngineRefused, match="cannot be reached"):
        greet_worker(worker, timeout_s=5)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_ends_with_the_program_that_started_it():
    program = (
        "import time; from moerun.engine.rpc_worker import loopback_worker\n"
        "with loopback_worker() as address: print(address, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    address = parent.stdout.readline().strip()
    greet_worker(address)
    parent.kill()
    parent.communicate()
    for _ in range(1200):
        try:
            reach_worker(address)
        except EngineRefused:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker still listens")


def test_a_worker_that_cannot_start_says_why():
    with loopback_worker() as taken:
        done = subprocess.run(
            module_command("moerun.engine.rpc_worker", taken),
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == EngineRefused.exit_code
    assert f"Error: The worker could not listen at {taken}." in done.stderr


@contextlib.contextmanager
def answering(text: bytes) -> Iterator[str]:
    """Listen on a free port and answer one client with the text."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()
