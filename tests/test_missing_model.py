"""`run` of a model that is not here, against a local hub: planned, asked about, pulled, refused."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.cli.missing_model import fetch_missing, find_missing
from moerun.cli.options import PlacementFlags
from moerun.store.library import find_model
from tests.model_files import EXPERTS, a_model_file
from tests.servers.file_host import FileHost
from tests.servers.hub import Hub, Published
from tests.servers.ollama_registry import OllamaRegistry
from tests.terminal import Terminal

ROOT = Path(__file__).parents[1]

TIGHT = ("--ram", "1G", "--ubatch", "64", "--batch", "64", "--ctx", "512")
LARGE_WIDTH = 256 * 1024  # of the inner layer of experts: 2.4 GB of them, all holes


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(FileHost())
    with hub.serving():
        yield hub


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, hub):
    for name in list(os.environ):
        if name.startswith(("MOERUN_", "HF_", "OLLAMA_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "STATE_DIR", "MODELS"):
        monkeypatch.setenv(f"MOERUN_{name}", str(tmp_path / name.partition("_")[0].lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def small(hub, tmp_path):
    path = a_model_file(tmp_path)
    hub.repositories["user/repo"] = Published(files={"m-Q4_K_M.gguf": path})
    return path


@pytest.fixture
def large(hub, tmp_path):
    """Publish a model whose experts are larger than the RAM that the tests allow."""
    wide = {
        f"blk.{layer}.ffn_{part}_exps.weight": (
            f"blk.{layer}.ffn_{part}_exps.weight",
            (LARGE_WIDTH, 256, EXPERTS) if part == "down" else (256, LARGE_WIDTH, EXPERTS),
            "Q4_K",
        )
        for layer in range(2)
        for part in ("gate", "up", "down")
    }
    path = a_model_file(
        tmp_path,
        keys={"qwen3moe.expert_feed_forward_length": LARGE_WIDTH},
        tensors=wide,
        name="large.gguf",
    )
    hub.repositories["user/large"] = Published(files={"m-Q4_K_M.gguf": path})
    hub.lies_about["m-Q4_K_M.gguf"] = "a" * 64  # nobody reads it whole
    return path


def test_a_small_model_is_pulled_unasked_and_found_by_its_name(small):
    missing = find_missing("user/repo", PlacementFlags())
    assert missing is not None
    assert missing.model.architecture == "qwen3moe"
    assert not missing.needs_ssd
    assert fetch_missing(missing, says_yes=False, is_quiet=True) == "user/repo"
    found = find_model("user/repo")
    assert found is not None
    assert found.paths[0].read_bytes() == small.read_bytes()
    assert find_missing("user/repo", PlacementFlags()) is None
    assert find_missing("hf.co/user/repo:Q4_K_M", PlacementFlags()) is None


def test_a_dry_run_says_what_would_happen_and_fetches_no_tensor(small, capsys, tmp_path):
    assert main(["run", "user/repo", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "hf.co/user/repo: 1 file" in said
    assert "would be fetched to" in said
    assert main(["run", "user/repo", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["download"]["missing_bytes"] == small.stat().st_size
    assert document["plan"]["context_tokens"] > 0
    assert not (tmp_path / "hf").exists()


def test_streaming_after_a_download_is_not_begun_unasked(large, hub, capsys, tmp_path):
    assert main(["run", "user/large", "Hi", *TIGHT]) == 8
    said = capsys.readouterr()
    assert "would stream experts from SSD, and there is no terminal to ask on" in said.err
    assert "--yes agrees" in said.err
    assert "SSD" in said.err  # the plan stands before it
    assert said.out == ""
    assert not (tmp_path / "hf").exists()
    assert hub.files.sent_bytes < 32 << 20  # headers alone


@pytest.mark.parametrize(
    ("typed", "code", "said"), [("n\r", 1, "Nothing was downloaded."), ("\x03", 130, "")]
)
def test_somebody_at_a_terminal_is_asked(large, here, tmp_path, typed, code, said):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "moerun", "run", "user/large", "Hi", *TIGHT]
    with Terminal(command, environment, here) as screen:
        screen.expect("SSD")  # the plan stands before it
        screen.expect("would stream experts from SSD. Download it? [y/N]: ")
        screen.type(typed)
        assert screen.wait() == code
        assert said in screen.seen
        assert "Traceback" not in screen.seen
    assert not (tmp_path / "hf").exists()


def test_what_cannot_run_here_is_not_downloaded(large, capsys, tmp_path):
    assert main(["run", "user/large", "Hi", *TIGHT, "--ram", "80M", "--yes"]) == 4
    assert capsys.readouterr().err.startswith("Error: ")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("user/nosuch", "shows no repository user/nosuch", 3),
        ("qwen3-30b-a3", "did you mean qwen3-30b-a3b", 3),
        ("./nosuch.gguf", "There is no file ./nosuch.gguf", 3),
        ("user/repo:Q8_0", "has no Q8_0", 3),
    ],
)
def test_what_no_host_has_is_one_sentence(small, capsys, name, message, code):
    assert main(["run", name, "Hi"]) == code
    assert message in capsys.readouterr().err


def test_a_model_at_hand_asks_nobody(small, hub):
    missing = find_missing("user/repo", PlacementFlags())
    assert missing is not None
    fetch_missing(missing, says_yes=True, is_quiet=True)
    asked = len(hub.requests)
    assert find_missing("user/repo", PlacementFlags()) is None
    assert find_missing("demo", PlacementFlags()) is None
    assert len(hub.requests) == asked


def test_a_dry_run_of_the_catalogue_needs_no_network(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["run", "qwen3-30b-a3b", "--dry-run", "--ram", "64G"]) == 0
    said = capsys.readouterr()
    assert "(derived from the published configuration) would be fetched to" in said.out
    assert "Note: the host was not asked what it has: HF_HUB_OFFLINE is set" in said.err
    assert main(["run", "qwen3-30b-a3b", "--dry-run", "--ram", "64G", "--json"]) == 0
    download = json.loads(capsys.readouterr().out)["download"]
    assert download["size_is_derived"]
    assert 18 * 10**9 < download["size_bytes"] < 19 * 10**9
    assert download["name"].startswith("hf.co/")
    assert main(["run", "user/repo", "--dry-run"]) == 8  # of which nothing is known
    assert main(["run", "qwen3-30b-a3b", "Hi", "--ram", "64G", "--yes"]) == 8


@pytest.fixture
def registry(monkeypatch) -> Iterator[OllamaRegistry]:
    registry = OllamaRegistry(FileHost())
    monkeypatch.setenv("MOERUN_REGISTRY", registry.origin)
    with registry.serving():
        yield registry


@pytest.fixture
def published(registry, tmp_path):
    """Publish a model at the registry that stands for ollama's."""
    config = tmp_path / "config.json"
    config.write_text("{}")
    path = a_model_file(tmp_path, name="published.gguf")
    registry.publish("library/small-moe:4x1b", {"model": path}, config)
    return path


def test_bare_words_of_ollamas_library_are_planned_and_shown(published, registry, capsys):
    assert main(["plan", "small-moe:4x1b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["architecture"] == "qwen3moe"
    assert main(["show", "small-moe:4x1b"]) == 0
    assert "2 of 4 used for a token" in capsys.readouterr().out
    for verb in ("plan", "show"):
        assert main([verb, "small-moe:nosuch"]) == 3
        assert "ollama.com has none of that name" in capsys.readouterr().err


def test_a_pull_by_way_of_a_mirror_keeps_the_name(published, capsys):
    assert main(["run", "small-moe:4x1b", "--dry-run"]) == 0
    assert main(["pull", "small-moe:4x1b"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "small-moe:4x1b" in capsys.readouterr().out
    found = find_model("small-moe:4x1b")
    assert found is not None
    assert found.paths[0].read_bytes() == published.read_bytes()


def test_what_is_likely_mistyped_asks_nobody(registry, capsys):
    for verb in ("plan", "show"):
        assert main([verb, "qwen3-30b-a3"]) == 3
        assert "did you mean qwen3-30b-a3b" in capsys.readouterr().err
    assert registry.requests == []


def test_a_registry_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("MOERUN_REGISTRY", "http://127.0.0.1:9")
    for verb in ("plan", "show"):
        assert main([verb, "zzz-nosuch:1b"]) == 3
        assert "and ollama.com cannot be asked for it" in capsys.readouterr().err
    monkeypatch.setenv("MOERUN_REGISTRY", "registry")
    assert main(["plan", "zzz-nosuch:1b"]) == 2
    assert "MOERUN_REGISTRY: 'registry' is not the address of a host" in capsys.readouterr().err


def test_what_a_modelfile_is_made_from_is_pulled(published, here, capsys):
    (here / "Modelfile").write_text("FROM small-moe:4x1b\nSYSTEM Be brief.\n")
    assert main(["create", "mine"]) == 0
    assert "created 'mine:latest'" in capsys.readouterr().out
    assert find_model("small-moe:4x1b") is not None
    assert main(["show", "mine", "--system"]) == 0
    assert capsys.readouterr().out == "Be brief.\n"


def test_a_large_model_to_make_one_from_is_not_pulled_unasked(large, here, capsys, tmp_path):
    text = "FROM user/large\nPARAMETER ram_limit 1G\nPARAMETER num_ctx 512\n"
    (here / "Modelfile").write_text(text + "PARAMETER num_batch 64\n")
    assert main(["create", "mine"]) == 8
    assert "would stream experts from SSD, and there is no terminal" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
