"""Every way in which a file ceases to be what was opened ends an answer, and nothing else does."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moerun.errors import MissingShard, ModelError
from moerun.experts.file_identity import FileGuard
from moerun.model.description import ModelFile

CONTENT = b"x" * 5000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


@pytest.fixture
def guard(model: Path) -> Iterator[FileGuard]:
    guard = FileGuard([a_file(model)])
    yield guard
    guard.close()


def a_file(path: Path, size_bytes: int = len(CONTENT)) -> ModelFile:
    return ModelFile(path=str(path), size_bytes=size_bytes, data_offset_bytes=0)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    os.utime(other, (1_700_000_000, 1_700_000_000))
    other.rename(path)


def written(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"y")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.truncate(path, 4096), r"was cut from 5,000 to 4,096 bytes"),
        (lambda path: os.truncate(path, 6000), r"grew from 5,000 to 6,000 bytes"),
        (written, r"was written to \(at 20"),
        (lambda path: os.utime(path), r"was written to \(at 20"),
        (replaced, "was replaced by another file"),
        (lambda path: path.write_bytes(b""), r"was cut from 5,000 to 0 bytes"),
        (lambda path: path.unlink(), "was removed or renamed"),
        (lambda path: path.rename(path.with_name("elsewhere")), "was removed or renamed"),
    ],
)
def test_a_change_ends_the_answer(
    model: Path, guard: FileGuard, change: Callable[[Path], object], words: str
):
    guard.check()
    change(model)
    with pytest.raises(ModelError, match=words) as raised:
        guard.check()
    assert str(model) in raised.value.message
    assert "start again" in (raised.value.hint or "")
    with pytest.raises(ModelError):
        guard.check()  # and stays ended


def test_a_replaced_file_whose_old_content_changed_is_told_as_the_change(
    model: Path, guard: FileGuard
):
    held = model.with_name("held")
    os.link(model, held)
    replaced(model)
    os.truncate(held, 1)
    with pytest.raises(ModelError, match="was cut from"):
        guard.check()


def test_reading_linking_and_permissions_change_nothing(model: Path, guard: FileGuard):
    model.read_bytes()
    model.chmod(0o600)
    os.link(model, model.with_name("link"))
    guard.attach(object())
    guard.check()
    assert guard.notes() == ()


def test_a_link_that_points_elsewhere_is_another_file(model: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    guard = FileGuard([a_file(link)])
    guard.check()
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(ModelError, match="replaced"):
        guard.check()
    guard.close()


def test_every_part_of_a_split_model_is_watched(model: Path, tmp_path: Path):
    parts = [tmp_path / f"part-{number}.gguf" for number in range(3)]
    for part in parts:
        part.write_bytes(CONTENT)
    guard = FileGuard([a_file(part) for part in parts])
    guard.check()
    written(parts[1])
    with pytest.raises(ModelError, match=r"part-1\.gguf"):
        guard.check()
    guard.close()


def test_a_file_that_is_not_what_the_plan_was_made_from(model: Path):
    with pytest.raises(ModelError, match=r"has 5,000 bytes and had 4,999"):
        FileGuard([a_file(model, 4999)])


def test_a_part_that_is_gone(model: Path, tmp_path: Path):
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(MissingShard, match=r"absent\.gguf cannot be opened"):
        FileGuard([a_file(model), a_file(tmp_path / "absent.gguf")])
    assert len(os.listdir("/dev/fd")) == before


def test_a_closed_guard_asks_nothing(model: Path):
    guard = FileGuard([a_file(model)])
    guard.close()
    model.unlink()
    guard.check()
