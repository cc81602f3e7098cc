"""The place where libggml-base calls itself through, found, lent out and given back."""

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.engine import abi
from moerun.engine.call_slots import find_call_slot, redirected
from moerun.engine.exact_reserve import keeping_assignments
from tests.engine.conftest import keeps_assignments

pytestmark = [pytest.mark.engine, keeps_assignments]

RESET = "ggml_backend_sched_reset"
PROT_READ, MAP_PRIVATE, MAP_ANONYMOUS = 1, 2, 32
NOT_MAPPED = 8


@pytest.fixture
def library() -> ctypes.CDLL:
    path = abi.library_path(abi.open_engine().folder, "ggml-base")
    assert path is not None
    return ctypes.CDLL(str(path))


@pytest.fixture
def protected_address() -> Iterator[int]:
    """Give the address of a page that may only be read, as a table is after linking."""
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_long),
    )
    system.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = system.mmap(None, mmap.PAGESIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    yield address
    system.munmap(address, mmap.PAGESIZE)


def test_the_slot_is_in_the_memory_of_the_library(library: ctypes.CDLL):
    slot = find_call_slot(library, RESET)

    assert slot is not None
    assert "libggml-base" in mapping_at(slot)
    assert "libggml-base" in mapping_at(content_of(slot))  # the function, or its resolver


def test_a_function_that_the_library_does_not_call_has_no_slot(library: ctypes.CDLL):
    assert find_call_slot(library, "ggml_backend_sched_reserve_size") is None
    assert find_call_slot(library, RESET[:-1]) is None
    assert find_call_slot(library, "no such function") is None


def test_a_slot_is_given_back_whatever_happens(library: ctypes.CDLL):
    slot = find_call_slot(library, RESET)
    assert slot is not None
    before = content_of(slot)
    target = ctypes.cast(library["ggml_backend_sched_get_n_copies"], ctypes.c_void_p).value
    assert target is not None

    def interrupted() -> None:
        with redirected(slot, target) as is_redirected:
            assert is_redirected
            assert content_of(slot) == target
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content_of(slot) == before


def test_the_call_is_as_it_was_after_a_dry_run(library: ctypes.CDLL):
    slot = find_call_slot(library, RESET)
    assert slot is not None
    before = content_of(slot)

    with keeping_assignments(abi.open_engine()) as is_kept:
        assert is_kept
        assert content_of(slot) != before
    assert content_of(slot) == before


def test_it_is_told_when_a_slot_cannot_be_written():
    with redirected(NOT_MAPPED, 1) as is_redirected:
        assert not is_redirected


def test_a_protected_table_is_written_or_left_alone(protected_address: int):
    """Which of the two depends on the kernel: some refuse it."""
    with redirected(protected_address, 99) as is_redirected:
        assert content_of(protected_address) == (99 if is_redirected else 0)
    assert content_of(protected_address) == 0


def test_without_the_library_nothing_is_kept(tmp_path: Path):
    with keeping_assignments(replace(abi.open_engine(), folder=tmp_path)) as is_kept:
        assert not is_kept


def content_of(address: int) -> int:
    return ctypes.c_size_t.from_address(address).value


def mapping_at(address: int) -> str:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        first, _, last = line.split(maxsplit=1)[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return line
    return ""
