"""Choices that follow from a placement: load mode, repacking, flash attention, threads.

Knows: when a copy in RAM pays, and what changes the engine's arithmetic.
Does not know: how the placement was found.
"""

from typing import Final

from moerun.machine.description import SSD
from moerun.planning.candidate import Candidate
from moerun.planning.situation import Problem
from moerun.planning.strategy import LoadMode, Toggle

# A copy in RAM is taken when the host part fits this often: reading the file fills the page cache
# beside the copy, and the rest of the machine wants memory too.
COPY_FITS_TIMES: Final = 1.5


def load_mode(problem: Problem, candidate: Candidate) -> LoadMode:
    """Return how host weights get into memory."""
    if candidate.cache is not None:
        return LoadMode.STREAM
    if problem.strategy.load_mode not in (None, LoadMode.STREAM):
        return problem.strategy.load_mode
    if has_experts_on_ssd(problem, candidate) or problem.rooms.pool_bytes is not None:
        return LoadMode.MMAP
    fits = host_charge_bytes(candidate) * COPY_FITS_TIMES <= problem.rooms.host.budget.budget_bytes
    return LoadMode.COPY if fits else LoadMode.MMAP


def extra_buffers(problem: Problem, candidate: Candidate) -> bool:
    """Return whether host weights are packed anew for the processor.

    Belief: repacked weights are anonymous copies whatever the load mode - `select_weight_buft` in
    src/llama-model-loader.cpp @ llama-cpp-python 0.3.36 - so they never go with a mapping.
    """
    if has_experts_on_ssd(problem, candidate):
        return False  # repacking would read all of them into memory
    if candidate.slots:
        return False  # a slot takes an expert as the file has it
    match problem.strategy.extra_buffers:
        case Toggle.ON:
            return True
        case Toggle.OFF:
            return False
        case Toggle.AUTO:
            copies = (LoadMode.COPY, LoadMode.DIRECT)
            return load_mode(problem, candidate) in copies


def has_experts_on_ssd(problem: Problem, candidate: Candidate) -> bool:
    """Whether any expert lies on SSD, pinned ones included."""
    return bool(candidate.ssd_expert_bytes or problem.cargo.pinned_expert_bytes.get(SSD, 0))


def host_charge_bytes(candidate: Candidate) -> int:
    """Return all that the host holds, without its margin."""
    return candidate.need.total_bytes + candidate.ram_expert_bytes + candidate.cache_bytes
