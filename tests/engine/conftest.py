"""What tests with the real engine share: tiny models, and workers that stand in for GPUs."""

import functools
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moerun import data
from moerun.engine.rpc_worker import loopback_worker
from tests.tiny_models import ARCHITECTURES, write_tiny_model

REPOSITORY = Path(__file__).parents[2]
DEMO = "demo"
DEMO_FILE = Path(data.__file__).parent / "demo" / "demo.gguf"
MODELS = (*ARCHITECTURES, DEMO)

keeps_assignments = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="a dry run is exact behind the border of two devices on Linux only",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReport:
    """What a child process printed line by line before it ended, and how it ended."""

    lines: tuple[dict[str, Any], ...]
    ending: str


def child_report(module: str, *arguments: str) -> ChildReport:
    """Run a module of the tests in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return ChildReport(
        lines=tuple(json.loads(line) for line in child.stdout.splitlines()),
        ending=f"exit code {child.returncode}: {child.stderr[-2000:]}",
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the file of an architecture, written once."""
    folder = tmp_path_factory.mktemp("tiny_models")

    def path_of(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else write_tiny_model(path, architecture)

    return path_of


@pytest.fixture(scope="session")
def model_named(tiny_model: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function that gives the file of one of `MODELS`: the shipped one, or a tiny one."""
    return lambda name: DEMO_FILE if name == DEMO else tiny_model(name)


@pytest.fixture(scope="session")
def two_workers() -> Iterator[tuple[str, str]]:
    """Start two workers of one thread for all tests; each serves one client at a time."""
    with loopback_worker(threads=1) as first, loopback_worker(threads=1) as second:
        yield first, second


@pytest.fixture(scope="session")
def run_child(two_workers: tuple[str, str]) -> Callable[[str, Path], ChildReport]:
    """Return a function that runs a child module on a model and the workers, once each."""

    @functools.cache
    def run(module: str, model: Path) -> ChildReport:
        return child_report(module, str(model), *two_workers)

    return run
