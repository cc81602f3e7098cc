"""Watching connections to servers without a side channel, with sockets and no engine."""

import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from moerun.worker.connections import ConnectionWatch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the system tells since when a connection is silent"
)
PATIENCE_S = 1.0


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def watched(server: socket.socket, silences: list[str], heard: threading.Event, *, at_work: bool):
    def hear(endpoint: str, waited_s: float) -> None:
        assert waited_s > PATIENCE_S
        silences.append(endpoint)
        heard.set()

    watch = ConnectionWatch(
        (address_of(server),), is_at_work=lambda: at_work, on_silence=hear, patience_s=PATIENCE_S
    )
    watch.start()
    return watch


def test_a_connection_that_owes_an_answer_is_told(server: socket.socket):
    silences: list[str] = []
    heard = threading.Event()
    with socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            client.recv(5)
            time.sleep(0.05)  # a millisecond of its own, by the system's clock
            client.sendall(b"and now?")
            watch = watched(server, silences, heard, at_work=True)
            assert heard.wait(20)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            watch.stop()
    assert silences[0] == address_of(server)


@pytest.mark.parametrize("at_work", [False, True])
def test_silence_is_well_where_nothing_is_waited_for(server: socket.socket, at_work: bool):
    """Idle with a question under way, or at work with the answer there."""
    silences: list[str] = []
    heard = threading.Event()
    with socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"and now?")
            if at_work:
                time.sleep(0.05)
                accepted.sendall(b"here")
                client.recv(4)
            watch = watched(server, silences, heard, at_work=at_work)
            assert not heard.wait(2.5 * PATIENCE_S)
            watch.stop()
    assert silences == []
