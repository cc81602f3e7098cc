"""Embeddings and routers that make a random model route like a trained one, and the replay.

The residual stream of the synthetic model is its token's embedding, all else adds a hundredth. So
a layer's router sees nearly the embedding, its scores over a sequence of tokens are a Gaussian
process for each expert, and the likeness of two embeddings is the correlation of their scores. A
sequence of token numbers is therefore a script of routing: neighbours that are alike give
temporal locality, and a constant in column 0 times a number for each expert gives popularity.

Fixed before any run, and why: the four parts of SKEWED were searched (with numpy alone, by the
largest of the differences at 10, 30 and 50 % of the experts) until LRU over 24 layers of 128
experts, 8 used, hits as LRU does on the recorded routing of Qwen3-30B-A3B, one cache over all
layers, 28 tokens of prompt and 128 of decoding, only the latter counted: 49.7, 87.9 and 96.3 %.
The share of experts that are used at all, which was not searched for, is 0.60 in both.
tests/test_streaming_routing.py holds them within 3 points. UNIFORM has neither popularity nor
locality: the worst case of every cache.

Knows: embeddings, routers, what they choose, and how a cache fares with it.
Does not know: files, or the engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moerun.experts.book import CacheBook
from moerun.experts.order import PolicyName
from moerun.experts.policy import make_policy

BIAS_COLUMN: Final = 0
FAST_TOKENS, SLOW_TOKENS = 2.0, 64.0  # after so many tokens 1/e of the likeness is left
PROMPT_TOKENS, DECODED_TOKENS = 28, 128  # of the recorded trace


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingShape:
    """How much of a router's score is of what kind; the squares add up to 1.

    `fresh` is new with every token, `fast` and `slow` are walks, `popular` never changes.
    """

    fresh: float
    fast: float
    slow: float
    popular: float


SKEWED: Final = RoutingShape(fresh=0.50, fast=0.35, slow=0.30, popular=0.73)
UNIFORM: Final = RoutingShape(fresh=1.0, fast=0.0, slow=0.0, popular=0.0)

Floats = NDArray[np.float32]


class Use(NamedTuple):
    """The experts that one pass of one layer used; only what decodes is counted."""

    is_counted: bool
    layer: int
    experts: tuple[int, ...]


def embeddings(
    routing: RoutingShape, tokens: int, width: int, random: np.random.Generator
) -> Floats:
    """Return a row for each token of a sequence, of elements about 1 in size."""
    rows = routing.fresh * random.standard_normal((tokens, width), dtype=np.float32)
    for part, length_tokens in ((routing.fast, FAST_TOKENS), (routing.slow, SLOW_TOKENS)):
        if part:
            rows += part * _walk(tokens, width, length_tokens, random)
    rows[:, BIAS_COLUMN] = routing.popular
    return rows


def _walk(tokens: int, width: int, length_tokens: float, random: np.random.Generator) -> Floats:
    """Return a stationary walk: each row resembles the one before, all have the same size."""
    kept = np.float32(np.exp(-1 / length_tokens))
    added = np.float32((1 - kept**2) ** 0.5)
    rows: Floats = random.standard_normal((tokens, width), dtype=np.float32)
    for token in range(1, tokens):
        rows[token] = kept * rows[token - 1] + added * rows[token]
    return rows


def router(experts: int, width: int, random: np.random.Generator) -> Floats:
    """Return the router of one layer: scores of variance 1 before the hidden state is scaled."""
    matrix: Floats = random.standard_normal((experts, width), dtype=np.float32)
    matrix /= np.float32(width**0.5)
    matrix[:, BIAS_COLUMN] = random.standard_normal(experts, dtype=np.float32)
    return matrix


def chosen(rows: Floats, routers: Sequence[Floats], used: int) -> NDArray[np.intp]:
    """Return the experts that these hidden states choose, best first: (tokens, layers, used).

    The scale of a row changes no order, so the engine's norm before the router is left out.
    """
    scores = np.stack([rows @ matrix.T for matrix in routers], axis=1)
    return np.argsort(-scores, axis=2, kind="stable")[:, :, :used]


def uses_of(choices: NDArray[np.intp], *, prompt_tokens: int) -> tuple[Use, ...]:
    """Return the uses in the order in which the engine asks: the prompt as one batch."""
    layers = range(choices.shape[1])
    prompt = [
        Use(is_counted=False, layer=layer, experts=_union(choices[:prompt_tokens, layer]))
        for layer in layers
        if prompt_tokens
    ]
    decoded = [
        Use(is_counted=True, layer=layer, experts=tuple(row[layer].tolist()))
        for row in choices[prompt_tokens:]
        for layer in layers
    ]
    return (*prompt, *decoded)


def _union(choices: NDArray[np.intp]) -> tuple[int, ...]:
    return tuple(np.unique(choices).tolist())


def hit_fraction(uses: Iterable[Use], *, slots: int, policy: PolicyName = PolicyName.LRU) -> float:
    """Return the share of counted uses that one cache of so many experts would have held.

    It starts empty. The books are those of the product, with every expert one byte long.
    """
    uses = tuple(uses)
    layers = {use.layer for use in uses}
    book = CacheBook(make_policy(policy), slot_bytes=dict.fromkeys(layers, 1), cache_bytes=slots)
    hits = asked = 0
    for use in uses:
        request = book.request(use.layer, use.experts)
        if use.is_counted:
            hits += len(request.hits)
            asked += len(use.experts)
    return hits / asked


def read_trace(path: Path) -> tuple[Use, ...]:
    """Return the uses of a recorded trace, its prompt as one batch."""
    prompt: dict[int, dict[int, None]] = {}
    decoded: dict[tuple[int, int], list[int]] = {}
    lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    columns = next(lines).split(",")
    phase, step, layer, expert = map(columns.index, ("phase", "step", "layer", "expert"))
    for line in lines:
        fields = line.split(",")
        if fields[phase] == "0":
            prompt.setdefault(int(fields[layer]), {})[int(fields[expert])] = None
        else:
            decoded.setdefault((int(fields[step]), int(fields[layer])), []).append(
                int(fields[expert])
            )
    return (
        *(Use(is_counted=False, layer=at, experts=tuple(found)) for at, found in prompt.items()),
        *(
            Use(is_counted=True, layer=at, experts=tuple(found))
            for (_, at), found in decoded.items()
        ),
    )
