"""Several answers in one engine: whose text is whose, cells that run out, and equality."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moerun.engine.interface import (
    AnswerPart,
    GenerationRequest,
    GenerationResult,
    Overflow,
    Sampling,
    SharedSession,
    StopReason,
)
from moerun.engine.llama import LlamaSession
from moerun.engine.load_log import KV
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import UsageError
from tests.engine.builders import ENGINE, answer, arguments
from tests.engine.conftest import DEMO_FILE

pytestmark = pytest.mark.engine

GREEDY = Sampling(temperature=0.0)
PROMPTS = tuple(
    f"Tell me about the number {word} and why." for word in ("one", "two", "six", "ten")
)


class Collector:
    """Keeps everything that one answer gave."""

    def __init__(self, *, ends_after: int | None = None) -> None:
        self.parts: list[AnswerPart] = []
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        self._ends_after = ends_after

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    def receive(self, part: AnswerPart) -> None:
        self.parts.append(part)

    def finish(self, result: GenerationResult) -> None:
        self.result = result

    def fail(self, error: Exception) -> None:
        self.error = error

    def is_cancelled(self) -> bool:
        return self._ends_after is not None and len(self.parts) >= self._ends_after


@functools.cache
def without_end() -> tuple[tuple[int, float], ...]:
    """Return the bias that keeps the demo model from ending: raw prompts are strange to it."""
    session = ENGINE.load(arguments(DEMO_FILE))
    vocabulary = Vocabulary(session.loaded)
    ends = [t for t in range(session.loaded.vocabulary_size) if vocabulary.is_end(t)]
    session.close()
    return tuple((token, -100.0) for token in ends)


def raw(prompt: str, **changes: Any) -> GenerationRequest:
    """Return a request whose answer has as many tokens as it may."""
    values: dict[str, Any] = {"prompt": prompt, "sampling": GREEDY, "maximum_tokens": 24}
    values |= changes
    values["sampling"] = replace(
        values["sampling"], logit_bias=(*values["sampling"].logit_bias, *without_end())
    )
    return GenerationRequest(**values)


def together(
    session: LlamaSession, *requests: GenerationRequest, collectors: tuple[Collector, ...] = ()
) -> tuple[Collector, ...]:
    """Make answers at once, all begun before the first batch."""
    found = collectors or tuple(Collector() for _ in requests)
    for request, collector in zip(requests, found, strict=True):
        session.begin(request, collector)
    while session.is_busy:
        session.step()
    return found


@pytest.fixture
def opened() -> Iterator[Callable[..., LlamaSession]]:
    sessions: list[LlamaSession] = []

    def load(path: Path = DEMO_FILE, **changes: Any) -> LlamaSession:
        sessions.append(ENGINE.load(arguments(path, **changes)))
        return sessions[-1]

    yield load
    for session in sessions:
        session.close()


def test_a_session_says_that_it_can_be_shared(opened):
    session = opened(sequences=4)
    assert isinstance(session, SharedSession)
    assert session.report.sequences == 4


def test_sharing_costs_no_memory(opened):
    """The belief behind it: the cells of one cache serve all sequences."""

    def cache_bytes(sequences: int) -> int:
        buffers = opened(sequences=sequences).report.buffers
        return sum(b.size_bytes for b in buffers if b.kind == KV)

    assert cache_bytes(1) == cache_bytes(4) > 0


@pytest.mark.parametrize("architecture", ["granitehybrid", "gpt-oss"])
def test_memories_that_are_kept_for_each_are_not_shared(opened, tiny_model, architecture):
    assert opened(tiny_model(architecture), sequences=4).report.sequences == 1


def test_alone_it_is_as_without_sharing(opened):
    """Bit-equal: what is compared is the logits, through their logarithms."""
    request = raw(PROMPTS[0], top_logprobs=5)
    (shared,) = together(opened(sequences=4), request)
    (alone,) = together(opened(), request)
    assert shared.parts == alone.parts


def test_answers_made_together_are_each_the_right_one(opened):
    """Greedy answers of the demo model are the same; docs/figures.md tells what may differ."""
    session = opened(sequences=4)
    found = together(session, *(raw(prompt) for prompt in PROMPTS))
    single = opened()
    assert [c.text for c in found] == [answer(single, raw(prompt))[0] for prompt in PROMPTS]
    assert len({c.text for c in found}) == len(PROMPTS)
    assert all(c.result is not None and c.result.answer_tokens == 24 for c in found)


def test_more_answers_than_sequences_take_turns(opened):
    session = opened(sequences=2)
    found = together(session, *(raw(prompt) for prompt in PROMPTS))
    single = opened()
    assert [c.text for c in found] == [answer(single, raw(prompt))[0] for prompt in PROMPTS]
    assert all(c.result is not None and c.result.wait_s >= 0 for c in found)


def test_each_conversation_finds_its_own_beginning(opened):
    session = opened(sequences=2)
    together(session, raw(PROMPTS[0]), raw(PROMPTS[1]))
    for prompt in (PROMPTS[1], PROMPTS[0]):
        result = together(session, raw(prompt))[0].result
        assert result is not None
        assert result.reused_tokens == result.prompt_tokens - 1


def test_when_cells_run_out_one_waits_and_loses_nothing(opened):
    session = opened(context_tokens=256, sequences=2)
    requests = [raw(prompt * 5, maximum_tokens=110) for prompt in PROMPTS[:2]]
    found = together(session, *requests)
    for collector, request in zip(found, requests, strict=True):
        assert collector.error is None
        assert collector.result is not None
        text, alone = answer(opened(context_tokens=256), request)
        assert collector.result.answer_tokens == alone.answer_tokens
        assert collector.text == text


def test_cancelling_one_leaves_the_others(opened):
    session = opened(sequences=4)
    collectors = (Collector(ends_after=3), Collector())
    first, second = together(session, raw(PROMPTS[0]), raw(PROMPTS[1]), collectors=collectors)
    assert first.result is not None
    assert first.result.stop_reason is StopReason.CANCELLED
    assert second.text == answer(opened(), raw(PROMPTS[1]))[0]


def test_a_request_that_cannot_be_answered_fails_alone(opened):
    session = opened(sequences=4)
    bad = raw("x", sampling=Sampling(logit_bias=((10**8, 1.0),)))
    failed, fine = together(session, bad, raw(PROMPTS[1]))
    assert isinstance(failed.error, UsageError)
    assert failed.result is None
    assert fine.text


def test_what_a_receiver_raises_is_its_own(opened):
    class Broken(Collector):
        def receive(self, part: AnswerPart) -> None:
            raise ConnectionError("gone")

    collectors = (Broken(), Collector())
    session = opened(sequences=4)
    broken, fine = together(session, raw(PROMPTS[0]), raw(PROMPTS[1]), collectors=collectors)
    assert isinstance(broken.error, ConnectionError)
    assert fine.error is None
    assert fine.text


def test_a_full_context_ends_or_shifts(opened):
    session = opened(context_tokens=256)
    (ended,) = together(session, raw("Go on", maximum_tokens=400))
    assert ended.result is not None
    assert ended.result.stop_reason is StopReason.LENGTH
    assert ended.result.prompt_tokens + ended.result.answer_tokens <= 257
    request = raw("Go on", maximum_tokens=400, overflow=Overflow.SHIFT)
    (shifted,) = together(session, request)
    assert shifted.result is not None
    assert shifted.result.answer_tokens == 400
    assert shifted.result.shifted_tokens > 0


def test_logprobs_are_of_the_models_own_scores(opened):
    (found,) = together(opened(), raw(PROMPTS[0], maximum_tokens=6, top_logprobs=3))
    given = [logprob for part in found.parts for logprob in part.logprobs]
    assert found.result is not None
    assert len(given) in (found.result.answer_tokens, found.result.answer_tokens - 1)
    banned = {token for token, _ in without_end()}
    for each in given:
        likeliest = next(other for other in each.top if other.token not in banned)
        assert likeliest.token == each.token  # greedy
        assert each.top[0].logprob >= each.top[1].logprob >= each.top[2].logprob
        assert each.logprob <= 0


def test_one_seed_gives_one_answer_beside_others(opened):
    warm = Sampling(temperature=1.2, seed=11)

    def run() -> str:
        session = opened(sequences=2)
        return together(session, raw(PROMPTS[0], sampling=warm), raw(PROMPTS[1]))[0].text

    assert run() == run()
