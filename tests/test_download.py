"""One file over loopback: whole and proven, or one sentence and nothing in its place."""

import errno
import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.errors import AccessDenied, NoRoom, PullError, Unreachable, WrongContent
from moerun.store import download as downloads
from moerun.store.download import download, kept_bytes_of, part_of, pieces_of
from moerun.store.http_connection import Patience
from moerun.store.remote_file import Digest, DigestKind, RemoteFile
from tests.servers.file_host import Fault, FileHost, Request

SIZE_BYTES = 9 * 2**20 + 12_345  # in pieces of 16 KiB
PATIENCE = Patience(connect_s=2, silence_s=0.7, tries=4, first_pause_s=0.01, longest_pause_s=0.05)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FileHost]:
    host = FileHost()
    with host.running():
        yield host


def a_file(host: FileHost, folder: Path, *, size_bytes: int = SIZE_BYTES, seed: int = 1):
    """Put a file of random bytes at the host and return how it is promised."""
    data = random.Random(seed).randbytes(size_bytes)
    path = folder / f"source-{seed}"
    path.write_bytes(data)
    host.files["file"] = path
    return RemoteFile(
        name="model.gguf",
        url=host.address("file"),
        size_bytes=size_bytes,
        digest=Digest(kind=DigestKind.SHA256, hexadecimal=hashlib.sha256(data).hexdigest()),
    )


def only_at(number: int, fault: Fault):
    """Return a fault of one request."""
    return lambda request: fault if request.number == number else None


def assert_whole(target: Path, file: RemoteFile) -> None:
    assert hashlib.sha256(target.read_bytes()).hexdigest() == file.digest.hexadecimal
    assert not part_of(target).exists()
    assert not pieces_of(target).exists()


@pytest.mark.parametrize("size_bytes", [0, 1, 16_384, 16_385, SIZE_BYTES])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_file_arrives_whole(host: FileHost, tmp_path: Path, size_bytes: int, connections: int):
    file = a_file(host, tmp_path, size_bytes=size_bytes)
    target = tmp_path / "store" / "blob"
    seen: list[int] = []
    fetched = download(file, target, patience=PATIENCE, connections=connections, watch=seen.append)
    assert_whole(target, file)
    assert fetched.fetched_bytes == size_bytes
    assert host.sent_bytes == size_bytes
    assert seen[-1] == size_bytes


def test_git_blobs_are_proven_by_their_own_digest(host: FileHost, tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes(b"hello\n")
    host.files["text"] = path
    # `git hash-object` of a file with that line
    digest = Digest(kind=DigestKind.GIT, hexadecimal="ce013625030ba8dba906f756967f9e9ca394464a")
    file = RemoteFile(name="text", url=host.address("text"), size_bytes=6, digest=digest)
    download(file, tmp_path / "blob", patience=PATIENCE)
    assert (tmp_path / "blob").read_bytes() == b"hello\n"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after_bytes=100_000),
        Fault(cut_after_bytes=0),
        Fault(status=500),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(flip_first_byte=True),
        Fault(cut_after_bytes=70_000, stall_s=1.0),
    ],
)
def test_what_passes_is_tried_again(host: FileHost, tmp_path: Path, fault: Fault):
    file = a_file(host, tmp_path)
    host.fault = only_at(1, fault)
    download(file, tmp_path / "blob", patience=PATIENCE)
    assert_whole(tmp_path / "blob", file)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(status=401), AccessDenied, "HF_TOKEN"),
        (Fault(status=403), AccessDenied, "does not give out model.gguf (403"),
        (Fault(status=404), WrongContent, "has no model.gguf (404"),
        (Fault(status=500), Unreachable, "not able to give model.gguf now (500"),
        (Fault(status=416), WrongContent, "fewer bytes of model.gguf"),
        (Fault(status=204), WrongContent, "204"),
        (Fault(cut_after_bytes=0), Unreachable, "ended the connection"),
        (Fault(flip_first_byte=True), WrongContent, "fetched twice"),
        (Fault(shifts_range=True), WrongContent, "sends others"),
        (Fault(extra_bytes=5), WrongContent, f"{SIZE_BYTES + 5:,} bytes"),
        (Fault(status=302, headers={"Location": "/file?sig=first"}), WrongContent, "without end"),
        (Fault(status=302, headers={"Location": "ftp://127.0.0.1/x"}), WrongContent, "no address"),
    ],
)
def test_what_does_not_pass_is_one_sentence_and_nothing_installed(
    host: FileHost, tmp_path: Path, fault: Fault, kind: type[PullError], words: str
):
    file = a_file(host, tmp_path)
    host.fault = lambda request: fault
    with pytest.raises(kind) as caught:
        download(file, tmp_path / "blob", patience=PATIENCE)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "blob").exists()


def test_a_wrong_whole_digest_is_fetched_once_more_and_leaves_nothing(
    host: FileHost, tmp_path: Path
):
    file = a_file(host, tmp_path)
    host.files["file"].write_bytes(random.Random(2).randbytes(SIZE_BYTES))
    with pytest.raises(WrongContent, match="fetched twice"):
        download(file, tmp_path / "blob", patience=PATIENCE)
    assert host.sent_bytes == 2 * SIZE_BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source-1"]


def test_a_host_without_ranges_is_read_from_the_beginning(host: FileHost, tmp_path: Path):
    file = a_file(host, tmp_path)
    host.fault = lambda request: Fault(
        ignores_range=True, cut_after_bytes=5_000_000 if request.number == 2 else None
    )
    download(file, tmp_path / "blob", patience=PATIENCE)
    assert_whole(tmp_path / "blob", file)


def test_a_file_that_changes_under_its_address_is_not_mixed(host: FileHost, tmp_path: Path):
    file = a_file(host, tmp_path)
    host.fault = lambda request: Fault(etag='"other"') if request.number >= 4 else None
    download(file, tmp_path / "blob", patience=PATIENCE)
    assert_whole(tmp_path / "blob", file)
    assert any(request.header("if-range") == '"other"' for request in host.requests)


def test_an_address_that_runs_out_is_asked_for_again(host: FileHost, tmp_path: Path):
    file = a_file(host, tmp_path)
    hub = FileHost()  # leads to the other, as the hub leads to its network of caches

    def lead(request: Request) -> Fault:
        return Fault(status=302, headers={"Location": host.address("file")})

    def expire(request: Request) -> None:
        if request.number == 3:
            host.signature = "second"

    hub.fault, host.fault = lead, expire
    with hub.running():
        file = RemoteFile(
            name=file.name, url=hub.origin, size_bytes=file.size_bytes, digest=file.digest
        )
        download(file, tmp_path / "blob", patience=PATIENCE, connections=1)
    assert_whole(tmp_path / "blob", file)
    assert 2 <= len(hub.requests) <= 4


def test_what_the_hub_promises_is_compared_before_a_byte_is_kept(host: FileHost, tmp_path: Path):
    file = a_file(host, tmp_path)
    hub = FileHost()
    linked = {"Location": host.address("file"), "X-Linked-Etag": f'"{"0" * 64}"'}
    hub.fault = lambda request: Fault(status=302, headers=linked)
    with hub.running():
        file = RemoteFile(
            name=file.name, url=hub.origin, size_bytes=file.size_bytes, digest=file.digest
        )
        with pytest.raises(WrongContent, match=r"changed at .* after it was listed"):
            download(file, tmp_path / "blob", patience=PATIENCE)


def test_the_next_download_goes_on_and_finds_what_the_disk_lost(host: FileHost, tmp_path: Path):
    file = a_file(host, tmp_path)
    target = tmp_path / "blob"
    host.fault = lambda request: Fault(status=404) if request.number >= 5 else None
    with pytest.raises(WrongContent):
        download(file, target, patience=PATIENCE, connections=1)
    kept = kept_bytes_of(file, target)
    assert kept == host.sent_bytes > 0
    with part_of(target).open("r+b") as part:  # within the second piece
        part.seek(20_000)
        part.write(b"lost")
    before = host.sent_bytes
    host.fault = lambda request: None
    fetched = download(file, target, patience=PATIENCE)
    assert_whole(target, file)
    assert fetched.kept_bytes == kept
    assert host.sent_bytes - before == SIZE_BYTES - kept + 16_384


@pytest.mark.parametrize("seed", range(6))
def test_a_book_that_is_damaged_costs_no_more_than_what_it_forgot(
    host: FileHost, tmp_path: Path, seed: int
):
    file = a_file(host, tmp_path)
    target = tmp_path / "blob"
    host.fault = lambda request: Fault(status=404) if request.number >= 5 else None
    with pytest.raises(WrongContent):
        download(file, target, patience=PATIENCE, connections=1)
    book = bytearray(pieces_of(target).read_bytes())
    chance = random.Random(seed)
    for _ in range(4):
        book[chance.randrange(len(book))] ^= 1 << chance.randrange(8)
    pieces_of(target).write_bytes(book[: chance.randrange(len(book))])
    host.fault = lambda request: None
    download(file, target, patience=PATIENCE)
    assert_whole(target, file)


def test_a_full_disk_is_said_and_keeps_the_part(host: FileHost, tmp_path: Path):
    """A limit on the size of files stands for the disk: both refuse a write half way."""
    full = downloads._of_disk(
        OSError(errno.ENOSPC, "No space left on device"),
        a_file(host, tmp_path),
        tmp_path / "store" / "blob",
    )
    assert isinstance(full, NoRoom)
    assert "is full" in full.message
    assert "pull again" in (full.hint or "")


def test_a_host_that_listens_no_more_is_told_within_its_time(tmp_path: Path, host: FileHost):
    file = a_file(host, tmp_path)
    gone = RemoteFile(
        name=file.name,
        url="http://127.0.0.1:9/file",
        size_bytes=file.size_bytes,
        digest=file.digest,
    )
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 cannot be reached"):
        download(gone, tmp_path / "blob", patience=PATIENCE)


def test_no_thread_is_left(host: FileHost, tmp_path: Path):
    download(a_file(host, tmp_path), tmp_path / "blob", patience=PATIENCE)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("pull-")]
