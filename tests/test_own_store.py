import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil

import pytest

from moerun.errors import ModelError, ModelNotFound, MoerunError, UsageError
from moerun.store.installed import Source
from moerun.store.locks import blobs_in_use
from moerun.store.manifests import CONFIG_TYPE, LayerKind, compose_manifest, layer_type
from moerun.store.ollama_layout import OllamaLayout
from moerun.store.ollama_store import installed
from moerun.store.own_store import OwnStore, own_reference
from moerun.store.references import OllamaReference
from tests.stores import add_model, digest_of, put_blob, put_model


@pytest.fixture
def store(tmp_path):
    return OwnStore(tmp_path / "store")


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF" + bytes(5000))
    return path


def files_in(root):
    return {path.name for path in (root / "blobs").iterdir()}


def test_a_model_lies_as_ollama_would_lay_it(store, gguf):
    reference = add_model(store, "mine", gguf)
    manifest = store.root / "manifests/registry.ollama.ai/library/mine/latest"
    found = store.layout.find(reference)
    assert found is not None
    assert found.manifest.digest == hashlib.sha256(manifest.read_bytes()).hexdigest()
    (blob,) = found.manifest.of_kind(LayerKind.MODEL)
    path = store.root / "blobs" / f"sha256-{digest_of(gguf.read_bytes())}"
    assert store.layout.model_paths(found.manifest) == (path,)
    assert path.read_bytes() == gguf.read_bytes()
    assert blob.size_bytes == 5004
    assert {item["mediaType"] for item in json.loads(manifest.read_text())["layers"]} == {
        "application/vnd.ollama.image.model"
    }


def test_a_file_of_the_same_disk_takes_no_room_again(store, gguf):
    add_model(store, "mine", gguf)
    blob = store.root / "blobs" / f"sha256-{digest_of(gguf.read_bytes())}"
    assert blob.samefile(gguf)
    assert store.remove(OllamaReference(model="mine")).freed_bytes < 5000
    assert gguf.exists()


def test_names_are_found_in_any_case_and_keep_theirs(store, gguf):
    add_model(store, "Mine", gguf)
    found = store.layout.find(OllamaReference(model="mINE"))
    assert found is not None
    assert str(found.reference) == "Mine:latest"
    add_model(store, "mine", gguf)
    assert [str(model.reference) for model in store.layout.models()] == ["Mine:latest"]


def test_a_copy_keeps_blobs_until_both_names_are_gone(store, gguf):
    reference = add_model(store, "mine", gguf)
    found = store.layout.find(reference)
    assert found is not None
    twin = OllamaReference(model="other", tag="small")
    store.copy(found, twin)
    before = files_in(store.root)
    assert store.remove(reference).freed_bytes == 0
    assert files_in(store.root) == before
    store.remove(twin)
    assert files_in(store.root) == set()
    assert not (store.root / "manifests").exists()


def test_what_a_name_meant_before_leaves_its_blobs(store, gguf, tmp_path):
    add_model(store, "mine", gguf)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + bytes(77))
    add_model(store, "mine", other)
    assert f"sha256-{digest_of(gguf.read_bytes())}" not in files_in(store.root)
    assert f"sha256-{digest_of(other.read_bytes())}" in files_in(store.root)


def test_a_model_in_use_is_not_removed(store, gguf):
    reference = add_model(store, "mine", gguf)
    found = store.layout.find(reference)
    assert found is not None
    names = [blob.file_name for blob in found.manifest.blobs]
    with (
        blobs_in_use(store.root, names),
        blobs_in_use(store.root, names),
        pytest.raises(ModelError, match=r"mine:latest is in use; end the process"),
    ):
        store.remove(reference)
    assert store.layout.find(reference) is not None
    store.remove(reference)
    assert store.layout.find(reference) is None


def test_a_store_that_is_not_there_has_nothing(store):
    assert list(store.layout.models()) == []
    with pytest.raises(ModelNotFound, match="has no model 'mine:latest'"):
        store.remove(OllamaReference(model="mine"))


def test_blobs_that_went_are_brought_back_or_missed(store, gguf):
    config = store.add_bytes(b"{}", CONFIG_TYPE)
    model = store.add_file(gguf, layer_type(LayerKind.MODEL))
    manifest = compose_manifest(config, (model,))
    (store.root / "blobs" / model.file_name).unlink()
    with pytest.raises(ModelError, match="some of its files are gone"):
        store.write(OllamaReference(model="mine"), manifest)
    store.write(
        OllamaReference(model="mine"),
        manifest,
        restore=lambda: store.add_file(gguf, layer_type(LayerKind.MODEL)),
    )
    assert store.layout.find(OllamaReference(model="mine")) is not None


def test_parts_lie_side_by_side_and_go_together(store, tmp_path):
    layers = []
    for number in (1, 2, 3):
        part = tmp_path / f"x-{number:05d}-of-00003.gguf"
        part.write_bytes(b"GGUF" + bytes([number]) * number)
        layers.append(store.add_file(part, layer_type(LayerKind.MODEL)))
    manifest = compose_manifest(store.add_bytes(b"{}", CONFIG_TYPE), tuple(layers))
    store.write(OllamaReference(model="split"), manifest)
    paths = store.layout.model_paths(manifest)
    assert [path.name for path in paths] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [path.stat().st_size for path in paths] == [5, 6, 7]
    store.remove(OllamaReference(model="split"))
    assert files_in(store.root) == set()
    assert list((store.root / "parts").iterdir()) == []


def test_a_broken_manifest_keeps_others_blobs_and_can_be_removed(store, gguf):
    reference = add_model(store, "mine", gguf)
    broken = store.root / "manifests/registry.ollama.ai/library/broken/latest"
    broken.parent.mkdir()
    broken.write_text("{")
    assert store.remove(reference).freed_bytes == 0  # the broken one may name them
    assert f"sha256-{digest_of(gguf.read_bytes())}" in files_in(store.root)
    store.remove(OllamaReference(model="broken"))
    assert not broken.exists()


@pytest.mark.parametrize("name", ["demo", "qwen3-30b-a3b", "user/repo", "./x.gguf", "hf.co/a/b"])
def test_names_that_mean_something_else_are_not_given(name):
    with pytest.raises(UsageError, match="cannot be the name of"):
        own_reference(name)


def test_single_tensors_are_no_model_that_is_run(tmp_path):
    reference = OllamaReference(model="tensors")
    put_model(tmp_path, reference, b"GGUF")
    path = tmp_path.joinpath("manifests", *reference.manifest_parts)
    path.write_text(path.read_text().replace("image.model", "image.tensor"))
    layout = OllamaLayout(tmp_path)
    (stored,) = layout.models()
    assert "single tensors" in (installed(layout, stored, Source.OLLAMA).trouble or "")


# Hostile manifests: whatever one says, nothing outside the store is read, written or removed.

_DIGESTS: tuple[object, ...] = (
    "sha256:../../../outside/secret",
    "sha256-" + "../" * 8 + "outside/secret",
    "/outside/secret",
    "sha256:" + "g" * 64,
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 64 + "/../../secret",
    "sha256:" + "a" * 64 + "\n",
    "sha256:" + "\0" * 64,
    "md5:" + "a" * 32,
    "C:\\outside\\secret",
    "",
    None,
    7,
    [],
    {"sha256": "a"},
)
_SIZES = (-1, 0, 4, 1 << 62, 1 << 200, 1e300, True, None, "4", [4])
_TYPES = (*(layer_type(kind) for kind in LayerKind), CONFIG_TYPE, "", None, 3, "x" * 10_000)


def _hostile_layer(random_: random.Random, sound: dict[str, object]) -> object:
    choice = random_.randrange(8)
    if choice == 0:
        return random_.choice([None, 1, "layer", [], [[]], {}])
    layer = dict(sound)
    if choice < 5:
        layer["digest"] = random_.choice(_DIGESTS)
    if choice in (3, 4, 5):
        layer["size"] = random_.choice(_SIZES)
    if choice in (4, 5, 6):
        layer["mediaType"] = random_.choice(_TYPES)
    return layer


def _hostile_manifest(random_: random.Random, sound: dict[str, object]) -> bytes:
    layers: object = [_hostile_layer(random_, sound) for _ in range(random_.randrange(4))]
    choice = random_.randrange(12)
    if choice == 0:
        return random_.randbytes(random_.randrange(200))
    if choice == 1:
        return b"[" * 100_000
    if choice == 2:
        return b'{"layers": [' + b'{"size": ' + b"9" * 5000 + b"}]}"
    if choice == 3:
        layers = random_.choice([None, {}, "layers", 5])
    config = random_.choice([None, {}, sound, _hostile_layer(random_, sound), "config"])
    return json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()


def _hostile_place(random_: random.Random, root, outside, number):
    """Return where a manifest goes: at times a link, or a folder that leads elsewhere."""
    tag = root / "manifests" / "registry.ollama.ai" / "library" / f"m{number}" / "latest"
    tag.parent.mkdir(parents=True)
    choice = random_.randrange(12)
    if choice == 0:
        tag.symlink_to(outside / "secret")
        return None
    if choice == 1:
        tag.symlink_to(tag)  # a circle
        return None
    if choice == 2:
        tag.parent.rmdir()
        tag.parent.symlink_to(outside, target_is_directory=True)
        return None
    if choice == 3:
        tag.mkdir()
        return None
    return tag


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.many)])
def test_hostile_manifests_touch_nothing_outside(tmp_path, count):
    seed = 20261121
    random_ = random.Random(seed)
    root, outside = tmp_path / "store", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"GGUF")
    (outside / "latest").write_text(json.dumps({"layers": []}))
    before = {path: path.read_bytes() for path in outside.iterdir()}
    sound = put_blob(root, b"GGUF", layer_type(LayerKind.MODEL))
    entry = {"mediaType": sound.media_type, "digest": f"sha256:{sound.digest}", "size": 4}
    (root / "blobs" / f"sha256-{'a' * 64}").symlink_to(outside / "secret")
    real_root, runnable = os.path.realpath(root), 0
    store = OwnStore(root)
    for number in range(count):
        place = _hostile_place(random_, root, outside, number)
        if place is not None:
            place.write_bytes(_hostile_manifest(random_, entry))
        reference = OllamaReference(model=f"m{number}")
        with contextlib.suppress(MoerunError):
            found = store.layout.find(reference)
            paths = store.layout.model_paths(found.manifest) if found is not None else ()
            runnable += bool(paths)
            leads_out = [path for path in paths if not _lies_in(path, real_root)]
            assert not leads_out, f"seed {seed}, manifest {number}: {leads_out}"
        with contextlib.suppress(MoerunError):
            store.remove(reference)
        _clear(root / "manifests/registry.ollama.ai/library" / f"m{number}")
        if not (root / "blobs" / sound.file_name).exists():
            put_blob(root, b"GGUF", sound.media_type)
    assert {path: path.read_bytes() for path in outside.iterdir()} == before, f"seed {seed}"
    assert runnable > count / 100  # sound ones are among them


def _lies_in(path, real_root):
    return os.path.realpath(path).startswith(real_root + os.sep)


def _clear(folder):
    """Remove what one manifest left, so that the next one is looked at among few."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


# Several processes at once.


def _work(root: str, source: str, number: int, failures: "multiprocessing.Queue[str]") -> None:
    """Create, copy, use and remove models that share their blobs, for a while."""
    from pathlib import Path

    random_ = random.Random(number)
    store = OwnStore(Path(root))
    try:
        kept = add_model(store, f"kept{number}", Path(source))
        for turn in range(25):
            name = f"shared{random_.randrange(3)}"
            _turn(store, random_.randrange(4), name, Path(source))
            found = store.layout.find(kept)
            if found is None or not store.layout.model_paths(found.manifest):
                failures.put(f"process {number} lost its model in turn {turn}")
        store.copy(store.layout.find(kept), OllamaReference(model=f"copy{number}"))  # type: ignore[arg-type]
    except BaseException as error:
        failures.put(f"process {number}: {type(error).__name__}: {error}")


def _turn(store: OwnStore, choice: int, name: str, source) -> None:
    reference = OllamaReference(model=name)
    if choice < 2:
        add_model(store, name, source)
        return
    if choice == 2:
        with contextlib.suppress(ModelError):  # another removed it, or uses it
            store.remove(reference)
        return
    found = store.layout.find(reference)
    if found is None:
        return
    with blobs_in_use(store.root, [blob.file_name for blob in found.manifest.blobs]):
        again = store.layout.find(reference)
        if again is None or again.manifest.digest != found.manifest.digest:
            return
        paths = store.layout.model_paths(again.manifest)
        assert paths[0].read_bytes()[:4] == b"GGUF"


def test_processes_at_once_lose_nothing(tmp_path, gguf):
    root = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    failures: multiprocessing.Queue[str] = context.Queue()
    workers = [
        context.Process(target=_work, args=(str(root), str(gguf), number, failures))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert failures.empty(), failures.get()
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = OwnStore(root)
    found = {str(model.reference): model for model in store.layout.models()}
    for number in range(4):
        for name in (f"kept{number}:latest", f"copy{number}:latest"):
            assert store.layout.model_paths(found[name].manifest)
    named = {blob.file_name for model in found.values() for blob in model.manifest.blobs}
    assert files_in(root) == named  # nothing is lost, and nothing is left
