"""The guard against a real kernel: a control group's limit is lowered under a full cache."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moerun.units import MIB
from tests.memory_groups import MemoryGroup, a_memory_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")

ROOT = Path(__file__).parents[1]
CACHE_BYTES, FLOOR_BYTES = 400 * MIB, 64 * MIB


class Child:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._questions, self._answers = process.stdin, process.stdout
        assert self._answers.readline() == "full\n"

    def says(self) -> str:
        self._questions.write("?\n")
        self._questions.flush()
        return self._answers.readline()

    @property
    def cache_bytes(self) -> int:
        return int(self.says().split()[0])


@contextmanager
def a_child(group: MemoryGroup) -> Iterator[Child]:
    command = [sys.executable, "-m", "tests.cache_in_group", str(group.processes_path)]
    process = subprocess.Popen(
        [*command, str(CACHE_BYTES), str(FLOOR_BYTES)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield Child(process)
        finally:
            process.kill()


def test_a_limit_lowered_step_by_step_shrinks_the_cache_in_time():
    with a_memory_group(600 * MIB) as group, a_child(group) as child:
        assert child.cache_bytes == CACHE_BYTES
        for limit_mib in range(570, 200, -30):
            assert group.set_limit(limit_mib * MIB, tries=100), f"{limit_mib} MiB: {child.says()}"
            assert child.process.poll() is None, f"it was killed at {limit_mib} MiB"
        assert group.used_bytes <= 210 * MIB
        assert FLOOR_BYTES <= child.cache_bytes < 210 * MIB
        assert "the control group has only" in child.says()
