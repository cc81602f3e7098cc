"""Embeddings and routers that make a random model route like a trained one.

A router's scores over a sequence of tokens are a random process for each expert, and the likeness
of two hidden states is the correlation of their scores. The residual stream of the synthetic model
is its token's embedding, to which every layer adds a little (`synthetic_model`), so a sequence of
token numbers is a script of routing: neighbours that are alike give temporal locality, and a
constant in column 0, times a number for each expert, gives popularity. What the layers add makes
the next layer's choice uncertain before it is there, without which reading ahead would be too easy.

Fixed before any run, and why: SKEWED and the two scales in `synthetic_model` were searched with
the engine until LRU over 24 layers of 128 experts, 8 used, hits as on the recorded routing of
Qwen3-30B-A3B (one cache for all layers, 28 tokens of prompt as one batch, 128 decoded, only these
counted), and until the next layer's router, asked a layer early, is right as often as was
published of that model. `python -m benchmarks.streaming_check` shows these figures:

    of all experts held           10 %   30 %   50 %   used by the last token   foretold
    recorded                      49.7   87.9   96.3                   38.0     88.6
    synthetic, skewed             51.0   88.2   95.0                   42.3     89.5
    synthetic, uniform             6.7   28.4   49.4                    6.7     88.1

tests/engine/test_streaming_routing.py holds the skewed script within 3 points of the recorded one.
UNIFORM has neither popularity nor locality: the worst case of every cache.

Knows: embeddings and routers.
Does not know: files, the engine, or caches.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BIAS_COLUMN: Final = 0
FAST_TOKENS, SLOW_TOKENS = 2.0, 64.0  # after so many tokens 1/e of the likeness is left


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingShape:
    """How much of a router's score is of what kind, relative to each other.

    `fresh` is new with every token, `fast` and `slow` are walks, `popular` never changes.
    """

    fresh: float
    fast: float
    slow: float
    popular: float


SKEWED: Final = RoutingShape(fresh=0.46, fast=0.31, slow=0.30, popular=0.80)
UNIFORM: Final = RoutingShape(fresh=1.0, fast=0.0, slow=0.0, popular=0.0)

Floats = NDArray[np.float32]


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
    """Return the router of one layer: scores of variance 1 for a hidden state of elements of 1."""
    matrix: Floats = random.standard_normal((experts, width), dtype=np.float32)
    matrix /= np.float32(width**0.5)
    matrix[:, BIAS_COLUMN] = random.standard_normal(experts, dtype=np.float32)
    return matrix
