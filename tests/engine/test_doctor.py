"""`moerun doctor` with the real engine: the document it writes is one that a plan reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.engine.look import look_at_machine
from moerun.machine.document import read_machine

pytestmark = pytest.mark.engine


def doctor(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "MOERUN_CONFIG_DIR": str(folder),
        "MOERUN_STATE_DIR": str(folder / "state"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **variables,
    }
    script = "import sys; from moerun.cli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


def test_its_document_is_a_machine_and_names_each_check(tmp_path: Path):
    done = doctor(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    check = document["self_check"]
    assert check["is_sound"]
    assert set(document["streaming"]["mechanisms"]) <= {"cache", "paging"}
    assert {finding["name"] for finding in check["findings"]} >= {"version", "library", "prompt"}
    (tmp_path / "machine.json").write_text(done.stdout)
    machine = read_machine(tmp_path / "machine.json")
    assert machine.storage.path == str(tmp_path)
    assert machine.host.total_bytes > 0


def test_it_shows_the_same_to_people(tmp_path: Path):
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines() if line and line[0] != " "]
    assert labels[0] == "Engine"
    assert {"Memory", "Processor", "Storage", "Streaming"} <= set(labels)


def test_bad_settings_and_absent_workers_are_notes(tmp_path: Path):
    done = doctor(tmp_path, MOERUN_WORKERS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:1" in done.stdout
    (tmp_path / "config.yaml").write_text("contxt: 1\n")
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'contxt' is not a setting" in done.stdout


def test_an_engine_for_the_processor_alone_need_not_be_asked(tmp_path: Path):
    asked = look_at_machine(model_path=tmp_path, asks_always=True)
    unasked = look_at_machine(model_path=tmp_path)
    assert [gpu.id for gpu in unasked.gpus] == [gpu.id for gpu in asked.gpus]
    assert unasked.notes == asked.notes
