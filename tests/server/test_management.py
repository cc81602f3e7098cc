"""Pull, push, copy, delete over HTTP, with a host and a store that are no others'."""

import json
import threading

import httpx
import ollama
import pytest

from moerun.errors import Unreachable
from moerun.server.refusals import Refused
from moerun.server.shelf import LocalShelf
from moerun.store.manifests import LayerKind, compose_manifest, layer_type
from moerun.store.own_store import OwnStore, own_reference
from moerun.store.remote_file import Digest, DigestKind, RemoteFile
from tests.server.fakes import serving

FILE = RemoteFile(
    name="m.gguf",
    url="https://host.test/m.gguf",
    size_bytes=10,
    digest=Digest(kind=DigestKind.SHA256, hexadecimal="ab" * 32),
)


def fetch(name, watcher):
    if name == "gone":
        raise Unreachable("host.test cannot be reached.")
    watcher.begin_file(FILE, kept_bytes=0)
    watcher.update_file(FILE, 4)
    watcher.finish_file(FILE)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    own = OwnStore(tmp_path_factory.mktemp("store"))
    config = own.add_bytes(b"{}", "application/vnd.docker.container.image.v1+json")
    layer = own.add_bytes(b"weights", layer_type(LayerKind.MODEL))
    own.write(own_reference("mine"), compose_manifest(config, (layer,)))
    return own


@pytest.fixture(scope="module")
def client(store):
    with serving(fetch=fetch, store=store) as server, ollama.Client(host=server.url) as opened:
        yield opened


def test_a_pull_tells_its_progress_and_ends_with_success(client):
    lines = list(client.pull("some/model", stream=True))
    assert lines[0].status == "pulling manifest"
    shown = [(line.digest, line.total, line.completed) for line in lines if line.digest]
    name = "sha256:" + "ab" * 32
    assert shown == [(name, 10, None), (name, 10, 4), (name, 10, 10)]
    assert lines[1].status == "pulling abababababab"
    assert lines[-1].status == "success"
    assert client.pull("some/model").status == "success"


def test_a_pull_that_fails_tells_why(client):
    with pytest.raises(ollama.ResponseError, match=r"host.test cannot be reached"):
        list(client.pull("gone", stream=True))
    with pytest.raises(ollama.ResponseError, match=r"host.test cannot be reached"):
        client.pull("gone")


def test_a_pull_ends_when_its_client_leaves():
    left = threading.Event()

    def endless(name, watcher):
        try:
            watcher.begin_file(FILE, kept_bytes=0)
            while not left.wait(0.001):
                watcher.update_file(FILE, 4)
        finally:
            left.set()

    with serving(fetch=endless) as server:
        body = {"model": "some/model"}
        with httpx.stream("POST", f"{server.url}/api/pull", json=body) as reply:
            assert json.loads(next(reply.iter_lines()))["status"] == "pulling manifest"
        assert left.wait(10)


def test_a_model_is_made_of_one_that_is_here(tmp_path):
    own = OwnStore(tmp_path / "store")
    with (
        serving(store=own, shelf=LocalShelf(tmp_path)) as server,
        ollama.Client(host=server.url) as client,
    ):
        made = client.create(
            "poet", from_="demo", system="Rhyme.", parameters={"temperature": 0.5, "stop": ["x"]}
        )
        assert made.status == "success"
        lines = list(client.create("poet", from_="demo", system="Rhyme.", stream=True))
        assert lines[-1].status == "success"
        with pytest.raises(ollama.ResponseError, match="temperature"):
            client.create("odd", from_="demo", parameters={"temperature": "hot"})
        for source in ("/etc/passwd", "../x.gguf", "none"):
            with pytest.raises(ollama.ResponseError):
                client.create("odd", from_=source)
    stored = own.layout.find(own_reference("poet"))
    assert stored is not None
    (system,) = stored.manifest.of_kind(LayerKind.SYSTEM)
    assert own.layout.blob_path(system).read_text() == "Rhyme."
    assert own.layout.find(own_reference("odd")) is None


def test_what_is_not_had_is_refused_in_a_sentence(client):
    for ask in (
        lambda: client.push("mine"),
        lambda: client.create("x", files={"m.gguf": "sha256:" + "0" * 64}),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 501


def test_a_copy_and_its_removal(client, store):
    client.copy("mine", "twin")
    assert store.layout.find(own_reference("twin")) is not None
    client.delete("twin")
    assert store.layout.find(own_reference("twin")) is None
    assert store.layout.find(own_reference("mine")) is not None


@pytest.mark.parametrize("name", ["none", "../../etc", "a/../b", ".hidden"])
def test_what_is_not_there_or_no_name_is_told(client, name):
    for ask in (lambda: client.delete(name), lambda: client.copy(name, "other")):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code in (400, 404)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "~/x", "./demo.gguf", "..", "a\\..\\b", "no-such-model", "x" * 999]
)
def test_the_shelf_knows_no_paths(tmp_path, name):
    with pytest.raises(Refused):
        LocalShelf(tmp_path).find(name)


def test_the_demo_is_on_the_shelf(tmp_path):
    shelf = LocalShelf(tmp_path)
    for name in ("demo", "demo:latest", "Demo"):
        assert shelf.find(name).name == "demo:latest"
    assert "demo:latest" in [model.name for model in shelf.all()]
