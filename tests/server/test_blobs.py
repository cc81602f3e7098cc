"""Files that clients send: digests, room, cut connections."""

import hashlib
import http.client
import os
import threading
import time

import httpx
import pytest

from moerun.errors import ModelNotFound, UsageError
from moerun.store.own_store import OwnStore
from moerun.store.uploads import Uploads, parse_digest
from tests.server.fakes import serving

CONTENT = b"GGUF" + bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()
DAY_S = 24 * 3600.0


@pytest.fixture
def store(tmp_path):
    return OwnStore(tmp_path)


@pytest.fixture
def server(store):
    with serving(store=store) as running:
        yield running


def files_below(store: OwnStore) -> list[str]:
    folder = store.root / "uploads"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_blob_is_there_once_it_was_sent(server, store):
    url = f"{server.url}/api/blobs/sha256:{DIGEST}"
    assert httpx.head(url).status_code == 404
    assert httpx.post(url, content=CONTENT).status_code == 201
    assert httpx.head(url).status_code == 200
    assert httpx.post(url, content=CONTENT).status_code == 200
    assert httpx.post(url.replace(":" + DIGEST, "-" + DIGEST), content=b"").status_code == 200
    assert (store.root / "uploads" / f"sha256-{DIGEST}").read_bytes() == CONTENT


def test_a_blob_of_a_model_is_there_too(server, store):
    blob = store.add_bytes(CONTENT, "any/type")
    assert httpx.head(f"{server.url}/api/blobs/sha256:{blob.digest}").status_code == 200


def test_pieces_without_a_length_are_taken_as_well(server):
    pieces = (CONTENT[at : at + 1000] for at in range(0, len(CONTENT), 1000))
    url = f"{server.url}/api/blobs/sha256:{DIGEST}"
    assert httpx.post(url, content=pieces).status_code == 201


def test_another_content_is_refused_and_leaves_nothing(server, store):
    reply = httpx.post(f"{server.url}/api/blobs/sha256:{'0' * 64}", content=CONTENT)
    assert (reply.status_code, DIGEST in reply.json()["error"]) == (400, True)
    assert files_below(store) == []


@pytest.mark.parametrize(
    "digest",
    ["x", "sha256:", "sha256:" + "A" * 64, "sha1:" + "0" * 40, "sha256:" + "0" * 65, "%2e%2e%2fx"],
)
def test_what_is_no_digest_is_told(server, digest):
    url = f"{server.url}/api/blobs/{digest}"
    assert httpx.head(url).status_code in (400, 404)
    reply = httpx.post(url, content=b"x")
    assert reply.status_code in (400, 404)


def test_what_cannot_fit_is_refused_before_it_is_sent(server, store):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.putrequest("POST", f"/api/blobs/sha256:{DIGEST}")
    connection.putheader("Content-Length", str(1 << 60))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 507
    assert b"are free on the disk" in reply.read()
    connection.close()
    assert files_below(store) == []


def test_a_connection_that_is_cut_leaves_nothing(server, store):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.putrequest("POST", f"/api/blobs/sha256:{DIGEST}")
    connection.putheader("Content-Length", str(len(CONTENT)))
    connection.endheaders()
    connection.send(CONTENT[:100_000])
    while not files_below(store):
        time.sleep(0.01)
    connection.close()
    while files_below(store):
        time.sleep(0.01)
    url = f"{server.url}/api/blobs/sha256:{DIGEST}"
    assert httpx.head(url).status_code == 404
    assert httpx.post(url, content=CONTENT).status_code == 201


def test_the_same_blob_may_be_sent_by_several_at_once(server, store):
    statuses: list[int] = []

    def send() -> None:
        url = f"{server.url}/api/blobs/sha256:{DIGEST}"
        statuses.append(httpx.post(url, content=CONTENT).status_code)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert set(statuses) <= {200, 201}
    assert files_below(store) == [f"sha256-{DIGEST}"]


def test_other_methods_are_none(server):
    url = f"{server.url}/api/blobs/sha256:{DIGEST}"
    assert httpx.get(url).status_code == 405
    assert httpx.delete(url).status_code == 405


def test_what_nobody_made_a_model_of_is_forgotten_after_a_day(store):
    uploads = Uploads(store)
    assert uploads.remove_forgotten() == 0
    with uploads.begin(DIGEST, size_bytes=None) as upload:
        upload.write(CONTENT)
        upload.finish()
    assert uploads.remove_forgotten() == 0
    assert uploads.remove_forgotten(time.time() + 2 * DAY_S) == 1
    assert uploads.find(DIGEST) is None


def test_a_link_is_no_upload(store, tmp_path):
    uploads = Uploads(store)
    uploads.folder.mkdir()
    os.symlink("/etc/passwd", uploads.folder / f"sha256-{DIGEST}")
    assert uploads.find(DIGEST) is None
    with pytest.raises(ModelNotFound), uploads.assembled({"m.gguf": DIGEST}):
        pass


def test_what_is_no_gguf_makes_no_model(store):
    content = b"{}"
    digest = hashlib.sha256(content).hexdigest()
    uploads = Uploads(store)
    with uploads.begin(digest, size_bytes=2) as upload:
        upload.write(content)
        upload.finish()
    with (
        pytest.raises(UsageError, match=r"model\.safetensors is no GGUF"),
        uploads.assembled({"model.safetensors": digest}),
    ):
        pass


def test_digests():
    assert parse_digest("sha256:" + "0a" * 32) == "0a" * 32
    with pytest.raises(UsageError, match="no digest"):
        parse_digest("sha256:" + "0a" * 32 + "\n")
