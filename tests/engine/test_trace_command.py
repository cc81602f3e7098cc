"""`moerun trace` from prompt to file, through a runner and the real engine."""

import json
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.experts.routes import Phase
from moerun.experts.trace import read_trace

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_prompts_become_a_trace_that_can_be_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "prompts.txt").write_text("What is moerun?\n\nWhat is a router?\n")
    typed = ["trace", "demo", "Hello", "--file", "prompts.txt", "--tokens", "5", "--json"]
    assert main(typed) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == 1
    assert (document["path"], document["turns"]) == ("demo.route.csv", 3)
    assert "prompt 3 of 3: " in captured.err
    trace = read_trace(tmp_path / "demo.route.csv")
    assert document["answer_tokens"] == trace.tokens(Phase.DECODE) == 3 * 4
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["demo.route.csv"]
    assert main(["simulate", "demo.route.csv", "--model", "demo", "--disk", "1GB/s"]) == 0
    assert "frequency" in capsys.readouterr().out


def test_the_same_prompts_give_the_same_trace(tmp_path: Path):
    for name in ("one.csv", "two.csv"):
        assert main(["trace", "demo", "Hello", "--tokens", "6", "--output", name, "--quiet"]) == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    # a second recording in place of the first, when that is wished
    (tmp_path / "one.csv").write_text("old")
    typed = ["trace", "demo", "Hello", "--tokens", "6", "--output", "one.csv", "--force", "--quiet"]
    assert main(typed) == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
