"""Ranges that grow together, against a plain set of positions."""

import random

from moerun.experts.spans import Spans


def test_neighbours_and_overlaps_are_one_range():
    spans = Spans([(0, 4), (8, 12)])
    spans.add(4, 6)
    assert spans.ranges() == ((0, 6), (8, 12))
    spans.add(5, 9)
    assert spans.ranges() == ((0, 12),)
    assert spans.total_bytes == 12


def test_an_empty_range_changes_nothing():
    spans = Spans([(2, 2)])
    assert spans.ranges() == ()
    assert not spans.covers(0, 1)


def test_seeded_ranges_are_what_a_set_of_positions_says():
    chance = random.Random(7)
    for _ in range(200):
        spans = Spans()
        held: set[int] = set()
        for _ in range(30):
            begin = chance.randrange(60)
            end = begin + chance.randrange(1, 12)
            asked = set(range(begin, end))
            assert spans.covers(begin, end) == (asked <= held)
            assert spans.missing_bytes(begin, end) == len(asked - held)
            if chance.random() < 0.6:
                spans.add(begin, end)
                held |= asked
            assert spans.total_bytes == len(held)
        flat = [position for begin, end in spans.ranges() for position in range(begin, end)]
        assert flat == sorted(held)
