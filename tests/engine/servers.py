"""A `moerun serve` of its own process, for tests: started, found, and ended."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from moerun.server.listening import read_server_record


@contextlib.contextmanager
def served(
    state: Path, more: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server on a free port with a state of its own; its address, and its process."""
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("MOERUN_")}
    environment |= {"MOERUN_HOST": "127.0.0.1:0", "MOERUN_STATE_DIR": str(state)}
    environment["MOERUN_CONFIG_DIR"] = str(state / "config")
    environment["MOERUN_MODELS"] = str(state / "models")
    environment |= more or {}
    process = subprocess.Popen([sys.executable, "-m", "moerun", "serve"], env=environment)
    try:
        while (record := read_server_record(state)) is None:
            assert process.poll() is None, "the server ended at once"
            time.sleep(0.05)
        yield record.url, process
    finally:
        process.kill()
        process.wait(30)
