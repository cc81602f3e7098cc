"""A model of the own store while it runs: its blobs stay, and its parameters hold."""

import os

import pytest

from moerun.cli.app import main
from moerun.cli.open_model import opened_model
from moerun.cli.options import PlacementFlags

pytestmark = pytest.mark.engine


def test_a_model_that_runs_is_not_removed_and_has_the_context_it_asks_for(
    tmp_path, monkeypatch, capsys
):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "STATE_DIR", "MODELS"):
        monkeypatch.setenv(f"MOERUN_{name}", str(tmp_path / name.partition("_")[0].lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Modelfile").write_text("FROM demo\nPARAMETER num_ctx 768\n")
    assert main(["create", "mine"]) == 0
    with opened_model("mine", PlacementFlags(), is_quiet=True) as opened:
        assert opened.loaded.report.context_tokens == 768
        assert opened.model.files[0].path.startswith(str(tmp_path / "models" / "blobs"))
        assert main(["rm", "mine"]) == 3
        assert "mine:latest is in use" in capsys.readouterr().err
        assert os.path.exists(opened.model.files[0].path)
    assert main(["rm", "mine"]) == 0
    assert os.listdir(tmp_path / "models" / "blobs") == []
