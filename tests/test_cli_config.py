"""`moerun config` from the outside: what goes to which stream, and with which code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.settings.keys import KEYS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/config.yaml").write_text("context: 4096\n")
    (tmp_path / "project").mkdir()
    return tmp_path


def moerun(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOERUN_")}
    root = str(Path(__file__).parents[1])
    environment = kept | {
        "MOERUN_CONFIG_DIR": str(folder / "settings"),
        "MOERUN_STATE_DIR": str(folder / "state"),
        "PYTHONPATH": root,
        **variables,
    }
    script = "import sys; from moerun.cli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=folder / "project",
        env=environment,
        check=False,
    )


def test_every_key_is_shown_with_its_origin(folder: Path):
    done = moerun(folder, "config", MOERUN_VRAM_LIMIT="8G,24G")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["KEY", *(key.name for key in KEYS)]
    by_key = {line[0]: line[1:] for line in lines}
    assert by_key["context"] == ["4096", f"{folder}/settings/config.yaml:1"]
    assert by_key["memory_strategy.vram_limit"] == ["[8G,", "24G]", "MOERUN_VRAM_LIMIT"]
    assert by_key["batch"] == ["2048", "default"]
    assert str(folder / "settings/config.yaml") in done.stderr


def test_json_is_one_document_even_with_warnings(folder: Path):
    done = moerun(folder, "config", "--json", MOERUN_VRAM_LIMT="8G", MOERUN_MAX_SWAP_SIZE="1G")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert set(document["settings"]) == {key.name for key in KEYS}
    assert document["settings"]["context"]["value"] == 4096
    assert document["settings"]["memory_strategy.max_swap_size"] == {
        "value": "1G",
        "origin": "MOERUN_MAX_SWAP_SIZE",
    }
    assert "MOERUN_VRAM_LIMT is not a setting" in done.stderr


@pytest.mark.parametrize("name", ["vram_limit", "memory_strategy.vram_limit"])
def test_one_value_is_all_of_the_answer(folder: Path, name: str):
    done = moerun(folder, "config", "--get", name, MOERUN_VRAM_LIMIT="80%")
    assert (done.returncode, done.stdout, done.stderr) == (0, "80%\n", "")
    document = json.loads(moerun(folder, "config", "--get", name, "--json").stdout)
    assert document == {
        "schema": 1,
        "key": "memory_strategy.vram_limit",
        "value": "auto",
        "origin": "default",
    }


def test_an_unknown_key_is_a_usage_error_with_the_nearest(folder: Path):
    done = moerun(folder, "config", "--get", "vram_limt")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "'vram_limt' is not a setting" in done.stderr
    assert "did you mean 'vram_limit'" in done.stderr


def test_a_bad_file_is_one_line_with_file_and_line(folder: Path):
    (folder / "project/moerun.yaml").write_text("memory_strategy:\n  ram_limit: lots\n")
    done = moerun(folder, "config")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ./moerun.yaml:2: memory_strategy.ram_limit: 'lots'")
