"""`moerun trace` as it is typed, up to where a model would be loaded."""

import io
import os
import sys
from pathlib import Path

import pytest

from moerun.cli.app import main
from tests.real_shapes import write_sparse_gguf


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_sparse_gguf(tmp_path / "m.gguf", "gpt-oss-20b-mxfp4", vocabulary=8))


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_without_a_prompt_there_is_nothing_to_record(
    text: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    piped(monkeypatch, text)
    assert main(["trace", model]) == 2
    assert "there is no prompt" in capsys.readouterr().err


def test_a_file_of_prompts_that_is_not_there_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["trace", model, "--file", "none.txt"]) == 2
    assert "--file: none.txt cannot be read (No such file" in capsys.readouterr().err


def test_nothing_is_written_over_unasked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    default = tmp_path / "m.route.csv"
    default.write_text("mine")
    assert main(["trace", model, "hello"]) == 2
    captured = capsys.readouterr()
    assert "m.route.csv is there already" in captured.err
    assert "--force" in captured.err
    assert main(["trace", model, "hello", "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["trace", model, "hello", "--output", ""]) == 2
    assert default.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["trace", model, "hello", "--output", "none/t.csv"]) == 1
    assert "cannot be written (No such file" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert main(["trace", "none.gguf", "hello"]) == 3
    assert capsys.readouterr().err.startswith("Error: ")
