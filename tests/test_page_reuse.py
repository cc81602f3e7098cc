"""Pages that move: what they held, how many mappings they cost, and what happens without."""

import ctypes
import mmap
import sys
from collections.abc import Iterator

import pytest

from moerun.experts import memory_map
from moerun.experts.memory_map import PAGE_BYTES
from moerun.experts.page_reuse import PageReuse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages move on Linux")

PAGES = 64


@pytest.fixture
def room() -> Iterator[int]:
    """Give the address of fresh pages."""
    memory = mmap.mmap(-1, (PAGES + 1) * PAGE_BYTES)
    view = ctypes.c_char.from_buffer(memory)
    first = memory_map.page_ceiling(ctypes.addressof(view))
    memory_map.lay_anonymous(first, first + PAGES * PAGE_BYTES)
    yield first
    del view
    memory.close()


def pages(room: int, first: int, count: int) -> tuple[int, int]:
    return room + first * PAGE_BYTES, room + (first + count) * PAGE_BYTES


def resident_pages(room: int) -> int:
    return memory_map.resident_bytes(*pages(room, 0, PAGES)) // PAGE_BYTES


def test_pages_move_as_they_are_and_none_are_left_behind(room: int):
    source, target = pages(room, 2, 3), pages(room, 40, 3)
    ctypes.memset(source[0], 7, 3 * PAGE_BYTES)
    reuse = PageReuse()
    reuse.offer(*source)

    assert reuse.fill(*target)
    assert ctypes.string_at(target[0], 3 * PAGE_BYTES) == b"\x07" * 3 * PAGE_BYTES
    assert resident_pages(room) == 3
    assert reuse.moved_pages == 3
    ctypes.memset(source[0], 1, PAGE_BYTES)  # the old addresses are mapped still
    assert resident_pages(room) == 4


def test_what_nobody_takes_is_given_back(room: int):
    reuse = PageReuse()
    for first, count in ((0, 2), (10, 5)):
        ctypes.memset(pages(room, first, count)[0], 1, count * PAGE_BYTES)
        reuse.offer(*pages(room, first, count))

    assert not reuse.fill(*pages(room, 30, 4))  # no range of four pages
    assert reuse.fill(*pages(room, 30, 5))
    reuse.drop_rest()
    assert resident_pages(room) == 5
    assert not reuse.fill(*pages(room, 40, 2))


def test_no_more_mappings_are_made_than_are_left(room: int):
    reuse = PageReuse(mappings_left=4)  # for two ranges
    moved = []
    for number in range(4):
        source, target = pages(room, 2 * number, 2), pages(room, 20 + 4 * number, 2)
        ctypes.memset(source[0], number, 2 * PAGE_BYTES)
        reuse.offer(*source)
        moved.append(reuse.fill(*target))
    assert moved == [True, True, False, False]
    # A range that was moved to before costs nothing more.
    assert reuse.fill(*pages(room, 20, 2))


def test_what_cannot_be_moved_is_given_back_and_not_tried_again(room: int):
    ctypes.memset(room, 1, 8 * PAGE_BYTES)
    reuse = PageReuse()
    reuse.offer(*pages(room, 0, 2))
    assert not reuse.fill(*pages(room, 1, 2))  # no pages move onto themselves
    assert resident_pages(room) == 5
    ctypes.memset(pages(room, 1, 2)[0], 2, 2 * PAGE_BYTES)  # there is memory to read into
    reuse.offer(*pages(room, 4, 2))
    assert not reuse.fill(*pages(room, 10, 2))


def test_this_process_may_make_more_mappings():
    assert memory_map.mappings_left(share=1.0) > memory_map.mappings_left(share=0.5) > 0
    assert memory_map.mappings_left(share=0.0) == 0
