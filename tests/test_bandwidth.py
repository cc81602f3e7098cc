"""Reading past the page cache, timed with a clock that the test sets."""

import os
import threading
from pathlib import Path

import pytest

from moerun.errors import ProbeFailed
from moerun.machine.bandwidth import measure_reading

MIB = 1 << 20


class SteppingClock:
    """A clock that goes on by a tenth of a second at every look."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self.now_s += 0.1
            return self.now_s


def a_file(folder: Path, size_bytes: int = 4 * MIB) -> str:
    path = folder / "weights"
    path.write_bytes(b"x" * size_bytes)
    return str(path)


def can_read_directly(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


def test_a_rate_is_bytes_by_the_clock(tmp_path: Path):
    path = a_file(tmp_path)
    if not can_read_directly(path):
        pytest.skip("the folder of this test lies where nothing is read directly")
    clock = SteppingClock()
    rate = measure_reading([path], piece_bytes=MIB - 100, threads=1, span_s=1.0, clock=clock)
    assert (rate.piece_bytes, rate.threads) == (MIB, 1)
    read_bytes = rate.read_bytes_per_s * rate.span_s
    assert read_bytes == pytest.approx(round(read_bytes / MIB) * MIB)
    assert 8 <= read_bytes / MIB <= 11


def test_several_threads_and_files_read_whole_pieces(tmp_path: Path):
    path = a_file(tmp_path)
    (tmp_path / "more").mkdir()
    other = a_file(tmp_path / "more", 8192)
    if not can_read_directly(path):
        pytest.skip("the folder of this test lies where nothing is read directly")
    rate = measure_reading([path, other], piece_bytes=10, threads=4, span_s=0.05)
    assert rate.piece_bytes == 4096
    assert rate.read_bytes_per_s > 0


def test_a_file_that_is_gone_is_a_failed_probe(tmp_path: Path):
    with pytest.raises(ProbeFailed, match="past"):
        measure_reading([str(tmp_path / "none")], piece_bytes=4096)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no /dev/shm")
def test_where_nothing_is_read_directly_the_probe_says_so():
    path = Path("/dev/shm") / f"moerun-test-{os.getpid()}"
    path.write_bytes(b"x" * 8192)
    try:
        if can_read_directly(str(path)):
            rate = measure_reading([str(path)], piece_bytes=4096, span_s=0.01)
            assert rate.read_bytes_per_s > 0
        else:
            with pytest.raises(ProbeFailed, match="past the page cache"):
                measure_reading([str(path)], piece_bytes=4096)
    finally:
        path.unlink()
