"""Bytes of tokens to text, and stop strings."""

import pytest

from moerun.engine.pieces import PieceDecoder, StopMatcher, read_piece


def reader(text: bytes, sizes: list[int]):
    def read(size: int) -> tuple[int, bytes]:
        sizes.append(size)
        if len(text) > size:
            return -len(text), bytes(size)
        return len(text), text.ljust(size, b"\0")

    return read


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 65, 5000])
def test_pieces_of_any_length_come_whole(length: int):
    sizes: list[int] = []
    assert read_piece(reader(b"x" * length, sizes)) == b"x" * length
    assert len(sizes) == (1 if length <= 64 else 2)


def test_a_reader_that_changes_its_mind_is_an_error():
    with pytest.raises(ValueError, match="needed 100"):
        read_piece(lambda size: (-100, b"") if size < 100 else (7, bytes(100)))


def test_characters_wait_until_they_are_whole():
    decoder = PieceDecoder()
    euro = "€".encode()
    assert [decoder.feed(euro[:1]), decoder.feed(euro[1:2]), decoder.feed(euro[2:] + b"!")] == [
        "",
        "",
        "€!",
    ]
    assert decoder.finish() == ""


def test_what_never_becomes_whole_is_replaced_once_at_the_end():
    decoder = PieceDecoder()
    assert decoder.feed(b"a\xf0\x9f") == "a"
    assert decoder.finish() == "\ufffd"
    assert PieceDecoder().feed(b"\xff!") == "\ufffd!"


def run(stops: tuple[str, ...], parts: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = [matcher.feed(part) for part in parts]
    return [*shown, matcher.finish()], matcher.is_hit


def test_without_stops_all_comes_at_once():
    assert run((), ["a", "b"]) == (["a", "b", ""], False)
    assert run(("",), ["a"]) == (["a", ""], False)


def test_a_stop_over_several_parts_never_shows():
    shown, is_hit = run(("</s>",), ["Yes<", "/s", ">no", "more"])
    assert "".join(shown) == "Yes"
    assert is_hit


def test_what_could_become_a_stop_is_held_back_and_then_shown():
    shown, is_hit = run(("</s>",), ["a</", "b", "<"])
    assert shown == ["a", "</b", "", "<"]
    assert not is_hit


def test_the_earliest_of_several_stops_ends_the_text():
    shown, is_hit = run(("World", "lo"), ["Hello World"])
    assert ("".join(shown), is_hit) == ("Hel", True)


def test_a_stop_that_begins_inside_a_false_start_is_found():
    shown, is_hit = run(("aab",), ["a", "a", "a", "b"])
    assert ("".join(shown), is_hit) == ("a", True)
