"""Whole pulls from local servers of both protocols: what is on disk afterwards, and what is not."""

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.errors import (
    AccessDenied,
    MissingShard,
    ModelNotFound,
    MoerunError,
    NoRoom,
    PullError,
    Unreachable,
    UnsupportedModel,
    WrongContent,
)
from moerun.model.gguf_header import read_header, read_model
from moerun.store.file_lock import is_locked, locked
from moerun.store.file_names import label_of
from moerun.store.http_connection import Patience
from moerun.store.hub_settings import HubSettings, read_hub_settings
from moerun.store.huggingface import choose_files, list_repository
from moerun.store.pull import PullStep, check_room, order_pull, pull
from moerun.store.references import HuggingFaceReference, OllamaReference, parse_reference
from moerun.store.remote_file import RemoteFile
from moerun.store.remote_header import remote_header, remote_model
from moerun.units import MIB
from tests.model_files import a_model_file, a_models_keys, a_models_tensors
from tests.model_keys import KeyValue
from tests.servers.file_host import Fault, FileHost
from tests.servers.hub import COMMIT, TOKEN, Hub, Published, sha256_of
from tests.servers.ollama_registry import OllamaRegistry
from tests.sparse_gguf import write_sparse

PATIENCE = Patience(connect_s=2, silence_s=2, tries=3, first_pause_s=0.01, longest_pause_s=0.05)


class Listener:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.begun: list[str] = []
        self.finished: list[str] = []

    def tell(self, message: str) -> None:
        self.told.append(message)

    def begin_file(self, file: RemoteFile, *, kept_bytes: int) -> None:
        self.begun.append(file.name)

    def update_file(self, file: RemoteFile, there_bytes: int) -> None:
        assert 0 <= there_bytes <= file.size_bytes

    def finish_file(self, file: RemoteFile) -> None:
        self.finished.append(file.name)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(FileHost())
    with hub.serving():
        yield hub


@pytest.fixture
def registry() -> Iterator[OllamaRegistry]:
    registry = OllamaRegistry(FileHost())
    with registry.serving():
        yield registry


def settings_of(hub: Hub, folder: Path, **more: str) -> HubSettings:
    return read_hub_settings(
        {"HF_ENDPOINT": hub.origin, "HF_HUB_CACHE": str(folder / "hub"), "HF_HOME": str(folder)}
        | more
    )


def a_name(quantization: str | None = None, **more: str) -> HuggingFaceReference:
    return HuggingFaceReference(
        repository_user="user", repository_name="repo", quantization=quantization, **more
    )


def random_file(path: Path, size_bytes: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


def split_model(folder: Path, count: int = 3) -> dict[str, Path]:
    """Write a model in parts, the tensors of the small one shared out between them."""
    tensors = a_models_tensors()
    shares = [tensors[index::count] for index in range(count)]
    paths = {}
    for index, share in enumerate(shares):
        keys: dict[str, KeyValue] = {"general.architecture": "qwen3moe"}
        keys |= a_models_keys() if index == 0 else {}
        keys |= {
            "split.no": index,
            "split.count": count,
            "split.tensors.count": len(tensors),
        }
        name = f"model-Q4_K_M-{index + 1:05d}-of-{count:05d}.gguf"
        paths[f"Q4_K_M/{name}"] = write_sparse(folder / name, keys, share)
    return paths


def tree_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_split_model_goes_into_the_hubs_own_cache(hub: Hub, tmp_path: Path):
    files = split_model(tmp_path)
    hub.repositories["user/repo"] = Published(files=files)
    listener = Listener()
    pulled = pull(a_name("q4_k_m"), listener, hub=settings_of(hub, tmp_path), patience=PATIENCE)
    folder = tmp_path / "hub" / "models--user--repo"
    assert (folder / "refs" / "main").read_bytes() == COMMIT.encode()
    for path, source in files.items():
        shown = folder / "snapshots" / COMMIT / path
        assert os.readlink(shown) == f"../../../blobs/{sha256_of(source)}"
        assert shown.read_bytes() == source.read_bytes()
    assert listener.begun == listener.finished == sorted(files)
    assert (
        pulled.fetched_bytes == pulled.size_bytes == sum(p.stat().st_size for p in files.values())
    )
    # the engine is given the first part by its own name, and finds the others beside it
    assert len(read_model(pulled.model_path).files) == 3
    assert len(tree_of(folder)) == 2 * len(files) + 1


def test_huggingface_hub_would_see_what_was_pulled(hub: Hub, tmp_path: Path):
    """Its rule for a cached file: refs/<revision> names the commit of a snapshot with the file."""
    hub.repositories["user/repo"] = Published(files={"m.gguf": random_file(tmp_path / "m", 50_000)})
    pull(a_name(), Listener(), hub=settings_of(hub, tmp_path), patience=PATIENCE)
    folder = tmp_path / "hub" / "models--user--repo"
    commit = (folder / "refs" / "main").read_text()
    assert (folder / "snapshots" / commit / "m.gguf").stat().st_size == 50_000


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path):
    hub.repositories["user/repo"] = Published(files={"m.gguf": random_file(tmp_path / "m", 50_000)})
    settings = settings_of(hub, tmp_path)
    pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    sent = hub.files.sent_bytes
    order = order_pull(a_name(), hub=settings, patience=PATIENCE)
    assert order.missing_bytes == 0
    again = pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    assert again.fetched_bytes == 0
    assert hub.files.sent_bytes == sent


def test_a_pull_that_fails_shows_nothing_and_the_next_goes_on(hub: Hub, tmp_path: Path):
    files = {f"m-{i:05d}-of-00002.gguf": random_file(tmp_path / f"{i}", 3 * MIB, i) for i in (1, 2)}
    hub.repositories["user/repo"] = Published(files=files)
    settings = settings_of(hub, tmp_path)
    second = sha256_of(files["m-00002-of-00002.gguf"])
    hub.files.fault = lambda request: (
        Fault(cut_after_bytes=0) if request.path.startswith(f"/{second}") else None
    )
    with pytest.raises(Unreachable):
        pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    folder = tmp_path / "hub" / "models--user--repo"
    assert not (folder / "snapshots").exists()
    assert not (folder / "refs").exists()
    hub.files.fault = lambda request: None
    pulled = pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    assert pulled.fetched_bytes == 3 * MIB


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path):
    source = random_file(tmp_path / "m", 50_000)
    hub.repositories["user/repo"] = Published(files={"m.gguf": source}, is_private=True)
    settings = settings_of(hub, tmp_path, HF_TOKEN=TOKEN)
    assert TOKEN not in repr(settings)
    pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    assert {r.header("authorization") for r in hub.requests} == {f"Bearer {TOKEN}"}
    assert hub.files.requests
    assert {r.header("authorization") for r in hub.files.requests} == {None}


def test_the_token_is_read_from_the_file_of_the_login(hub: Hub, tmp_path: Path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = settings_of(hub, tmp_path)
    assert settings.credentials is not None
    assert settings.credentials.token == TOKEN
    # an address that is not encrypted, elsewhere than here, gets none
    assert (
        read_hub_settings({"HF_ENDPOINT": "http://mirror", "HF_TOKEN": TOKEN}).credentials is None
    )


def test_gated_private_and_unknown_are_told_apart_as_far_as_the_hub_does(hub: Hub, tmp_path: Path):
    source = random_file(tmp_path / "m", 5_000)
    settings = settings_of(hub, tmp_path)
    hub.repositories["user/repo"] = Published(files={"m.gguf": source}, is_gated=True)
    with pytest.raises(AccessDenied, match=r"m\.gguf"):
        pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    hub.repositories["user/repo"] = Published(files={"m.gguf": source}, is_private=True)
    with pytest.raises(ModelNotFound) as caught:
        pull(a_name(), Listener(), hub=settings, patience=PATIENCE)
    assert "HF_TOKEN" in (caught.value.hint or "")
    with pytest.raises(ModelNotFound, match="no revision 'other'"):
        pull(a_name(revision="other"), Listener(), hub=settings_of(hub, tmp_path, HF_TOKEN=TOKEN))


def test_offline_asks_nobody(hub: Hub, tmp_path: Path):
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        pull(a_name(), Listener(), hub=settings_of(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert hub.requests == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_listing_that_fails_is_one_sentence(hub: Hub, tmp_path: Path, status: int):
    hub.fault = lambda request: Fault(status=status)
    with pytest.raises(Unreachable, match=rf"not able to give the listing .* \({status}"):
        pull(a_name(), Listener(), hub=settings_of(hub, tmp_path), patience=PATIENCE)


def test_what_the_hub_lists_cannot_lead_out_of_the_cache(hub: Hub, tmp_path: Path):
    source = random_file(tmp_path / "m", 5_000)
    hostile = ("../../m.gguf", "/etc/m.gguf", "C:/m.gguf", "a\\b.gguf", ".m.gguf", "a//b.gguf")
    entries = tuple(
        {"type": "file", "path": path, "size": 5, "lfs": {"oid": "a" * 64, "size": 5}}
        for path in hostile
    )
    odd = (
        None,
        {"type": "file", "path": "b.gguf", "size": 5, "lfs": {"oid": "../../x", "size": 5}},
        {"type": "file", "path": "c.gguf", "size": -5, "lfs": {"oid": "a" * 64, "size": -5}},
        {"type": "file", "path": "d.gguf", "size": True, "oid": "a" * 40},
    )
    hub.repositories["user/repo"] = Published(
        files={"m.gguf": source}, extra_entries=(*entries, *odd)
    )
    listed = list_repository(a_name(), settings_of(hub, tmp_path), patience=PATIENCE)
    assert [file.name for file in listed.files] == ["README.md", "m.gguf"]


NAMES = (
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-IQ4_XS.gguf",
    "m-UD-Q4_K_XL.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf",
    "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
    "m.imatrix.gguf",
)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ({}, NAMES[:1]),
        ({"quantization": "q4_k_m"}, NAMES[:1]),
        ({"quantization": "IQ4_XS"}, NAMES[2:3]),
        ({"quantization": "Q4_K_XL"}, NAMES[3:4]),
        ({"quantization": "Q8_0"}, NAMES[4:6]),
        ({"file": "Q8_0/m-Q8_0-00002-of-00002.gguf"}, NAMES[4:6]),
        ({"file": "m-q4_k_s.gguf"}, NAMES[1:2]),
        ({"quantization": "Q4_K"}, ModelNotFound),
        ({"quantization": "F16"}, ModelNotFound),
        ({"quantization": "BF16"}, MissingShard),
    ],
)
def test_which_files_a_name_means(
    hub: Hub, tmp_path: Path, wanted: dict[str, str], chosen: tuple[str, ...] | type[MoerunError]
):
    source = random_file(tmp_path / "m", 5_000)
    hub.repositories["user/repo"] = Published(files=dict.fromkeys(NAMES, source))
    listed = list_repository(a_name(), settings_of(hub, tmp_path), patience=PATIENCE)
    if isinstance(chosen, type):
        with pytest.raises(chosen):
            choose_files(listed, a_name(**wanted))
        return
    assert tuple(file.name for file in choose_files(listed, a_name(**wanted))) == chosen


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("x-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("BF16/x-00001-of-00002.gguf", "BF16"),
        ("x.gguf", None),
    ],
)
def test_labels_are_read_from_names(path: str, label: str | None):
    assert label_of(path) == label


def test_room_is_checked_before_anything_is_fetched(hub: Hub, tmp_path: Path):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    hub.lies_about["m.gguf"] = "a" * 64
    hub.repositories["user/repo"] = Published(files={"m.gguf": huge})
    order = order_pull(a_name(), hub=settings_of(hub, tmp_path), patience=PATIENCE)
    step = order.steps[0]
    far = replace(step, file=replace(step.file, size_bytes=1 << 60))
    assert isinstance(far, PullStep)
    with pytest.raises(NoRoom, match="more on the disk"):
        check_room(replace(order, steps=(far,)))
    assert hub.files.requests == []
    assert not (tmp_path / "hub").exists()


def test_a_registry_goes_into_the_own_store(registry: OllamaRegistry, tmp_path: Path):
    model = a_model_file(tmp_path)
    config, template = tmp_path / "config", tmp_path / "template"
    config.write_text("{}")
    template.write_text("{{ .Prompt }}")
    raw = registry.publish("library/m:latest", {"model": model, "template": template}, config)
    reference = parse_reference(f"http://{registry.origin[7:]}/library/m", catalog_names=())
    assert isinstance(reference, OllamaReference)
    store = tmp_path / "store"
    pulled = pull(reference, Listener(), store=store, patience=PATIENCE)
    host = reference.host.replace(":", "%3A")
    assert (store / "manifests" / host / "library" / "m" / "latest").read_bytes() == raw
    for path in (model, config, template):
        assert (store / "blobs" / f"sha256-{sha256_of(path)}").read_bytes() == path.read_bytes()
    assert pulled.model_path.name == f"sha256-{sha256_of(model)}"
    assert read_model(pulled.model_path).layers
    names = tree_of(store)
    assert len([name for name in names if not name.startswith(".locks")]) == 4


def test_a_tag_that_means_another_model_now_leaves_the_blobs_of_the_old(
    registry: OllamaRegistry, tmp_path: Path
):
    store, reference = tmp_path / "store", a_registry_name(registry)
    config, kept = tmp_path / "config", tmp_path / "license"
    config.write_text("{}")
    kept.write_text("free")
    old, new = a_model_file(tmp_path, name="old"), a_model_file(tmp_path, name="new")
    new.write_bytes(new.read_bytes() + bytes(7))
    for model in (old, new):
        registry.publish("library/m:latest", {"model": model, "license": kept}, config)
        pull(reference, Listener(), store=store, patience=PATIENCE)
    named = {f"sha256-{sha256_of(path)}" for path in (new, config, kept)}
    assert {path.name for path in (store / "blobs").iterdir()} == named


class Remover(Listener):
    """Takes the first file away when the second has come, as a removal beside a pull may."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._blobs = store / "blobs"

    def finish_file(self, file: RemoteFile) -> None:
        super().finish_file(file)
        if len(self.finished) == 2:
            (self._blobs / f"sha256-{file.digest.hexadecimal}").unlink()


def test_a_blob_that_is_removed_before_it_is_named_comes_again(
    registry: OllamaRegistry, tmp_path: Path
):
    model, config = a_model_file(tmp_path), tmp_path / "config"
    config.write_text("{}")
    registry.publish("library/m:latest", {"model": model}, config)
    store = tmp_path / "store"
    remover = Remover(store)
    pulled = pull(a_registry_name(registry), remover, store=store, patience=PATIENCE)
    assert len(remover.finished) == 3
    assert all(path.is_file() for path in pulled.paths)


def a_registry_name(registry: OllamaRegistry) -> OllamaReference:
    return OllamaReference(host=registry.origin[7:], model="m", scheme="http")


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"<html>", WrongContent),
        (b"[]", WrongContent),
        (b"\xff\xfe", WrongContent),
        (b'{"layers": [5]}', WrongContent),
        (b'{"layers": []}', UnsupportedModel),
        (b'{"layers": [{"mediaType": "x", "digest": "sha256:../../x", "size": 5}]}', WrongContent),
        (b'{"layers": [{"mediaType": "x", "digest": "sha256:' + b"a" * 64 + b'", "size": -1}]}',
         WrongContent),
        (b'{"layers": [{"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:'
         + b"a" * 64 + b'", "size": 1}]}', UnsupportedModel),
        (b" " * (5 << 20), WrongContent),
        (b"[" * 200_000, WrongContent),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_one_sentence(
    registry: OllamaRegistry, tmp_path: Path, raw: bytes, kind: type[MoerunError]
):
    registry.manifests["library/m:latest"] = raw
    with pytest.raises(kind):
        pull(a_registry_name(registry), Listener(), store=tmp_path / "store", patience=PATIENCE)
    assert not (tmp_path / "store").exists()


def test_hostile_manifests_touch_nothing_outside(registry: OllamaRegistry, tmp_path: Path):
    chance = random.Random(4)
    good = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64,
            "size": 1}  # fmt: skip
    pieces = ["../", "sha256:", "..\\", "\0", "/etc/x", "a" * 64, "A" * 64, "sha256-", "%2e%2e/", 7]
    for _ in range(100):
        entry = dict(good)
        entry["digest"] = "".join(str(chance.choice(pieces)) for _ in range(chance.randint(1, 4)))
        if entry["digest"] in (good["digest"], "sha256-" + "a" * 64, "a" * 64):
            continue
        registry.manifests["library/m:latest"] = json.dumps({"layers": [entry]}).encode()
        with pytest.raises(WrongContent):
            order_pull(a_registry_name(registry), store=tmp_path / "store", patience=PATIENCE)
    assert tree_of(tmp_path) == []


def test_a_registry_that_wants_a_token_gets_its_own(registry: OllamaRegistry, tmp_path: Path):
    model, config = a_model_file(tmp_path), tmp_path / "config"
    config.write_text("{}")
    registry.publish("library/m:latest", {"model": model}, config)
    registry.realm = f"{registry.origin}/token"
    pull(a_registry_name(registry), Listener(), store=tmp_path / "store", patience=PATIENCE)
    assert {r.header("authorization") for r in registry.files.requests} == {None}
    registry.realm = f"{registry.files.origin}/token"
    before = len(registry.files.requests)
    with pytest.raises(AccessDenied, match="only its own"):
        order_pull(a_registry_name(registry), store=tmp_path / "other", patience=PATIENCE)
    assert len(registry.files.requests) == before


def test_an_unknown_tag_is_not_found(registry: OllamaRegistry, tmp_path: Path):
    with pytest.raises(ModelNotFound, match="has no"):
        order_pull(a_registry_name(registry), store=tmp_path / "store", patience=PATIENCE)


def test_headers_alone_tell_what_a_split_model_is(hub: Hub, tmp_path: Path):
    files = split_model(tmp_path)
    hub.repositories["user/repo"] = Published(files=files)
    settings = settings_of(hub, tmp_path)
    remote = remote_model(a_name(), hub=settings, patience=PATIENCE)
    local = read_model(tmp_path / next(iter(files)).rpartition("/")[2])
    assert remote.digest == local.digest
    assert remote.layers == local.layers
    assert remote.shared == local.shared
    assert [file.size_bytes for file in remote.files] == [file.size_bytes for file in local.files]
    assert not (tmp_path / "hub").exists()


def test_a_long_header_is_fetched_as_far_as_it_goes(hub: Hub, tmp_path: Path):
    tokens = [f"token {i} {'x' * 40}" for i in range(120_000)]  # some 7 MB
    path = a_model_file(tmp_path, keys={"tokenizer.ggml.tokens": tokens})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + (64 << 20))
    hub.lies_about["m.gguf"] = "b" * 64
    hub.repositories["user/repo"] = Published(files={"m.gguf": path})
    settings = settings_of(hub, tmp_path)
    header = remote_header(a_name(), hub=settings, patience=PATIENCE)
    assert header.tensors == read_header(path).tensors
    assert hub.files.sent_bytes == 8 * MIB


def test_a_registrys_header_is_read_by_ranges(registry: OllamaRegistry, tmp_path: Path):
    model, config = a_model_file(tmp_path), tmp_path / "config"
    config.write_text("{}")
    registry.publish("library/m:latest", {"model": model}, config)
    remote = remote_model(a_registry_name(registry), patience=PATIENCE)
    assert remote.digest == read_model(model).digest


def test_the_second_of_two_pulls_waits_and_fetches_nothing(hub: Hub, tmp_path: Path):
    hub.repositories["user/repo"] = Published(
        files={"m.gguf": random_file(tmp_path / "m", 6 * MIB)}
    )
    settings = settings_of(hub, tmp_path)
    listeners = [Listener(), Listener()]
    failures: list[BaseException] = []

    def run(listener: Listener) -> None:
        try:
            pull(a_name(), listener, hub=settings, patience=PATIENCE)
        except BaseException as error:
            failures.append(error)

    hub.files.fault = lambda request: Fault(stall_s=0.3)
    threads = [threading.Thread(target=run, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert hub.files.sent_bytes == 6 * MIB
    assert [bool(listener.begun) for listener in listeners].count(True) == 1
    assert any("waiting" in message for listener in listeners for message in listener.told)


def test_a_lock_is_free_when_its_holder_is_gone(tmp_path: Path):
    path = tmp_path / "locks" / "one.lock"
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_no_failure_of_a_pull_is_anything_but_a_sentence(hub: Hub, tmp_path: Path):
    """Seeded faults at every request of both hosts: each pull ends whole, or in one sentence."""
    source = random_file(tmp_path / "m", 2 * MIB)
    hub.repositories["user/repo"] = Published(files={"m.gguf": source})
    chance = random.Random(11)
    kinds = (
        Fault(status=500), Fault(status=404), Fault(status=403), Fault(status=302),
        Fault(status=301, headers={"Location": "//\0"}),
        Fault(status=307, headers={"Location": "/"}),
        Fault(cut_after_bytes=1000), Fault(flip_first_byte=True), Fault(shifts_range=True),
        Fault(extra_bytes=1), Fault(ignores_range=True), Fault(etag='"other"'), Fault(status=999),
    )  # fmt: skip
    whole = 0
    for round_number in range(40):
        faulty = chance.random() * 0.6

        def fault(request: object, faulty: float = faulty) -> Fault | None:
            return chance.choice(kinds) if chance.random() < faulty else None

        hub.fault = hub.files.fault = fault
        folder = tmp_path / f"{round_number}"
        try:
            pulled = pull(a_name(), Listener(), hub=settings_of(hub, folder), patience=PATIENCE)
        except (PullError, ModelNotFound):
            assert not (folder / "hub" / "models--user--repo" / "snapshots").exists()
        else:
            assert pulled.model_path.read_bytes() == source.read_bytes()
            whole += 1
    assert 5 < whole < 35


def test_a_pull_mends_a_manifest_that_cannot_be_read(registry: OllamaRegistry, tmp_path: Path):
    store, reference = tmp_path / "store", a_registry_name(registry)
    model, config = a_model_file(tmp_path), tmp_path / "config"
    config.write_text("{}")
    raw = registry.publish("library/m:latest", {"model": model}, config)
    pull(reference, Listener(), store=store, patience=PATIENCE)
    (place,) = (store / "manifests").rglob("latest")
    place.write_bytes(raw[:20])
    pulled = pull(reference, Listener(), store=store, patience=PATIENCE)
    assert pulled.fetched_bytes == 0
    assert place.read_bytes() == raw


@pytest.mark.parametrize("is_hub", [True, False])
def test_a_host_that_accepts_and_stays_silent_is_given_up_sooner_than_a_download(
    tmp_path: Path, is_hub: bool
):
    listener = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    settings = HubSettings(
        endpoint=f"http://{host}", cache=tmp_path / "hub", credentials=None, is_offline=False
    )
    name = a_name() if is_hub else OllamaReference(host=host, model="m", scheme="http")
    # The silence that a download bears is longer than any test may last.
    patience = Patience(connect_s=1, answer_s=1.2, silence_s=3600, tries=1)
    with listener, pytest.raises(Unreachable, match="was reached and sent nothing for 1"):
        order_pull(name, hub=settings, store=tmp_path / "store", patience=patience)
