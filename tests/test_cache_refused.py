"""A system that gives no memory for a cache: what was mapped stays readable, every byte of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moerun.errors import MachineError
from moerun.experts import memory_map
from moerun.experts.cache import CacheMechanism
from moerun.experts.model_memory import ModelMemory
from moerun.experts.order import PolicyName
from moerun.experts.paging import PagingMechanism
from moerun.experts.policy import make_policy
from moerun.units import KIB, MIB
from tests.mapped_experts import MappedModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mappings are replaced on Linux")

EXPERT_BYTES = MIB + 300  # so that experts and matrices meet within pages
CACHE_BYTES = 64 * MIB


@contextmanager
def little_private_memory(more_bytes: int) -> Iterator[None]:
    """Let this process have so much more private memory, as strict accounting would."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmData:")]
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * KIB + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def model(tmp_path: Path) -> MappedModel:
    model = MappedModel(tmp_path / "m", layers=2, expert_bytes=EXPERT_BYTES)
    # As the engine maps: shared and read only, which is no private memory.
    with model.path.open("rb") as file:
        part = model.mapped[0]
        memory_map.map_file(file.fileno(), part.address, part.address + part.size_bytes, 0)
    return model


@pytest.fixture
def memory(model: MappedModel) -> Iterator[ModelMemory]:
    memory = ModelMemory(model.layout, threads=2, read_bytes=MIB)
    yield memory
    memory.close()


def everything_is_right(model: MappedModel) -> bool:
    return model.resident_is_right() and all(
        model.holds(layer, expert) for layer in range(2) for expert in range(8)
    )


def test_what_could_not_be_laid_over_is_the_file_again(model: MappedModel, memory: ModelMemory):
    cache = CacheMechanism(memory, make_policy(PolicyName.LRU), cache_bytes=CACHE_BYTES)
    # Room for two of four matrices.
    with little_private_memory(20 * MIB), pytest.raises(MachineError, match="ENOMEM"):
        cache.attach(model.mapped)
    assert everything_is_right(model)


def test_another_mechanism_or_a_later_try_takes_over(model: MappedModel, memory: ModelMemory):
    cache = CacheMechanism(memory, make_policy(PolicyName.LRU), cache_bytes=CACHE_BYTES)
    with little_private_memory(20 * MIB), pytest.raises(MachineError):
        cache.attach(model.mapped)
    paging = PagingMechanism(memory, make_policy(PolicyName.LRU), cache_bytes=CACHE_BYTES)
    paging.attach(model.mapped)
    assert paging.supply(1, [3, 4]).misses == 2
    assert everything_is_right(model)
    paging.detach()
    again = CacheMechanism(memory, make_policy(PolicyName.LRU), cache_bytes=CACHE_BYTES)
    again.attach(model.mapped)
    again.supply(0, range(8))
    again.supply(1, range(8))
    assert everything_is_right(model)
