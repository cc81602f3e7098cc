"""Vectors of texts: of length one, the same each time, and no trace left in the answers."""

import math

import pytest

from moerun.engine.interface import EmbeddingRequest, GenerationRequest, Sampling
from moerun.errors import UsageError
from tests.engine.builders import ENGINE, answer, arguments
from tests.engine.conftest import DEMO_FILE

pytestmark = pytest.mark.engine

ASK = GenerationRequest(
    prompt="w", sampling=Sampling(temperature=0.0), maximum_tokens=8, top_logprobs=None
)


@pytest.fixture
def session():
    opened = ENGINE.load(arguments(DEMO_FILE, context_tokens=256))
    yield opened
    opened.close()


def test_vectors_are_of_length_one_and_tell_texts_apart(session):
    texts = ("a cat sat", "a cat sat", "the price of oil")
    result = session.embed(EmbeddingRequest(texts=texts))
    first, second, third = result.vectors
    assert first == second != third
    assert all(math.isclose(sum(x * x for x in v), 1.0, rel_tol=1e-5) for v in result.vectors)
    assert result.prompt_tokens == sum(len(session.tokenize(text)) for text in texts)


def test_vectors_keep_their_length_when_asked(session):
    (unit,) = session.embed(EmbeddingRequest(texts=("a cat sat",))).vectors
    (raw,) = session.embed(EmbeddingRequest(texts=("a cat sat",), normalises=False)).vectors
    length = math.sqrt(sum(x * x for x in raw))
    assert not math.isclose(length, 1.0, rel_tol=1e-2)
    assert [x / length for x in raw] == pytest.approx(list(unit), rel=1e-4, abs=1e-7)


def test_answers_are_as_before(session):
    before = answer(session, ASK)[0]
    session.embed(EmbeddingRequest(texts=("something else",)))
    after, result = answer(session, ASK)
    assert after == before
    assert result.reused_tokens == 0


def test_fewer_dimensions_are_of_length_one_too(session):
    (vector,) = session.embed(EmbeddingRequest(texts=("x",), dimensions=5)).vectors
    assert len(vector) == 5
    assert math.isclose(sum(x * x for x in vector), 1.0, rel_tol=1e-5)
    with pytest.raises(UsageError, match="dimensions"):
        session.embed(EmbeddingRequest(texts=("x",), dimensions=10**6))


def test_a_text_that_is_too_long_is_cut_or_refused(session):
    text = "one two three " * 300
    result = session.embed(EmbeddingRequest(texts=(text,)))
    assert result.prompt_tokens <= 256
    with pytest.raises(UsageError, match="tokens"):
        session.embed(EmbeddingRequest(texts=(text,), truncates=False))
