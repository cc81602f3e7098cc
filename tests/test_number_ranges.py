"""Whole numbers between bounds, as grammars that let through those and no other."""

import random

from moerun.engine.number_ranges import integers_between
from tests.grammar_regex import regex_of

CASES = 300


def test_integer_bounds_let_through_what_lies_between():
    seed = 7
    chance = random.Random(seed)
    for case in range(CASES):
        reach = 10 ** chance.randint(0, 9)
        low = chance.randint(-reach, reach)
        high = low + chance.randint(0, reach)
        language = regex_of(integers_between(low, high))
        numbers = {low, high, low - 1, high + 1, 0, -low, high * 10, high // 10}
        numbers |= {chance.randint(low, high) for _ in range(20)}
        numbers |= {chance.randint(-2 * reach, 2 * reach) for _ in range(20)}
        for number in numbers:
            is_taken = language.fullmatch(str(number)) is not None
            said = f"seed {seed}, case {case}: {number} of {low} to {high}"
            assert is_taken == (low <= number <= high), said
        assert language.fullmatch("") is None
        assert language.fullmatch("-") is None
        assert language.fullmatch(f"0{abs(high)}") is None, said
