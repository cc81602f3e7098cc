import pytest

from moerun.experts.interface import Supplied
from moerun.experts.tally import Foretelling, Tally


def a_pass(tally, at_s, *, misses=1, hits=3, tokens=1, is_decode=True):
    """Count one pass of one layer that took a tenth of a second."""
    tally.begin_pass(at_s)
    supplied = Supplied(hits=hits, misses=misses, read_bytes=10 * misses, evicted=1, stall_s=0.01)
    tally.note(supplied, is_decode=is_decode)
    tally.end_pass(tokens=tokens, span_s=0.1, at_s=at_s + 0.1, is_decode=is_decode)


def test_decode_and_prefill_are_apart_and_the_minute_has_both():
    tally = Tally(at_s=0.0)
    a_pass(tally, 1.0, tokens=16, is_decode=False)
    a_pass(tally, 2.0)
    decode, prefill, recent = tally.traffic(2.1)
    assert (prefill.tokens, prefill.hits, prefill.misses) == (16, 3, 1)
    assert (decode.tokens, decode.read_bytes, decode.experts_out) == (1, 10, 1)
    assert decode.stall_s_per_token == pytest.approx(0.01)
    assert recent.tokens == 17
    assert recent.span_s == pytest.approx(2.1)


def test_the_minute_forgets_what_is_older():
    tally = Tally(at_s=0.0)
    for second in range(200):
        a_pass(tally, float(second), misses=4 if second < 100 else 0, hits=0 if second < 100 else 4)
    decode, _, recent = tally.traffic(199.1)
    assert decode.hit_fraction == 0.5
    assert recent.hit_fraction == 1.0
    assert recent.span_s == pytest.approx(60, abs=2)
    assert recent.tokens == pytest.approx(60, abs=2)


def test_after_a_silence_nothing_is_recent():
    tally = Tally(at_s=0.0)
    a_pass(tally, 1.0)
    _, _, recent = tally.traffic(500.0)
    assert (recent.tokens, recent.hits, recent.span_s) == (0, 0, 60.0)
    assert recent.hit_fraction is None
    a_pass(tally, 501.0)
    assert tally.traffic(501.2)[2].tokens == 1


def test_what_is_read_ahead_counts_as_read():
    tally = Tally(at_s=0.0)
    a_pass(tally, 1.0)
    tally.note_ahead(30, 3, is_decode=True)
    decode, _, _ = tally.traffic(2.0)
    assert (decode.read_bytes, decode.experts_in, decode.misses) == (40, 4, 1)


def test_what_was_foretold_is_held_against_the_choice():
    foretelling = Foretelling()
    assert foretelling.counters(0) is None
    foretelling.expect(3, (1, 2, 5, 7), missing=(5, 7), asked_bytes=20)
    foretelling.see(2, (5, 7))  # another layer
    foretelling.see(3, (1, 5, 6))
    foretelling.see(3, (7,))  # it was compared once already
    found = foretelling.counters(4)
    assert found is not None
    assert (found.predicted, found.correct, found.read_bytes, found.useful_bytes) == (4, 2, 20, 10)
    assert found.wasted_bytes == 10
    foretelling.expect(3, (1, 2), missing=(), asked_bytes=0)
    foretelling.see(3, (1, 2))
    found = foretelling.counters(0)
    assert found is not None
    assert found.accuracy_fraction == pytest.approx(4 / 6)
