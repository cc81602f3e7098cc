"""One of many fixed texts, as a grammar that shares what they begin with.

The engine keeps every alternative that may still come as a stack of its own, for each of which it
looks at every token: 20,000 texts side by side took 0.6 s a token, and 0.4 s to read. What shares
its beginning is told apart only where it differs.

Knows: how texts are grouped by their beginnings.
Does not know: schemas, or how a text is quoted.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

_DEEPEST: Final = 12  # the engine's parser recurses into every parenthesis


def one_of(texts: Sequence[str], quoted: Callable[[str], str], *, depth: int = 0) -> str:
    """Return the expression that is any of these texts, none of which is empty, and no other."""
    ordered = sorted(set(texts))
    if depth >= _DEEPEST:
        return " | ".join(quoted(text) for text in ordered)
    choices = []
    for _, group in groupby(ordered, key=lambda text: text[0]):
        alike = list(group)
        if len(alike) == 1:
            choices.append(quoted(alike[0]))
            continue
        beginning = _shared(alike[0], alike[-1])  # they are in order, so all share that
        rests = [text[len(beginning) :] for text in alike]
        inner = one_of([rest for rest in rests if rest], quoted, depth=depth + 1)
        choices.append(f"{quoted(beginning)} ({inner}){'' if all(rests) else '?'}")
    return " | ".join(choices)


def _shared(text: str, other: str) -> str:
    for index, (character, counterpart) in enumerate(zip(text, other, strict=False)):
        if character != counterpart:
            return text[:index]
    return text[: len(other)]
