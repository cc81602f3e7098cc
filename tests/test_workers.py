"""Addresses, offers and links of workers as values; the side channel without an engine."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.codec import to_plain
from moerun.errors import EngineMismatch, EngineRefused, UsageError
from moerun.machine.workers import (
    LentDevice,
    LinkRate,
    Worker,
    WorkerAddress,
    WorkerOffer,
    gpus_of,
    notes_of,
    parse_worker,
    with_workers,
)
from moerun.units import GIB, MIB
from moerun.worker.link_records import LinkRecords
from moerun.worker.look import with_known_rate
from moerun.worker.side_client import (
    NoSideChannel,
    ask_beat,
    ask_offer,
    measure_link,
    open_side_channel,
)
from moerun.worker.side_lines import LONGEST_LINE_BYTES, SideChannelError
from moerun.worker.side_service import SideService
from moerun.worker.survey import Patience, ask_one, survey_workers, without_doubles
from moerun.worker.watch import Loss, WorkerWatch
from moerun.worker.weight_cache import WeightCache
from tests.builders import a_gpu, a_machine

HASTE = Patience(side_s=0.3, greeting_s=0.4, puts_away_s=0.05)
DEVICE = LentDevice(name="A card", free_bytes=6 * GIB, total_bytes=8 * GIB)
OFFER = WorkerOffer(
    instance="one",
    moerun_version="0.1.0",
    engine_version="0.3.36",
    system="Linux",
    processor="x86_64",
    threads=4,
    devices=(DEVICE,),
    is_busy=False,
    has_cache=True,
)


def test_an_address_may_carry_a_limit():
    assert parse_worker("10.0.0.2:50052") == WorkerAddress(host="10.0.0.2", port=50052)
    limited = parse_worker(" box:7 = 8G ")
    assert (limited.endpoint, limited.limit_bytes, limited.side_port) == ("box:7", 8 * GIB, 8)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("here", "host:port"),
        (":1", "host:port"),
        ("a:0", "host:port"),
        ("a:65535", "host:port"),
        ("a:1=", "not a size"),
        ("a:1=much", "not a size"),
        ("a:1=0", "nothing is used"),
        ("[::1]:5", "IPv4 only"),
    ],
)
def test_addresses_that_are_none(text: str, why: str):
    with pytest.raises(UsageError, match=why):
        parse_worker(text)


def a_worker(**changes: object) -> Worker:
    address = parse_worker("10.0.0.2:50052")
    worker = Worker(address=address, devices=(DEVICE, DEVICE), offer=OFFER)
    return replace(worker, **changes)  # type: ignore[arg-type]


def test_lent_devices_come_after_the_own_within_the_limit():
    link = LinkRate(latency_s=0.001, send_bytes_per_s=1e8, measured_at_s=1.0)
    worker = a_worker(address=parse_worker("10.0.0.2:50052=7G"), link=link)
    machine = with_workers(a_machine(gpus=[100]), (worker,))
    own, first, second = machine.gpus
    assert not own.is_remote
    assert first.is_remote
    assert [first.id, second.id] == ["gpu:RPC0[10.0.0.2:50052]", "gpu:RPC1[10.0.0.2:50052]"]
    assert (first.total_bytes, first.free_bytes) == (7 * GIB, 6 * GIB)
    assert (first.link_bytes_per_s, first.link_latency_s) == (1e8, 0.001)


def test_a_worker_without_memory_lends_no_device():
    empty = LentDevice(name="x", free_bytes=0, total_bytes=0)
    assert gpus_of(a_worker(devices=(empty,))) == ()


def test_what_somebody_should_know_of_a_worker():
    assert notes_of(a_worker()) == ()
    assert "no side channel" in notes_of(a_worker(offer=None))[0]
    short = notes_of(a_worker(address=parse_worker("10.0.0.2:50052=9G"), devices=(DEVICE,)))
    assert "lends 8.0 GiB of A card, less than the 9.0 GiB" in short[0]


@contextlib.contextmanager
def side_service(offer: WorkerOffer = OFFER) -> Iterator[WorkerAddress]:
    """Yield the address of the worker that the service would belong to."""
    service = SideService("127.0.0.1", 0, instance=offer.instance, offer=lambda: offer)
    service.start()
    try:
        yield WorkerAddress(host="127.0.0.1", port=service.port - 1)
    finally:
        service.close()


def test_the_side_channel_tells_an_offer_lives_and_is_timed():
    with side_service() as address, open_side_channel(address, within_s=5) as side:
        assert ask_offer(side, within_s=5) == OFFER
        assert ask_beat(side, within_s=5) == "one"
        link = measure_link(side)
        assert 0 < link.latency_s < 3
        assert link.send_bytes_per_s > MIB


@pytest.mark.parametrize(
    "question", [b"nonsense\n", b"[]\n", b'{"ask": "rm"}\n', b'{"ask":"take","size_bytes":-1}\n',
                 b'{"ask":"take","size_bytes":99999999999}\n', b"x" * (LONGEST_LINE_BYTES + 1)]
)  # fmt: skip
def test_who_asks_nonsense_is_left_and_others_are_served(question: bytes):
    with side_service() as address:
        with socket.create_connection((address.host, address.side_port), timeout=5) as rude:
            rude.sendall(question)
            with contextlib.suppress(ConnectionResetError):
                assert rude.recv(64) == b""
        with open_side_channel(address, within_s=5) as side:
            assert ask_beat(side, within_s=5) == "one"


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a free port and serve each that connects, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    time.sleep(20)


def babbling(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"\xff\x00garbage" * 1000)


def trickling(connection: socket.socket) -> None:
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)


def lying(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b'{"schema": 1, "offer": {"instance": 5}}\n')


def newer(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b'{"schema": 2, "offer": {}}\n')


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (silent, "no answer within 0.3 s"),
        (trickling, "no answer within 0.3 s"),
        (babbling, "no protocol of ours"),
        (lying, "describes itself in another way"),
        (newer, "another version"),
        (lambda connection: None, "closed the connection|broke"),
    ],
)
def test_a_strange_side_channel_ends_in_a_sentence(serve: Callable, why: str):
    with listener(serve) as port:
        address = WorkerAddress(host="127.0.0.1", port=port - 1)
        with pytest.raises(EngineRefused, match=why):
            ask_one(address, engine_version="0.3.36", patience=HASTE)


@pytest.mark.parametrize(
    ("serve", "why"),
    [(silent, "did not answer within 0.4 s"), (trickling, "did not answer within 0.4 s"),
     (babbling, "not an RPC worker"), (lambda connection: None, "not an RPC worker|reached")],
)  # fmt: skip
def test_a_strange_engine_ends_in_a_sentence(serve: Callable, why: str):
    with listener(serve) as port:
        survey = survey_workers(
            (WorkerAddress(host="127.0.0.1", port=port),),
            engine_version="0.3.36",
            patience=HASTE,
        )
    assert survey.workers == ()
    (refusal,) = survey.refusals
    assert any(part in refusal for part in why.split("|")), refusal


def test_versions_are_compared_before_the_engine_is_met():
    other = replace(OFFER, engine_version="0.3.35")
    with side_service(other) as address, pytest.raises(EngineMismatch, match=r"0\.3\.35.*0\.3\.36"):
        ask_one(address, engine_version="0.3.36+cu124")


def test_a_worker_under_two_names_is_counted_once():
    kept = without_doubles(
        [
            a_worker(),
            "somebody who did not answer",
            a_worker(address=parse_worker("box:50052")),
            a_worker(address=parse_worker("other:1"), offer=replace(OFFER, instance="two")),
            a_worker(address=parse_worker("plain:1"), offer=None),
        ]
    )
    assert [isinstance(each, Worker) for each in kept] == [True, False, False, True, True]
    assert kept[2] == "The worker at box:50052 is the one at 10.0.0.2:50052, which is used"


def test_a_worker_that_serves_another_program_says_so():
    busy = side_service(replace(OFFER, is_busy=True))
    with busy as address, pytest.raises(EngineRefused, match="serves another program"):
        ask_one(address, engine_version="0.3.36", patience=HASTE)


def test_no_side_channel_is_known_from_a_broken_one():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    with pytest.raises(NoSideChannel):
        open_side_channel(WorkerAddress(host="127.0.0.1", port=port - 1), within_s=2)


def test_a_watch_tells_of_silence_once():
    losses: list[Loss] = []
    with side_service() as address:
        quiet = threading.Event()

        def half(connection: socket.socket) -> None:
            connection.recv(1 << 10)
            connection.sendall(b'{"beat": "one"}\n')
            quiet.wait(10)

        with listener(half) as port:
            dumb = WorkerAddress(host="127.0.0.1", port=port - 1)
            endpoints = (address.endpoint, dumb.endpoint)
            watch = WorkerWatch(endpoints, losses.append, beat_s=0.01, silence_s=0.3)
            watch.start()
            assert watch.loss(within_s=10) == Loss(
                address=dumb.endpoint, why="it gave no answer within 0.3 s"
            )
            watch.stop()
            quiet.set()
    assert len(losses) <= 1


def test_a_watch_that_was_stopped_tells_nothing():
    losses: list[Loss] = []
    with side_service() as address:
        watch = WorkerWatch((address.endpoint,), losses.append, beat_s=0.01, silence_s=1)
        watch.start()
        watch.stop()
    assert watch.loss(within_s=0.1) is None
    assert losses == []


def test_another_instance_is_another_worker():
    losses: list[Loss] = []
    beats = iter(("one", "two"))

    def changing(connection: socket.socket) -> None:
        for beat in beats:
            connection.recv(1 << 10)
            connection.sendall(json.dumps({"beat": beat}).encode() + b"\n")

    with listener(changing) as port:
        address = WorkerAddress(host="127.0.0.1", port=port - 1)
        watch = WorkerWatch((address.endpoint,), losses.append, beat_s=0.01, silence_s=2)
        watch.start()
        loss = watch.loss(within_s=10)
        watch.stop()
    assert loss is not None
    assert loss.why == "it was started anew"


def test_links_are_kept_for_a_day(tmp_path: Path):
    link = LinkRate(latency_s=0.001, send_bytes_per_s=1e8, measured_at_s=1000.0)
    worker = a_worker(link=link)
    LinkRecords(tmp_path, clock=lambda: 1000.0).keep((worker,))
    soon = LinkRecords(tmp_path, clock=lambda: 1000.0 + 3600)
    assert soon.recall(worker.address, OFFER) == link
    assert soon.recall(parse_worker("10.0.0.3:50052"), OFFER) is None
    assert soon.recall(worker.address, replace(OFFER, system="Darwin")) is None
    assert LinkRecords(tmp_path, clock=lambda: 90_000.0).recall(worker.address, OFFER) is None


def test_the_rate_of_memory_is_measured_once_a_day_for_each_number_of_threads(tmp_path: Path):
    measured: list[int] = []

    def measure(threads: int) -> float:
        measured.append(threads)
        return threads * 1e9

    def ask(threads: int, at_s: float) -> float:
        return LinkRecords(tmp_path, clock=lambda: at_s).memory_rate(threads, measure)

    assert [ask(2, 1000.0), ask(2, 2000.0), ask(4, 3000.0), ask(4, 100_000.0)] == [
        2e9,
        2e9,
        4e9,
        4e9,
    ]
    assert measured == [2, 4, 4]
    later = LinkRecords(tmp_path, clock=lambda: 100_001.0)
    assert later.known_memory_rate(4) == 4e9
    assert later.known_memory_rate(2) is None
    assert LinkRecords(tmp_path, clock=lambda: 200_000.0).known_memory_rate(4) is None


@pytest.mark.parametrize("rate", ["NaN", "-1.0", "0.0", "Infinity"])
def test_a_worker_that_tells_a_rate_of_no_memory_is_refused(rate: str):
    plain = json.dumps(to_plain(OFFER)).replace(
        '"memory_bandwidth_bytes_per_s": null', f'"memory_bandwidth_bytes_per_s": {rate}'
    )

    def tell(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(f'{{"schema": 1, "offer": {plain}}}\n'.encode())

    with listener(tell) as port:
        address = WorkerAddress(host="127.0.0.1", port=port - 1)
        with pytest.raises(EngineRefused, match="rates that no memory has"):
            ask_one(address, engine_version="0.3.36", patience=HASTE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 9}',
        '{"schema": 1, "links": {"a": 3}}',
        '{"schema": 1, "links": {}, "memory": {"threads": 2}}',
    ],
)
def test_records_that_cannot_be_read_are_none(tmp_path: Path, text: str):
    (tmp_path / "workers.json").write_text(text)
    records = LinkRecords(tmp_path)
    assert records.recall(parse_worker("a:1"), OFFER) is None


def test_a_cache_trusts_only_what_was_settled(tmp_path: Path):
    cache = WeightCache(tmp_path / "cache")
    cache.prepare()
    whole, cut = cache.folder / ("a" * 16), cache.folder / ("b" * 16)
    whole.write_bytes(b"whole")
    cache.settle(was_roomy=True)
    cut.write_bytes(b"cut off when the process ended")
    other = cache.folder / "notes.txt"
    other.write_text("not of the engine")
    WeightCache(cache.folder).prepare()
    assert whole.exists()
    assert not cut.exists()
    assert other.exists()
    whole.write_bytes(b"chan")
    WeightCache(cache.folder).prepare()
    assert not whole.exists()


def test_what_came_to_a_full_disk_is_removed(tmp_path: Path):
    cache = WeightCache(tmp_path)
    cache.prepare()
    (tmp_path / ("a" * 16)).write_bytes(b"1")
    cache.settle(was_roomy=True)
    (tmp_path / ("b" * 16)).write_bytes(b"2")
    cache.settle(was_roomy=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a" * 16, "whole.json"]


def test_a_cache_keeps_to_its_size(tmp_path: Path):
    cache = WeightCache(tmp_path, most_bytes=10)
    cache.prepare()
    for index, letter in enumerate("abc"):
        file = tmp_path / (letter * 16)
        file.write_bytes(b"12345")
        os.utime(file, ns=(index, index))
    cache.settle(was_roomy=True)
    assert sorted(file.name[0] for file in tmp_path.iterdir()) == ["b", "c", "w"]


def test_a_closed_connection_is_told_from_a_slow_one():
    with listener(lambda connection: None) as port:
        address = WorkerAddress(host="127.0.0.1", port=port - 1)
        with (
            open_side_channel(address, within_s=2) as side,
            pytest.raises(SideChannelError, match=r"closed|broke"),
        ):
            ask_beat(side, within_s=2)


def test_ram_that_was_measured_today_is_known_where_a_card_tells_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    plain = a_machine(gpus=[a_gpu()])
    card = replace(plain.gpus[0], memory_bandwidth_bytes_per_s=1e12, link_bytes_per_s=3e10)
    told = replace(plain, gpus=(card,))
    assert with_known_rate(told) == told  # nothing was measured yet
    LinkRecords(tmp_path).memory_rate(told.host.physical_cores, lambda threads: 4e10)
    assert with_known_rate(told).host.memory_bandwidth_bytes_per_s == 4e10
    assert with_known_rate(plain) == plain
    stated = replace(told, host=replace(told.host, memory_bandwidth_bytes_per_s=1e10))
    assert with_known_rate(stated) == stated
