"""A runner that gets little memory, or less and less of it while it answers.

The model is one of 350 MB, large beside the memory that is kept in reserve.
"""

import resource
import sys
from pathlib import Path

import pytest

from benchmarks.synthetic_model import SyntheticShape, write_synthetic_model
from moerun.errors import MachineError
from moerun.planning.strategy import StreamingMode
from moerun.runner.parent import Runner
from moerun.units import KIB, MIB
from tests.engine.streaming import Answer, a_request, an_order, ask, load
from tests.memory_groups import MemoryGroup, a_memory_group

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's"),
]

SHAPE = SyntheticShape(layers=6, experts=16, experts_used=2, expert_ff=1024)
TOKENS = 150
FIRST_MIB, LAST_MIB, STEP_MIB = 600, 260, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_model(tmp_path_factory.mktemp("model") / "model.gguf", SHAPE)


@pytest.fixture(scope="module")
def right(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    answer = Answer()
    with Runner(log_folder=tmp_path_factory.mktemp("logs")) as runner:
        load(runner, model, None)
        ask(runner, answer, tokens=TOKENS)
    return answer.text


class Lowering:
    """Lowers the limit of a group one step with every piece of text."""

    def __init__(self, group: MemoryGroup) -> None:
        self._group = group
        self._steps = list(range(FIRST_MIB - STEP_MIB, LAST_MIB - 1, -STEP_MIB))
        self.parts: list[str] = []

    @property
    def is_done(self) -> bool:
        return not self._steps

    def take(self, text: str = "", *, tries: int = 1) -> None:
        self.parts.append(text)
        if self._steps and self._group.set_limit(self._steps[0] * MIB, tries=tries):
            del self._steps[0]


@pytest.mark.parametrize("mode", [StreamingMode.CACHE, StreamingMode.PAGING])
def test_the_cache_gives_way_while_it_answers(
    model: Path, right: str, tmp_path: Path, mode: StreamingMode
):
    order = an_order(model, mode=mode)
    all_experts = order.layout.expert_bytes
    order = an_order(model, mode=mode, cache_bytes=all_experts)
    with a_memory_group(FIRST_MIB * MIB) as group, Runner(log_folder=tmp_path) as runner:
        group.processes_path.write_text(str(runner.pid))
        load(runner, model, order)
        lowering = Lowering(group)
        runner.generate(a_request(TOKENS), on_text=lowering.take)
        answer = "".join(lowering.parts)
        while not lowering.is_done:  # the last steps may come after the last token
            lowering.take(tries=100)
        sample = runner.sample_streaming()
        again = Answer()
        ask(runner, again, tokens=TOKENS)
        runner.close()
    assert answer == right
    assert again.text == right
    assert sample is not None
    assert order.minimum_bytes <= sample.cache_bytes < 0.7 * all_experts
    assert any("the control group has only" in note for note in sample.notes), sample.notes


def limit_private_memory(pid: int, *, more_bytes: int) -> None:
    """Let a process have so much more private memory than it has: as strict promises would."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmData:")]
    limit_bytes = int(line.split()[1]) * KIB + more_bytes
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def test_without_memory_for_a_cache_auto_pages_and_cache_is_refused(
    model: Path, right: str, tmp_path: Path
):
    with Runner(log_folder=tmp_path) as runner:
        load(runner, model, None)  # so that its threads and buffers are there
        limit_private_memory(runner.pid, more_bytes=200 * MIB)
        with pytest.raises(MachineError, match="ENOMEM") as raised:
            load(runner, model, an_order(model, mode=StreamingMode.CACHE))
        assert "--streaming" in (raised.value.hint or "")
        load(runner, model, an_order(model, mode=StreamingMode.AUTO))
        answer = Answer()
        ask(runner, answer, tokens=TOKENS)
        sample = runner.sample_streaming()
    assert answer.text == right
    assert sample is not None
    assert sample.mechanism == "paging"
    assert "cache failed" in sample.because
