"""What tests with the real engine share: tiny models, and workers that stand in for GPUs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moerun.engine.rpc_worker import loopback_worker
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the file of an architecture, written once."""
    folder = tmp_path_factory.mktemp("tiny_models")

    def path_of(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else write_tiny_model(path, architecture)

    return path_of


@pytest.fixture(scope="session")
def two_workers() -> Iterator[tuple[str, str]]:
    """Start two workers of one thread for all tests; each serves one client at a time."""
    with loopback_worker(threads=1) as first, loopback_worker(threads=1) as second:
        yield first, second
