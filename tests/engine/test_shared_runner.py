"""Several threads ask one runner process at once, and each hears its own answer."""

import threading
from pathlib import Path

import pytest

from moerun.engine.interface import (
    AnswerFormat,
    EmbeddingRequest,
    FormatKind,
    GenerationRequest,
    GenerationResult,
    Overflow,
    Sampling,
    StopReason,
)
from moerun.errors import UsageError
from moerun.runner.parent import Runner
from tests.engine.builders import arguments
from tests.engine.conftest import DEMO_FILE

pytestmark = pytest.mark.engine


def spelling(word: str) -> GenerationRequest:
    """Ask for one word and no other, so that a crossed answer shows."""
    return GenerationRequest(
        prompt=f"Say {word}:",
        sampling=Sampling(temperature=0.0),
        format=AnswerFormat(kind=FormatKind.SCHEMA, source=f'{{"const": "{word}"}}'),
    )


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("logs")
    with Runner(log_folder=folder) as started:
        started.load(arguments(DEMO_FILE, sequences=4))
        yield started


def test_answers_of_many_threads_are_not_crossed(runner: Runner):
    words = [f"word{number}" for number in range(24)]
    said: dict[str, str] = {}

    def ask(word: str) -> None:
        parts: list[str] = []
        runner.generate(spelling(word), on_text=parts.append)
        said[word] = "".join(parts)

    threads = [threading.Thread(target=ask, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {word: f'"{word}"' for word in words}


def test_an_answer_goes_on_while_a_grammar_is_tried(runner: Runner):
    endless = GenerationRequest(
        prompt="x",
        sampling=Sampling(temperature=0.0),
        format=AnswerFormat(kind=FormatKind.GRAMMAR, source='root ::= "b" root'),
        overflow=Overflow.SHIFT,
    )
    parts: list[str] = []
    has_begun = threading.Event()
    number = runner.reserve_number()

    def note(text: str) -> None:
        parts.append(text)
        has_begun.set()

    teller = threading.Thread(target=lambda: runner.generate(endless, on_text=note, number=number))
    teller.start()
    assert has_begun.wait(30)
    before = len(parts)
    words = AnswerFormat(kind=FormatKind.GRAMMAR, source='root ::= "yes" | "never tried before"')
    runner.generate(GenerationRequest(prompt="Well?", format=words))
    # On the engine's own thread there would be as many as the few tokens of this answer.
    went_on, is_over = len(parts) - before, not teller.is_alive()
    runner.cancel(number)
    teller.join(30)
    assert went_on > 20 or is_over


def test_one_is_cancelled_by_its_number(runner: Runner):
    number = runner.reserve_number()
    begun = threading.Event()
    results: list[GenerationResult] = []
    # A grammar that has no end.
    endless = GenerationRequest(
        prompt="x",
        sampling=Sampling(temperature=0.0),
        format=AnswerFormat(kind=FormatKind.GRAMMAR, source='root ::= "a" root'),
    )

    def ask() -> None:
        results.append(runner.generate(endless, on_text=lambda text: begun.set(), number=number))

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(30)
    parts: list[str] = []
    runner.generate(spelling("beside"), on_text=parts.append)
    runner.cancel(number)
    thread.join(30)
    assert "".join(parts) == '"beside"'
    assert results[0].stop_reason in (StopReason.CANCELLED, StopReason.LENGTH)


def test_a_bad_request_does_not_end_the_runner(runner: Runner):
    bad = GenerationRequest(
        prompt="x", format=AnswerFormat(kind=FormatKind.GRAMMAR, source="root ::= (")
    )
    with pytest.raises(UsageError, match="grammar"):
        runner.generate(bad)
    assert len(runner.embed(EmbeddingRequest(texts=("a", "b"))).vectors) == 2
