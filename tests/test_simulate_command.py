"""`moerun simulate` as it is typed."""

import json
import os
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.experts.layout import expert_layout
from moerun.experts.routes import COLUMNS
from moerun.experts.trace import start_trace, trace_header
from moerun.machine.description import SSD
from tests.real_shapes import real_model, write_sparse_gguf

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A trace of 20 tokens of a real shape, which chose by a simple rule."""
    model = real_model("gpt-oss-20b-mxfp4")
    layout = expert_layout(model, {tensor.name: SSD for tensor in model.loaded_tensors})
    path = tmp_path / "t.csv"
    start_trace(path, trace_header(model, layout))
    with path.open("a", encoding="utf-8") as file:
        for step in range(20):
            for layer in range(len(model.layers)):
                for slot in range(4):
                    expert = (step * (slot + 1) + layer) % 31 if slot else layer % 4
                    file.write(f"0,{int(step > 0)},{step},{layer},{slot},{expert},,,\n")
    return str(path)


def test_sizes_are_of_the_whole_process(trace: str, capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", trace, "--ram", "1G,8G,64G", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    small, medium, large = document["sizes"]
    assert small["replays"] == []
    assert small["ram_bytes"] < document["least_ram_bytes"]
    assert medium["cache_bytes"] == 8 * GIB - document["fixed"]["size_bytes"]
    assert large["held_fraction"] == 1.0
    assert [entry["policy"] for entry in medium["replays"]] == ["lru", "frequency", "belady"]
    assert document["disk"] is None
    assert medium["replays"][0]["warm"]["overlapped_tokens_per_s"] is None
    assert document["answer_tokens"] == 19


def test_without_sizes_there_is_a_ladder(trace: str, capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", trace, "--policy", "LRU", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["sizes"]) == 8
    assert all(len(size["replays"]) == 1 for size in document["sizes"])
    assert document["sizes"][-1]["held_fraction"] == 1.0


def test_a_size_that_is_too_small_says_what_is_needed(
    trace: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["simulate", trace, "--ram", "1M"]) == 0
    assert "too small: streaming needs" in capsys.readouterr().out


def test_a_model_counts_for_all_it_needs_and_its_disk_is_measured(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = write_sparse_gguf(tmp_path / "m.gguf", "gpt-oss-20b-mxfp4", vocabulary=8)
    assert main(["simulate", trace, "--json", "--ram", "8G"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["simulate", trace, "--json", "--ram", "8G", "--model", str(model)]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["fixed"]["size_bytes"] > plain["fixed"]["size_bytes"]
    assert "KV cache of 8,192 tokens" in document["fixed"]["origin"]
    # in memory they take whole pages, of which the trace knows nothing
    assert 1 <= document["expert_bytes"] / plain["expert_bytes"] < 1.01
    if document["disk"] is None:  # the folder of this test lies where nothing is read directly
        assert "the disk was not measured" in captured.err
    else:
        assert document["disk"]["origin"].startswith("measured: ")
    assert main(["simulate", trace, "--model", str(model), "--disk", "2GB/s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["disk"]["read_bytes_per_s"] == 2e9


def test_a_trace_of_another_model_is_refused(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = write_sparse_gguf(tmp_path / "m.gguf", "mixtral-8x7b-q4_k_m", vocabulary=8)
    assert main(["simulate", trace, "--model", str(model), "--disk", "1GB/s"]) == 2
    assert "it is of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ram", "eight"), "--ram: 'eight' is not a size"),
        (("--ram", ","), "--ram: 0 sizes are given"),
        (("--policy", "magic"), "--policy: 'magic' is none of lru, frequency, belady"),
        (("--disk", "fast"), "--disk: 'fast' is not a rate"),
        (("--disk", "0"), "--disk: '0' is not a rate"),
        (("--compute-ms", "-1"), "--compute-ms"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence(
    trace: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["simulate", trace, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_file_that_is_no_trace_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["simulate", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    path = tmp_path / "t.csv"
    path.write_text(f"{','.join(COLUMNS)}\n0,1,0,0,0,3,,,\n", encoding="utf-8")
    assert main(["simulate", str(path)]) == 2
    assert "how large the experts of layer 0 are" in capsys.readouterr().err


def test_a_note_goes_to_standard_error(trace: str, capsys: pytest.CaptureFixture[str]):
    with Path(trace).open("a", encoding="utf-8") as file:
        file.write("0,1,20")
    assert main(["simulate", trace, "--ram", "8G", "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "was cut off and is left out" in captured.err
