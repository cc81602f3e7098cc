"""Reading by several threads: what is wanted first, what is given up, what fails."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.errors import ModelError
from moerun.experts import memory_map
from moerun.experts.read_queue import Fetch, Read
from moerun.experts.reader import Reader
from tests.mapped_experts import forget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="streaming is Linux's")

PAGE = mmap.PAGESIZE


@pytest.fixture
def room() -> Iterator[int]:
    """Give the address of 64 pages."""
    memory = mmap.mmap(-1, 64 * PAGE)
    view = ctypes.c_char.from_buffer(memory)
    yield ctypes.addressof(view)
    del view
    memory.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 16 * 20 + b"the end")
    return path


def test_pieces_come_from_their_offsets_and_the_last_is_short(room: int, path: Path):
    reader = Reader([str(path)], threads=3)
    fetch = Fetch(2, 0.0)
    reader.submit(
        [
            Read(0, room, 19 * PAGE, 2 * PAGE, (fetch,)),
            Read(0, room + 2 * PAGE, PAGE, PAGE, (fetch,)),
        ]
    )
    fetch.wait()

    content = path.read_bytes()
    assert ctypes.string_at(room, PAGE + 7) == content[19 * PAGE :]
    assert ctypes.string_at(room + 2 * PAGE, PAGE) == content[PAGE : 2 * PAGE]
    sums = reader.sums()
    assert sums.read_bytes == 3 * PAGE
    assert sums.busy_s > 0
    reader.close()


def test_what_was_not_begun_is_given_up(room: int, path: Path):
    reader = Reader([str(path)], threads=1)
    fetches = [Fetch(1, 0.0) for _ in range(40)]
    reader.submit(
        [Read(0, room + n * PAGE, 0, PAGE, (fetch,)) for n, fetch in enumerate(fetches)],
        is_ahead=True,
    )
    for fetch in reversed(fetches):
        reader.cancel(fetch)

    assert all(fetch.is_done for fetch in fetches)
    read = sum(not fetch.was_cancelled for fetch in fetches)
    assert reader.sums().read_bytes == read * PAGE
    reader.close()


def test_what_becomes_urgent_is_waited_for(room: int, path: Path):
    reader = Reader([str(path)], threads=1)
    fetches = [Fetch(1, 0.0) for _ in range(40)]
    reader.submit(
        [Read(0, room + n * PAGE, 0, PAGE, (fetch,)) for n, fetch in enumerate(fetches)],
        is_ahead=True,
    )
    reader.hasten(fetches[-1:])
    fetches[-1].wait()
    assert not fetches[-1].was_cancelled
    reader.close()
    assert all(fetch.is_done for fetch in fetches)


def test_a_read_into_no_memory_fails_with_its_place(path: Path):
    reader = Reader([str(path)], threads=1)
    fetch = Fetch(1, 0.0)
    reader.submit([Read(0, PAGE, 2 * PAGE, PAGE, (fetch,))])
    with pytest.raises(ModelError, match=r"cannot be read at byte 8,192 \(4,096 bytes\)"):
        fetch.wait()
    reader.close()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(ModelError, match="nothing cannot be opened"):
        Reader([str(tmp_path / "nothing")], threads=1)


def test_a_file_system_without_direct_reads_is_read_all_the_same(room: int):
    path = Path("/sys/kernel/notes")
    if not path.exists():
        pytest.skip("this system shows no notes of its kernel")
    with pytest.raises(OSError, match="Invalid argument"):
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    content = path.read_bytes()
    reader = Reader([str(path)], threads=1)
    fetch = Fetch(1, 0.0)
    reader.submit([Read(0, room, 0, PAGE, (fetch,))])
    fetch.wait()
    reader.close()
    assert len(content) > 0
    assert ctypes.string_at(room, len(content)) == content


def test_files_in_memory_are_read_as_well(room: int):
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("there is no tmpfs here")
    path = folder / f"moerun-test-reader-{os.getpid()}"
    path.write_bytes(b"x" * PAGE)
    try:
        reader = Reader([str(path)], threads=1)
        fetch = Fetch(1, 0.0)
        reader.submit([Read(0, room, 0, PAGE, (fetch,))])
        fetch.wait()
        reader.close()
    finally:
        path.unlink()
    assert ctypes.string_at(room, PAGE) == b"x" * PAGE


def test_reads_leave_nothing_in_the_page_cache(room: int, path: Path):
    forget(path)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    view = ctypes.c_char.from_buffer(mapping)
    first = ctypes.addressof(view)
    last = memory_map.page_ceiling(first + len(mapping))
    if memory_map.resident_bytes(first, last):
        pytest.skip("this file system keeps files in memory")
    reader = Reader([str(path)], threads=2)
    fetch = Fetch(1, 0.0)
    reader.submit([Read(0, room, 0, 16 * PAGE, (fetch,))])
    fetch.wait()
    reader.close()
    assert memory_map.resident_bytes(first, last) == 0
    del view
    mapping.close()
