"""Workers for tests: processes as `moerun worker` starts them, here or in a network apart.

Knows: free ports, and a network namespace whose packets can be dropped.
Does not know: what runs on a worker.
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moerun.engine.children import child_environment, module_command
from moerun.engine.workers import greet_worker
from moerun.errors import EngineError
from moerun.machine.workers import WorkerAddress
from moerun.worker.supervisor import WorkerProcess, WorkerWishes
from moerun.worker.survey import ask_one

NETWORK_HOST, NETWORK_WORKER = "10.203.7.1", "10.203.7.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningWorker:
    """A worker that answers."""

    address: WorkerAddress
    pid: int

    @property
    def endpoint(self) -> str:
        return self.address.endpoint


@contextlib.contextmanager
def running_worker(
    *, memory_bytes: int | None = None, threads: int = 1, cache: Path | None = None
) -> Iterator[RunningWorker]:
    """Start a worker over loopback and yield it once it answers."""
    address = WorkerAddress(host="127.0.0.1", port=free_port_pair())
    wishes = WorkerWishes(
        address=address,
        devices=("CPU",),
        limits_bytes=(memory_bytes,),
        threads=threads,
        cache_folder=str(cache) if cache is not None else None,
        cache_bytes=1 << 30,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerProcess(wishes, Path(folder) / "worker.log") as process,
    ):
        process.wait_until_ready()
        yield RunningWorker(address=address, pid=process.pid)


def free_port_pair() -> int:
    """Return a port that is free, as is the next one.

    Below those that systems give to outgoing connections, which would take one of them meanwhile.
    """
    for port in random.sample(range(20_000, 32_000, 2), 6_000):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports in a row are free")


class Network:
    """A network namespace with one cable to this one, whose packets can be dropped."""

    def __init__(self) -> None:
        self._name = f"moerun{os.getpid()}"
        self._here, self._there = f"mrh{os.getpid() % 10**9}"[:14], f"mrt{os.getpid() % 10**9}"[:14]

    def open(self) -> None:
        _ip("netns", "add", self._name)
        _ip("link", "add", self._here, "type", "veth", "peer", "name", self._there)
        _ip("link", "set", self._there, "netns", self._name)
        _ip("addr", "add", f"{NETWORK_HOST}/30", "dev", self._here)
        _ip("link", "set", self._here, "up")
        for words in (
            f"addr add {NETWORK_WORKER}/30 dev {self._there}",
            f"link set {self._there} up",
            "link set lo up",
        ):
            _ip("-n", self._name, *words.split())

    def close(self) -> None:
        subprocess.run(("ip", "netns", "del", self._name), capture_output=True, check=False)
        subprocess.run(("ip", "link", "del", self._here), capture_output=True, check=False)

    def drop_packets(self) -> None:
        """Let nothing that the worker sends arrive."""
        _ip("-n", self._name, "route", "add", "blackhole", f"{NETWORK_HOST}/32")

    def mend(self) -> None:
        _ip("-n", self._name, "route", "del", "blackhole", f"{NETWORK_HOST}/32")

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command as it runs within the network."""
        return ("ip", "netns", "exec", self._name, *command)


@contextlib.contextmanager
def worker_in(network: Network) -> Iterator[RunningWorker]:
    """Start a worker in a network of its own and yield it once it answers."""
    address = WorkerAddress(host=NETWORK_WORKER, port=50052)
    command = module_command("moerun.worker.process", address.endpoint, "--threads=1")
    child = subprocess.Popen(
        network.command(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    )
    try:
        for _ in range(600):
            try:
                ask_one(address, engine_version=None)
                break
            except EngineError:
                time.sleep(0.05)
        else:
            raise AssertionError("the worker in its network does not answer")
        yield RunningWorker(address=address, pid=child.pid)
    finally:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def plain_worker(network: Network | None = None) -> Iterator[RunningWorker]:
    """Start the engine's own server, without a side channel, here or in a network of its own."""
    host = "127.0.0.1" if network is None else NETWORK_WORKER
    address = WorkerAddress(host=host, port=free_port_pair())
    command = module_command(
        "moerun.engine.rpc_worker", address.endpoint, "--threads=1", "--until-stdin-closes"
    )
    child = subprocess.Popen(
        command if network is None else network.command(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    )
    try:
        for _ in range(600):
            with contextlib.suppress(EngineError):
                greet_worker(address.endpoint)
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the server does not answer")
        yield RunningWorker(address=address, pid=child.pid)
    finally:
        child.kill()
        child.communicate()


def has_networks() -> bool:
    """Whether network namespaces can be made here, which takes root on Linux."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    network = Network()
    try:
        network.open()
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        network.close()
    return True


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True)
