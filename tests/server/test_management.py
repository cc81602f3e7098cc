"""Pull, push, copy, delete over HTTP, with a host and a store that are no others'."""

import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest

from moerun.engine.tiny_gguf import write_tiny_moe
from moerun.errors import Unreachable
from moerun.server.refusals import Refused
from moerun.server.shelf import LocalShelf
from moerun.store.manifests import LayerKind, compose_manifest, layer_type
from moerun.store.modelfile import parse_modelfile
from moerun.store.names import demo_path
from moerun.store.own_store import OwnStore, own_reference
from moerun.store.remote_file import Digest, DigestKind, RemoteFile
from tests.adapters import TINY, write_adapter
from tests.server.fakes import FakeLoader, serving
from tests.test_pull import split_model

FILE = RemoteFile(
    name="m.gguf",
    url="https://host.test/m.gguf",
    size_bytes=10,
    digest=Digest(kind=DigestKind.SHA256, hexadecimal="ab" * 32),
)


@pytest.fixture(scope="module")
def demo_file():
    return demo_path()


@pytest.fixture(scope="module")
def split_demo(tmp_path_factory):
    parts = split_model(tmp_path_factory.mktemp("split"), count=2)
    return tuple(sorted(parts.values()))


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
    assert shown[0] == (name, 10, None)
    assert shown[-1] == (name, 10, 10)
    assert set(shown[1:-1]) <= {(name, 10, 4)}  # what nobody read in time is not told any more
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


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[tuple[OwnStore, ollama.Client]]:
    own = OwnStore(folder / "store")
    with (
        serving(store=own, shelf=LocalShelf(folder)) as server,
        ollama.Client(host=server.url) as client,
    ):
        yield own, client


def text_of(own: OwnStore, name: str, kind: LayerKind) -> str:
    stored = own.layout.find(own_reference(name))
    assert stored is not None
    (layer,) = stored.manifest.of_kind(kind)
    return own.layout.blob_path(layer).read_text()


def test_a_model_is_made_of_one_that_is_here(tmp_path):
    with creating(tmp_path) as (own, client):
        made = client.create(
            "poet",
            from_="demo",
            system="Rhyme.",
            template="{{ .System }} {{ .Prompt }}",
            license=["free", "as air"],
            messages=[{"role": "user", "content": "hi"}],
            parameters={"temperature": 0.5, "stop": ["x"]},
        )
        assert made.status == "success"
        lines = [line.status for line in client.create("poet", from_="demo", stream=True)]
        assert lines[0] == "creating new layers"
        assert lines[-2:] == ["writing manifest", "success"]
        client.create("poet", from_="demo", system="Rhyme.", parameters={"stop": "x"})
        with pytest.raises(ollama.ResponseError, match="temperature"):
            client.create("odd", from_="demo", parameters={"temperature": "hot"})
        for source in ("/etc/passwd", "../x.gguf", "none"):
            with pytest.raises(ollama.ResponseError):
                client.create("odd", from_=source)
        assert text_of(own, "poet", LayerKind.SYSTEM) == "Rhyme."
        assert json.loads(text_of(own, "poet", LayerKind.PARAMS)) == {"stop": ["x"]}
        assert own.layout.find(own_reference("odd")) is None


def test_a_model_is_made_of_a_file_that_was_sent(tmp_path, demo_file):
    with creating(tmp_path) as (own, client):
        digest = client.create_blob(demo_file)
        assert (own.root / "uploads").is_dir()
        made = client.create("sent", files={"a/m.gguf": digest}, system="Rhyme.")
        assert made.status == "success"
        stored = own.layout.find(own_reference("sent"))
        assert stored is not None
        (weights,) = stored.manifest.of_kind(LayerKind.MODEL)
        assert own.layout.blob_path(weights).read_bytes() == demo_file.read_bytes()
        assert list((own.root / "uploads").iterdir()) == []
        assert client.create("again", files={"m.gguf": digest}).status == "success"


def test_a_model_is_made_of_parts_that_were_sent(tmp_path, split_demo):
    with creating(tmp_path) as (own, client):
        files = {path.name: client.create_blob(path) for path in split_demo}
        lines = [line.status for line in client.create("parts", files=files, stream=True)]
        assert "hashing files" in lines
        stored = own.layout.find(own_reference("parts"))
        assert stored is not None
        assert len(own.layout.model_paths(stored.manifest)) == len(split_demo) == 2
        files.popitem()
        with pytest.raises(ollama.ResponseError, match=r"00001-of-00002|not the parts|is missing"):
            client.create("half", files=files)
        assert own.layout.find(own_reference("half")) is None


def test_a_model_is_made_with_an_adapter_that_was_sent(tmp_path):
    write_tiny_moe(tmp_path / "tiny.gguf")
    adapter = write_adapter(tmp_path / "style.lora", TINY)
    odd = write_adapter(tmp_path / "odd.lora", {"nowhere.weight": (128, 128)})
    with creating(tmp_path) as (own, client):
        sent = {"style.gguf": client.create_blob(adapter)}
        client.create("styled", from_="tiny", adapters=sent)
        stored = own.layout.find(own_reference("styled"))
        assert stored is not None
        (layer,) = stored.manifest.of_kind(LayerKind.ADAPTER)
        assert own.layout.blob_path(layer).read_bytes() == adapter.read_bytes()
        assert list((own.root / "uploads").iterdir()) == []
        with pytest.raises(ollama.ResponseError) as caught:
            client.create("odd", from_="tiny", adapters={"odd.gguf": client.create_blob(odd)})
        assert caught.value.status_code == 400
        assert own.layout.find(own_reference("odd")) is None


@pytest.mark.parametrize(
    ("wish", "status", "said"),
    [
        ({"from": "demo", "adapters": {"a.gguf": "x"}}, 400, "no digest"),
        ({"from": "demo", "adapters": {"a.gguf": "sha256:" + "0" * 64}}, 404, "is not here"),
        ({"from": "demo", "quantize": "q4_K_M"}, 501, "llama-quantize"),
        ({"from": "demo", "quantization_level": "q8_0"}, 501, "llama-quantize"),
        ({}, 400, "either from or files"),
        ({"from": "demo", "files": {"m.gguf": "sha256:" + "0" * 64}}, 400, "either from or files"),
        ({"files": {"m.gguf": "sha256:" + "0" * 64}}, 404, "is not here"),
        ({"files": {"m.gguf": "../../etc/passwd"}}, 400, "no digest"),
        ({"files": {"../m.gguf": "sha256:" + "0" * 64}}, 400, "not the name of a file"),
        ({"files": {"/m.gguf": "sha256:" + "0" * 64}}, 400, "not the name of a file"),
        ({"files": ["m.gguf"]}, 400, "files must be an object"),
        ({"files": {"m.gguf": 3}}, 400, "must be a text"),
        ({"from": "demo", "template": "{{ .Nope }}"}, 400, "template: "),
        ({"from": "demo", "messages": [{"role": "nobody", "content": "x"}]}, 400, "role"),
        ({"from": "demo", "parameters": {"num_ctx": "many"}}, 400, "context"),
        ({"from": "demo", "parameters": {"nope": [1]}}, 400, "no parameter"),
    ],
)
def test_what_cannot_be_made_is_told_with_a_way_out(tmp_path, wish, status, said):
    with serving(store=OwnStore(tmp_path), shelf=LocalShelf(tmp_path)) as server:
        reply = httpx.post(f"{server.url}/api/create", json={"model": "odd", **wish})
    assert reply.status_code == status, reply.text
    assert said in reply.json()["error"]


def test_a_push_is_refused_in_a_sentence(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.push("mine")
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


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """Two models of the same weights, behind a server."""
    monkeypatch.setenv("MOERUN_MODELS", str(tmp_path / "store"))
    loader = FakeLoader(sizes=defaultdict(lambda: 100))
    own = OwnStore(tmp_path / "store")
    with (
        serving(store=own, shelf=LocalShelf(tmp_path), loader=loader) as server,
        ollama.Client(host=server.url) as client,
    ):
        client.create(
            "poet",
            from_="demo",
            system="Rhyme.",
            parameters={"temperature": 0.5, "stop": ["x", "y z"], "num_ctx": 512},
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
            license="free",
        )
        client.create("cook", from_="demo", system="Salt.")
        client.create("baker", from_="demo", system="Knead.", parameters={"num_predict": 5})
        yield client, loader, own


def test_show_tells_what_a_model_carries(kitchen):
    client, _, _ = kitchen
    shown = client.show("poet")
    assert shown.parameters.splitlines() == [
        "temperature                    0.5",
        'stop                           "x"',
        'stop                           "y z"',
        "num_ctx                        512",
    ]
    reply = httpx.post(f"{client._client.base_url}/api/show", json={"name": "poet"}).json()
    assert (reply["system"], reply["license"]) == ("Rhyme.", "free")
    assert reply["messages"][1] == {"role": "assistant", "content": "ho"}
    assert reply["template"] == "{{ messages }}"
    made = parse_modelfile(reply["modelfile"])
    assert made.system == "Rhyme."
    assert dict(made.parameters) == {"temperature": 0.5, "stop": ["x", "y z"], "num_ctx": "512"}
    assert (made.messages[0], made.licenses) == (("user", "hi"), ("free",))
    assert made.source.startswith("/")


def test_models_of_the_same_weights_share_them_and_keep_what_each_carries(kitchen):
    client, loader, _ = kitchen
    for name, system in (("cook", "Salt."), ("baker", "Knead."), ("cook", "Salt.")):
        assert client.chat(name, [{"role": "user", "content": "say x"}]).message.content == "x "
        assert loader.loaded[-1].requests[-1].messages[0].content == system
    assert len(loader.loaded) == 1
    assert loader.loaded[0].requests[1].maximum_tokens == 5
    client.generate("baker", "say x", options={"num_predict": -1})
    assert loader.loaded[0].requests[-1].maximum_tokens == 2**31 - 1
    client.chat("poet", [{"role": "user", "content": "say x"}])  # placed otherwise
    assert len(loader.loaded) == 2


def test_a_model_that_is_made_anew_answers_anew(kitchen):
    client, loader, _ = kitchen
    client.chat("cook", [{"role": "user", "content": "say x"}])
    client.create("cook", from_="demo", system="Pepper.")
    client.chat("cook", [{"role": "user", "content": "say x"}])
    assert loader.loaded[-1].requests[-1].messages[0].content == "Pepper."


def test_a_broken_model_is_told_and_can_be_deleted(kitchen):
    client, _, own = kitchen
    stored = own.layout.find(own_reference("cook"))
    (blob,) = stored.manifest.of_kind(LayerKind.SYSTEM)
    own.layout.blob_path(blob).unlink()
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("cook")
    assert caught.value.status_code == 400
    client.delete("cook")
    assert own.layout.find(own_reference("cook")) is None
