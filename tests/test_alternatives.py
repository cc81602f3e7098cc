"""One of many texts as a grammar: exactly those, told apart where they differ."""

import random

import pytest

from moerun.engine.alternatives import one_of
from moerun.engine.text_patterns import quoted
from tests.grammar_regex import regex_of


@pytest.mark.parametrize(
    ("texts", "expression"),
    [
        (["a"], '"a"'),
        (["b", "a", "b"], '"a" | "b"'),
        (["ab", "ac"], '"a" ("b" | "c")'),
        (["a", "ab"], '"a" ("b")?'),
        (["value 1", "value 12", "x"], '"value 1" ("2")? | "x"'),
    ],
)
def test_what_is_alike_is_said_once(texts, expression):
    assert one_of(texts, quoted) == expression


def test_exactly_the_texts_are_let_through():
    chance = random.Random(11)
    for case in range(200):
        letters = 'ab"\\ \n' if case % 2 else "abc"
        texts = {
            "".join(chance.choice(letters) for _ in range(chance.randint(1, 6)))
            for _ in range(chance.randint(1, 30))
        }
        language = regex_of(one_of(tuple(texts), quoted))
        for text in texts:
            for near in (text, text[:-1], text + letters[0], text[1:], text.swapcase()):
                is_one = language.fullmatch(near) is not None
                assert is_one == (near in texts), f"case {case}: {near!r} of {texts!r}"


def test_texts_within_texts_do_not_nest_without_end():
    expression = one_of(["a" * length for length in range(1, 400)], quoted)
    depth = deepest = 0
    for character in expression:
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    assert deepest <= 12
    assert regex_of(expression).fullmatch("a" * 399)
