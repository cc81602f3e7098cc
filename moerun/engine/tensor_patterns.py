"""Regular expressions that match given tensors and no others, as few and short as possible.

Belief: overrides are searched with std::regex, ECMAScript grammar, first match wins -
src/llama-model-loader.cpp @ llama-cpp-python 0.3.36 - checked by tests/test_engine_arguments.py
and, on loaded models, by tests/engine/test_planned_bytes.py.

Knows: names of the form `blk.<layer>.<rest>`, and numbers as patterns.
Does not know: devices, or why these tensors.
"""

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"blk\.(0|[1-9]\d*)\.(.+)", re.ASCII)
_SPECIAL = re.compile(r"([^A-Za-z0-9_])")


def patterns_for(names: Iterable[str]) -> tuple[str, ...]:
    """Return patterns that together match exactly these whole names."""
    layers_by_rest: dict[str, set[int]] = {}
    others: list[str] = []
    for name in names:
        block = _BLOCK.fullmatch(name)
        if block is None:
            others.append(name)
        else:
            layers_by_rest.setdefault(block[2], set()).add(int(block[1]))
    rests_by_layers: dict[frozenset[int], list[str]] = {}
    for rest, layers in layers_by_rest.items():
        rests_by_layers.setdefault(frozenset(layers), []).append(rest)
    found = [
        rf"^blk\.{_group(number_patterns(layers))}\.{_group(sorted(map(_escaped, rests)))}$"
        for layers, rests in rests_by_layers.items()
    ]
    if others:
        found.append(f"^{_group(sorted(map(_escaped, others)))}$")
    return tuple(found)


def number_patterns(numbers: Iterable[int]) -> list[str]:
    """Return alternatives that match these numbers in decimal: `[0-9]`, `1[2-5]`, ..."""
    digits_by_prefix: dict[str, set[int]] = {}
    for number in numbers:
        text = str(number)
        digits_by_prefix.setdefault(text[:-1], set()).add(int(text[-1]))
    prefixes_by_digits: dict[frozenset[int], list[str]] = {}
    for prefix, digits in digits_by_prefix.items():
        prefixes_by_digits.setdefault(frozenset(digits), []).append(prefix)
    found: list[str] = []
    for digits_set, prefixes in sorted(
        prefixes_by_digits.items(), key=lambda item: min(map(len, item[1]))
    ):
        last = _digit_class(digits_set)
        if "" in prefixes:
            found.append(last)
        longer = [int(prefix) for prefix in prefixes if prefix]
        if longer:
            found.append(_group(number_patterns(longer)) + last)
    return found


def _digit_class(digits: frozenset[int]) -> str:
    """Return `7`, `[3-5]` or `[0135-8]`."""
    ordered = sorted(digits)
    if len(ordered) == 1:
        return str(ordered[0])
    runs: list[list[int]] = []
    for digit in ordered:
        if runs and runs[-1][-1] == digit - 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    return (
        "["
        + "".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else "".join(map(str, run)) for run in runs)
        + "]"
    )


def _group(alternatives: list[str]) -> str:
    return alternatives[0] if len(alternatives) == 1 else "(" + "|".join(alternatives) + ")"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
