"""Which models of all stores a name means; stores of other programs are read, never written."""

import os
from pathlib import Path

import pytest

from moerun.errors import ModelError, ModelNotFound, UsageError
from moerun.store.installed import Source
from moerun.store.library import find_model, installed_models, require_model
from moerun.store.ollama_store import closed_folders, ollama_folders
from moerun.store.own_store import OwnStore
from moerun.store.references import OllamaReference
from moerun.store.removal import reference_to_remove
from tests.stores import add_model, put_in_cache, put_model

GGUF = b"GGUF" + bytes(60)


@pytest.fixture
def home(tmp_path):
    """Lay down one store of each kind."""
    put_model(tmp_path / ".ollama/models", OllamaReference(model="qwen3", tag="30b"), GGUF)
    put_model(
        tmp_path / ".ollama/models",
        OllamaReference(host="hf.co", namespace="user", model="repo", tag="Q4_K_M"),
        GGUF + b"o",
    )
    put_in_cache(
        tmp_path / ".cache/huggingface/hub",
        "unsloth/Qwen3-30B-A3B-GGUF",
        {
            "Qwen3-30B-A3B-Q4_K_M.gguf": GGUF + b"1",
            "Q8_0/Qwen3-30B-A3B-Q8_0-00001-of-00002.gguf": GGUF + b"2",
            "Q8_0/Qwen3-30B-A3B-Q8_0-00002-of-00002.gguf": GGUF + b"3",
            "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf": GGUF + b"4",
            "mmproj-F16.gguf": GGUF + b"5",
        },
    )
    lm_studio = tmp_path / ".lmstudio/models/maker/Mixtral-GGUF"
    lm_studio.mkdir(parents=True)
    (lm_studio / "mixtral-Q5_K_M.gguf").write_bytes(GGUF + b"6")
    source = tmp_path / "mine.bin"
    source.write_bytes(GGUF + b"7")
    add_model(OwnStore(tmp_path / "own"), "mine", source)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    cache = home / ".cache/huggingface"
    return {"HOME": str(home), "HF_HOME": str(cache), "MOERUN_MODELS": str(home / "own")}


def found(name, home):
    here = home / "here"
    here.mkdir(exist_ok=True)
    return find_model(name, folder=here, environment=environment(home))


def test_every_store_is_listed_with_its_source(home):
    here = home / "here"
    here.mkdir()
    (here / "near.gguf").write_bytes(GGUF)
    models = installed_models(folder=here, environment=environment(home))
    assert {model.name: model.source.value for model in models} == {
        "demo": "demo",
        "near": "file",
        "mine:latest": "moerun",
        "qwen3:30b": "ollama",
        "hf.co/user/repo:Q4_K_M": "ollama",
        "hf.co/unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M": "hf",
        "hf.co/unsloth/Qwen3-30B-A3B-GGUF:Q8_0": "hf",
        "maker/Mixtral-GGUF:Q5_K_M": "lmstudio",
    }
    assert [model.modified_at_s for model in models] == sorted(
        (model.modified_at_s for model in models), reverse=True
    )
    split = next(model for model in models if model.name.endswith("Q8_0"))
    assert [path.name.partition("Q8_0-")[2] for path in split.paths] == [
        "00001-of-00002.gguf",
        "00002-of-00002.gguf",
    ]
    assert split.size_bytes == 2 * 65


@pytest.mark.parametrize(
    ("name", "source", "ending"),
    [
        ("mine", Source.MOERUN, ""),
        ("MINE:latest", Source.MOERUN, ""),
        ("qwen3:30b", Source.OLLAMA, ""),
        ("hf.co/unsloth/Qwen3-30B-A3B-GGUF", Source.HUGGING_FACE, "Q4_K_M.gguf"),
        ("unsloth/qwen3-30b-a3b-gguf:q8_0", Source.HUGGING_FACE, "00001-of-00002.gguf"),
        ("maker/Mixtral-GGUF:Q5_K_M", Source.LM_STUDIO, "mixtral-Q5_K_M.gguf"),
        ("maker/Mixtral-GGUF:mixtral-Q5_K_M.gguf", Source.LM_STUDIO, "mixtral-Q5_K_M.gguf"),
        ("demo", Source.DEMO, "demo.gguf"),
    ],
)
def test_names_of_every_kind_find_their_model(home, name, source, ending):
    model = found(name, home)
    assert model is not None
    assert model.source is source
    assert model.paths[0].name.endswith(ending)
    assert all(path.is_file() for path in model.paths)


@pytest.mark.parametrize("name", ["qwen3", "mine:other", "hf.co/a/b", "maker/Mixtral-GGUF:Q4_0"])
def test_what_is_not_here_is_none(home, name):
    assert found(name, home) is None


def test_every_name_that_is_listed_is_found(home):
    here = home / "here"
    here.mkdir()
    for model in installed_models(folder=here, environment=environment(home)):
        again = find_model(model.name, folder=here, environment=environment(home))
        assert again is not None, model.name
        assert again.paths == model.paths, model.name


def test_a_name_of_the_catalogue_means_what_is_installed_of_it(tmp_path):
    from moerun.model.catalog import catalog_entry

    entry = catalog_entry("qwen3-30b-a3b")
    assert found("qwen3-30b-a3b", tmp_path) is None
    cache = tmp_path / ".cache/huggingface/hub"
    put_in_cache(cache, entry.repositories[-1], {"x-Q3_K_M.gguf": GGUF})
    only = found("qwen3-30b-a3b", tmp_path)
    assert only is not None
    assert only.label == "Q3_K_M"
    put_in_cache(cache, entry.repositories[0], {f"x-{entry.recommended}.gguf": GGUF})
    usual = found("qwen3-30b-a3b", tmp_path)
    assert usual is not None
    assert usual.label == entry.recommended
    asked = found("qwen3-30b-a3b:Q3_K_M", tmp_path)
    assert asked is not None
    assert asked.label == "Q3_K_M"


def test_the_nearest_names_are_told_from_all_stores(home):
    here = home / "here"
    here.mkdir()
    with pytest.raises(ModelNotFound, match="No model at hand") as error:
        require_model("mine:latst", folder=here, environment=environment(home))
    assert "mine:latest" in (error.value.hint or "")


def test_a_model_whose_blob_is_missing_says_so(home):
    for blob in (home / ".ollama/models/blobs").iterdir():
        if blob.read_bytes() == GGUF:
            blob.unlink()
    with pytest.raises(ModelError, match=r"qwen3:30b \(ollama\) cannot be run: its blob"):
        found("qwen3:30b", home)


def test_links_that_lead_out_of_a_store_are_no_models(home):
    outside = home / "outside.gguf"
    outside.write_bytes(GGUF)
    cache = home / ".cache/huggingface/hub/models--a--b/snapshots" / ("a" * 40)
    cache.mkdir(parents=True)
    (cache / "x-Q4_K_M.gguf").symlink_to(outside)
    (home / ".lmstudio/models/maker/Other-GGUF").symlink_to(home, target_is_directory=True)
    names = {model.name for model in installed_models(folder=home, environment=environment(home))}
    assert not [name for name in names if "a/b" in name or "Other" in name]


def test_ollamas_folder_may_be_named(tmp_path):
    folders = ollama_folders({"HOME": "/home/me", "OLLAMA_MODELS": "/data/models"})
    assert folders[:2] == (Path("/data/models"), Path("/home/me/.ollama/models"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root sees all")
def test_a_store_that_is_closed_is_stepped_over_and_named(home):
    folder = home / ".ollama/models/manifests"
    folder.chmod(0)
    try:
        assert found("qwen3:30b", home) is None
        assert closed_folders(environment(home)) == (home / ".ollama/models",)
    finally:
        folder.chmod(0o755)


def test_only_the_own_store_is_removed_from(home, monkeypatch):
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    store = OwnStore(home / "own")
    assert reference_to_remove("mine", store) == OllamaReference(model="mine")
    for name, owner in (
        ("qwen3:30b", "ollama rm"),
        ("unsloth/Qwen3-30B-A3B-GGUF:Q8_0", "hf cache rm"),
        ("maker/Mixtral-GGUF", "LM Studio"),
        ("demo", "package of moerun"),
        ("deepseek-v3", "no model of moerun's own store"),
    ):
        with pytest.raises(UsageError, match=owner):
            reference_to_remove(name, store)
    with pytest.raises(ModelNotFound, match="has no model 'nosuch:latest'"):
        store.remove(reference_to_remove("nosuch", store))
