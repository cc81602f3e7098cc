import pytest

from moerun.report.word_wrap import WordWrap


def wrapped(*pieces, columns=20):
    wrap = WordWrap(columns)
    return "".join([*(wrap.feed(piece) for piece in pieces), wrap.finish()])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three four five", ["one two three four", "five"]),
        ("a" * 45, ["a" * 20, "a" * 20, "a" * 5]),
        ("ab " + "c" * 20, ["ab", "c" * 20]),
        ("one\n  two", ["one", "  two"]),
        ("x" * 19 + " y z", ["x" * 19, "y z"]),
        ("漢" * 12, ["漢" * 10, "漢" * 2]),
        ("漢字 and", ["漢字 and"]),
        ("e\u0301" * 20 + " x", ["e\u0301" * 20, "x"]),
        ("ends ", ["ends "]),
        ("", [""]),
    ],
)
def test_lines_are_broken_between_words(text, lines):
    assert wrapped(text).split("\n") == lines
    assert wrapped(*text).split("\n") == lines  # in pieces of one character


def test_a_narrow_terminal_still_gets_words():
    assert wrapped("one two three", columns=1) == "one two three"


def test_what_is_decided_is_shown_at_once():
    wrap = WordWrap(20)
    assert wrap.feed("one two") == "one"
    assert wrap.feed(" thr") == " two"
    assert wrap.finish() == " thr"
