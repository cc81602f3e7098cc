"""How fast memory is read: every thread's bytes count, over the time that all of them took."""

import itertools
import threading

import pytest

from moerun.engine.memory_rate import measure_memory_rate, read_memory

pytestmark = pytest.mark.engine


def a_clock():
    """Return a clock that advances by a second each time somebody looks."""
    seconds, lock = itertools.count(), threading.Lock()

    def clock() -> float:
        with lock:
            return float(next(seconds))

    return clock


def test_the_rate_is_bytes_over_time():
    """By this clock three seconds are three passes over the memory."""
    rate = read_memory(1, span_s=3.0, clock=a_clock())
    assert rate == 256 << 20


@pytest.mark.parametrize("threads", [0, 1, 3, 1000])
def test_any_number_of_threads_gives_a_rate(threads: int):
    assert read_memory(threads, span_s=0.01) > 1e6


def test_the_best_of_several_counts():
    assert measure_memory_rate(1) > 1e6
