"""Copies of what was read on a faster disk: what comes from them, and when they are not used."""

import ctypes
import mmap
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moerun.experts.order import SsdCacheOrder
from moerun.experts.read_queue import Fetch, Read
from moerun.experts.reader import Reader
from moerun.experts.ssd_cache import SsdCache, open_ssd_cache
from moerun.planning.strategy import Limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="streaming is Linux's")

PAGE = mmap.PAGESIZE
PAGES = 64
DIGEST = "0123456789abcdef"


@pytest.fixture
def room() -> Iterator[int]:
    memory = mmap.mmap(-1, PAGES * PAGE)
    view = ctypes.c_char.from_buffer(memory)
    yield ctypes.addressof(view)
    del view
    memory.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(random.Random(1).randbytes(PAGES * PAGE - 100))
    return path


class Run:
    """One run that reads a file through copies."""

    def __init__(self, path: Path, folder: Path, *, limit: Limit | None = None, digest=DIGEST):
        self.reader = Reader([str(path)], threads=2)
        self.cache, self.note = open_ssd_cache(
            SsdCacheOrder(path=str(folder), limit=limit),
            [(str(path), self.reader.descriptor(0))],
            model_digest=digest,
            read_bytes=16 * PAGE,
            is_same_disk=lambda folder, descriptor: False,
        )
        if self.cache is not None:
            self.reader.read_through(self.cache)

    def read(self, room: int, first: int, pages: int) -> bytes:
        fetch = Fetch(1, 0.0)
        self.reader.submit([Read(0, room, first * PAGE, pages * PAGE, (fetch,))])
        fetch.wait()
        return ctypes.string_at(room, pages * PAGE)

    @property
    def opened(self) -> SsdCache:
        assert self.cache is not None
        return self.cache

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()


def copy_of(folder: Path) -> Path:
    return folder / f"moerun-{DIGEST}" / "0.pages"


def test_what_was_read_comes_from_the_copy_the_next_time(room: int, path: Path, tmp_path: Path):
    folder = tmp_path / "fast"
    content = path.read_bytes()
    with Run(path, folder) as run:
        assert run.read(room, 4, 8) == content[4 * PAGE : 12 * PAGE]
        assert run.opened.use().read_bytes == 0
    with open(copy_of(folder), "r+b") as copy:  # so that it shows where bytes come from
        copy.seek(5 * PAGE)
        copy.write(b"copied")
    with Run(path, folder) as run:
        assert run.read(room, 5, 2)[:6] == b"copied"
        assert run.read(room, 12, 2) == content[12 * PAGE : 14 * PAGE]  # was not read before
        use = run.opened.use()
    assert use.read_bytes == 2 * PAGE
    assert use.held_bytes >= 8 * PAGE


def test_seeded_reads_over_several_runs_are_the_file(room: int, path: Path, tmp_path: Path):
    chance, content = random.Random(5), path.read_bytes()
    came = 0
    for _ in range(6):
        with Run(path, tmp_path / "fast") as run:
            for _ in range(40):
                first = chance.randrange(PAGES)
                pages = chance.randrange(1, min(16, PAGES - first) + 1)
                expected = content[first * PAGE : (first + pages) * PAGE]
                assert run.read(room, first, pages)[: len(expected)] == expected
            came += run.opened.use().read_bytes
    assert came > 0


def test_a_file_that_changed_is_copied_anew(room: int, path: Path, tmp_path: Path):
    with Run(path, tmp_path / "fast") as run:
        run.read(room, 0, 8)
    path.write_bytes(bytes(PAGES * PAGE - 100))
    with Run(path, tmp_path / "fast") as run:
        assert run.opened.use().held_bytes == 0
        assert run.read(room, 0, 8) == bytes(8 * PAGE)


def test_a_limit_holds_and_a_lower_one_begins_anew(room: int, path: Path, tmp_path: Path):
    with Run(path, tmp_path / "fast", limit=Limit(limit_bytes=8 * PAGE)) as run:
        run.read(room, 0, 6)
        run.read(room, 10, 6)
    with Run(path, tmp_path / "fast", limit=Limit(limit_bytes=8 * PAGE)) as run:
        assert run.opened.use().held_bytes == 6 * PAGE
    assert copy_of(tmp_path / "fast").stat().st_blocks * 512 <= 8 * PAGE
    with Run(path, tmp_path / "fast", limit=Limit(limit_bytes=4 * PAGE)) as run:
        assert run.opened.use().held_bytes == 0


def test_copies_of_a_model_used_long_ago_make_room(room: int, path: Path, tmp_path: Path):
    folder = tmp_path / "fast"
    for age, digest in enumerate(["a" * 16, "b" * 16]):
        with Run(path, folder, digest=digest) as run:
            run.read(room, 0, 16)
        os.utime(folder / f"moerun-{digest}" / "book.json", (1000 + age, 1000 + age))
    own_file = folder / "notes.txt"
    own_file.write_text("the user's")
    with Run(path, folder, limit=Limit(limit_bytes=(PAGES + 20) * PAGE)) as run:
        assert run.opened.limit_bytes >= PAGES * PAGE
    assert sorted(entry.name for entry in folder.iterdir()) == [
        f"moerun-{DIGEST}",
        f"moerun-{'b' * 16}",
        "notes.txt",
    ]


def test_one_run_at_a_time_uses_the_copies(room: int, path: Path, tmp_path: Path):
    with Run(path, tmp_path / "fast"), Run(path, tmp_path / "fast") as second:
        assert second.cache is None
        assert second.note is not None
        assert second.note.endswith("another run uses it")
        assert second.read(room, 0, 4) == path.read_bytes()[: 4 * PAGE]


def test_a_folder_on_the_file_system_of_the_model_is_not_used(path: Path, tmp_path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    cache, note = open_ssd_cache(
        SsdCacheOrder(path=str(tmp_path / "fast")),
        [(str(path), descriptor)],
        model_digest=DIGEST,
        read_bytes=PAGE,
    )
    os.close(descriptor)
    assert cache is None
    assert note is not None
    assert "lies on the file system of the model" in note


def test_a_folder_that_cannot_be_made_is_told(path: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with Run(path, tmp_path / "file" / "fast") as run:
        assert run.cache is None
        assert run.note is not None
        assert "is not used: Not a directory" in run.note


def test_a_copy_that_was_cut_is_told_and_the_file_read(room: int, path: Path, tmp_path: Path):
    with Run(path, tmp_path / "fast") as run:
        run.read(room, 0, 8)
    os.truncate(copy_of(tmp_path / "fast"), 3 * PAGE)
    with Run(path, tmp_path / "fast") as run:
        assert run.read(room, 0, 8) == path.read_bytes()[: 8 * PAGE]
        assert "is shorter than its book says" in run.opened.notes()[0]
    with Run(path, tmp_path / "fast") as run:
        assert run.opened.use().held_bytes == 0
        assert run.read(room, 0, 8) == path.read_bytes()[: 8 * PAGE]


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_lost(
    room: int, path: Path, tmp_path: Path
):
    import resource  # which Windows has not

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run(path, tmp_path / "fast") as run:
        run.read(room, 0, 4)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * PAGE, hard))
        try:
            assert run.read(room, 30, 8) == path.read_bytes()[30 * PAGE : 38 * PAGE]
            run.reader.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "takes no more" in run.opened.notes()[0]
    with Run(path, tmp_path / "fast") as run:
        assert run.opened.use().held_bytes == 4 * PAGE


def test_a_book_of_nonsense_begins_anew(room: int, path: Path, tmp_path: Path):
    with Run(path, tmp_path / "fast") as run:
        run.read(room, 0, 4)
    (copy_of(tmp_path / "fast").parent / "book.json").write_text('{"schema": 1, "ranges": 3}')
    with Run(path, tmp_path / "fast") as run:
        assert run.opened.use().held_bytes == 0
        assert run.read(room, 0, 4) == path.read_bytes()[: 4 * PAGE]
