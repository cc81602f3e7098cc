"""What the system does with pages that are laid, dropped, moved, advised and counted."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.errors import MachineError
from moerun.experts import memory_map
from moerun.experts.memory_map import PAGE_BYTES
from tests.mapped_experts import forget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mappings are replaced on Linux")

PAGES = 512


class Mapping:
    """A file of numbered pages, and its mapping."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"".join(bytes([page % 251]) * PAGE_BYTES for page in range(PAGES)))
        self.descriptor = os.open(path, os.O_RDONLY)
        self._map = mmap.mmap(self.descriptor, 0, flags=mmap.MAP_PRIVATE)
        self.first = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.last = self.first + PAGES * PAGE_BYTES

    def page(self, number: int) -> int:
        return self.first + number * PAGE_BYTES

    def value(self, number: int) -> int:
        return ctypes.string_at(self.page(number), 1)[0]

    def resident_pages(self) -> int:
        return memory_map.resident_bytes(self.first, self.last) // PAGE_BYTES

    def forget(self) -> None:
        """Have nothing of the file in memory, or skip."""
        memory_map.drop(self.first, self.last)
        forget(self.path)
        if self.resident_pages():
            pytest.skip("this file system keeps files in memory")


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[Mapping]:
    mapping = Mapping(tmp_path / "file")
    yield mapping
    os.close(mapping.descriptor)


@pytest.mark.parametrize(
    ("position", "floor", "ceiling"),
    [(0, 0, 0), (1, 0, 1), (PAGE_BYTES - 1, 0, 1), (PAGE_BYTES, 1, 1), (PAGE_BYTES + 1, 1, 2)],
)
def test_addresses_are_rounded_to_pages(position: int, floor: int, ceiling: int):
    assert memory_map.page_floor(position) == floor * PAGE_BYTES
    assert memory_map.page_ceiling(position) == ceiling * PAGE_BYTES


def test_laid_memory_takes_room_when_written_and_none_when_dropped(mapping: Mapping):
    memory_map.lay_anonymous(mapping.page(4), mapping.last)
    assert mapping.value(3) == 3
    assert memory_map.resident_bytes(mapping.page(4), mapping.last) == 0
    ctypes.memset(mapping.page(10), 77, PAGE_BYTES)
    # One page, and no huge one around it.
    assert memory_map.resident_bytes(mapping.page(4), mapping.last) == PAGE_BYTES
    memory_map.drop(mapping.page(10), mapping.page(11))
    assert memory_map.resident_bytes(mapping.page(4), mapping.last) == 0
    assert mapping.value(10) == 0


def test_the_file_lies_there_again(mapping: Mapping):
    memory_map.lay_anonymous(mapping.page(4), mapping.page(9))
    assert mapping.value(5) == 0
    memory_map.map_file(mapping.descriptor, mapping.page(4), mapping.page(9), 4 * PAGE_BYTES)
    assert [mapping.value(number) for number in range(12)] == list(range(12))


def test_what_was_dropped_is_forgotten_and_what_is_needed_is_read(mapping: Mapping):
    mapping.forget()
    memory_map.will_need(mapping.page(100), mapping.page(110))
    assert [mapping.value(number) for number in range(100, 110)] == list(range(100, 110))
    assert mapping.resident_pages() == 10
    memory_map.drop(mapping.page(100), mapping.page(104))
    assert mapping.resident_pages() == 10  # of a file's mapping, only unmapped
    memory_map.drop_from_page_cache(mapping.descriptor, 100 * PAGE_BYTES, 4 * PAGE_BYTES)
    assert mapping.resident_pages() == 6
    assert mapping.value(101) == 101


def test_a_fault_reads_its_own_page_and_none_around(mapping: Mapping):
    memory_map.read_no_more_than_touched(mapping.first, mapping.last)
    mapping.forget()
    for number in (40, 200, 201):
        assert mapping.value(number) == number
    assert mapping.resident_pages() == 3
    assert memory_map.is_resident(mapping.page(200))
    assert not memory_map.is_resident(mapping.page(202))


def test_pages_that_are_mapped_are_counted_without_the_file_s_permission(mapping: Mapping):
    memory_map.read_no_more_than_touched(mapping.first, mapping.last)
    mapping.forget()
    assert memory_map.mapped_bytes(mapping.first, mapping.last) == 0
    for number in (7, 300):
        assert mapping.value(number) == number % 251
    assert memory_map.mapped_bytes(mapping.first, mapping.last) == 2 * PAGE_BYTES
    memory_map.will_need(mapping.page(400), mapping.page(404))
    assert memory_map.mapped_bytes(mapping.first, mapping.last) == 2 * PAGE_BYTES


def test_the_owner_is_told_what_is_resident(mapping: Mapping, tmp_path: Path):
    mapping.path.chmod(0o400)
    assert memory_map.tells_residency(str(mapping.path))
    assert not memory_map.tells_residency(str(tmp_path / "nothing"))


def test_what_the_system_refuses_is_one_sentence(mapping: Mapping):
    beyond = 1 << 60  # no address that a process has
    end = beyond + PAGE_BYTES
    for act in (memory_map.lay_anonymous, memory_map.drop, memory_map.will_need):
        with pytest.raises(MachineError, match=r"system did not .* \(4,096 bytes\): ENOMEM"):
            act(beyond, end)
    with pytest.raises(MachineError, match="did not map the model's file"):
        memory_map.map_file(mapping.descriptor, mapping.first + 1, mapping.first + PAGE_BYTES, 0)
    assert not memory_map.is_resident(beyond)


def test_reads_release_what_they_got_and_name_what_failed(mapping: Mapping):
    memory_map.lay_anonymous(mapping.page(0), mapping.page(4))
    got = memory_map.read_into(mapping.descriptor, mapping.page(1), 2 * PAGE_BYTES, 9 * PAGE_BYTES)
    assert got == 2 * PAGE_BYTES
    assert [mapping.value(number) for number in range(5)] == [0, 9, 10, 0, 4]
    end = PAGES * PAGE_BYTES
    assert memory_map.read_into(mapping.descriptor, mapping.page(3), PAGE_BYTES, end) == 0
    with pytest.raises(OSError, match="Bad address"):
        memory_map.read_into(mapping.descriptor, PAGE_BYTES, PAGE_BYTES, 0)
