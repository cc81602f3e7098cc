"""`moerun plan --exact` as it is typed, with the real engine and the demo model."""

import json
import os
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.runner.exact import FOLDER

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def test_the_engines_figures_are_charged_and_the_formulas_stand_beside_them(state: Path, capfd):
    assert main(["plan", "demo", "--exact", "--ctx", "512", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    rows = {row["name"]: row for row in document["formula_beside_dry_run"]}
    assert rows["kv_cache"]["drift_fraction"] == 0
    assert -0.5 < rows["compute"]["drift_fraction"] < 0.5
    charged = [
        charge["size_bytes"]
        for charge in document["plan"]["ledger"]["charges"]
        if charge["kind"] == "compute"
    ]
    assert charged == [rows["compute"]["reported_bytes"]]
    (kept,) = (state / FOLDER).iterdir()
    before = kept.stat().st_mtime_ns
    assert main(["plan", "demo", "--exact", "--ctx", "512"]) == 0
    assert "cpu kv_cache" in capfd.readouterr().out
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("flags", [["--vram", "24G"], ["--machine", "other.json"]])
def test_devices_that_are_not_here_cannot_be_asked(flags: list[str], capfd):
    assert main(["plan", "demo", "--exact", *flags]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert flags[0] in said.err
    assert "35% above" in said.err


def test_an_exact_plan_is_of_one_model(capfd):
    assert main(["plan", "--exact"]) == 2
    assert "--exact" in capfd.readouterr().err
