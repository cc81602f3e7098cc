"""What a command line that loads nothing may not import: start-up stays cheap by construction."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_shapes import write_sparse_gguf

HEAVY = {
    "numpy", "gguf", "llama_cpp", "pynvml", "psutil", "yaml", "rich", "pydantic", "jinja2",
    "huggingface_hub", "httpx", "starlette", "prompt_toolkit",
}  # fmt: skip
CODE = """
import sys
from moerun.cli.app import main
code = main(sys.argv[1:])
sys.stderr.write("LOADED " + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""


def modules_loaded_by(arguments: list[str], folder: Path) -> set[str]:
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("MOERUN_")}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "MOERUN_CONFIG_DIR": str(folder / "config"),
        "MOERUN_STATE_DIR": str(folder / "state"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], [], ["plan", "--help"], ["run", "--help"]])
def test_help_is_cheap(arguments: list[str], tmp_path: Path):
    loaded = modules_loaded_by(arguments, tmp_path)
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_the_version_asks_no_engine(tmp_path: Path):
    assert not modules_loaded_by(["--version"], tmp_path) & HEAVY


def test_a_plan_needs_neither_engine_nor_arrays(tmp_path: Path):
    path = write_sparse_gguf(tmp_path / "m.gguf", "qwen3-30b-a3b-q4_k_m", vocabulary=8)
    loaded = modules_loaded_by(["plan", str(path), "--vram", "24G", "--ram", "64G"], tmp_path)
    # rich draws the plan, and the driver is asked for GPUs by pynvml
    assert not loaded & (HEAVY - {"rich", "pynvml"})


@pytest.mark.parametrize("arguments", [["qwen3-30b-a3b"], ["qwen3-30b-a3b", "--advise"], []])
def test_plans_from_the_catalogue_need_no_more(arguments: list[str], tmp_path: Path):
    loaded = modules_loaded_by(["plan", *arguments, "--vram", "24G", "--ram", "64G"], tmp_path)
    assert not loaded & (HEAVY - {"rich", "pynvml"})


def test_settings_files_alone_need_yaml(tmp_path: Path):
    path = write_sparse_gguf(tmp_path / "m.gguf", "qwen3-30b-a3b-q4_k_m", vocabulary=8)
    (tmp_path / "moerun.yaml").write_text("context: 4096\n")
    assert "yaml" in modules_loaded_by(["plan", str(path), "--ram", "64G"], tmp_path)
