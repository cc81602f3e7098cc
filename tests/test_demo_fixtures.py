"""The questions that the demo model is judged by: enough of them, new ones new, answers apart."""

import json
from pathlib import Path

import pytest

from training import corpus
from training.development_questions import DEVELOPMENT_QUESTIONS
from training.intents import INTENTS
from training.off_topic import REFUSAL

FIXTURES = Path(__file__).parent / "fixtures" / "demo_questions.json"
ANSWERS = {intent.name: intent.answer for intent in INTENTS} | {corpus.OFF_TOPIC: REFUSAL}


@pytest.fixture(scope="module")
def fixtures():
    return json.loads(FIXTURES.read_text(encoding="utf-8"))


def test_there_are_forty_of_each_and_no_two_alike(fixtures):
    asked = [e["question"] for e in fixtures["questions"] + fixtures["paraphrases"]]
    assert len(fixtures["questions"]) == len(fixtures["paraphrases"]) == 40
    assert len({corpus.normalized(question) for question in asked}) == 80


def test_questions_are_in_the_training_text(fixtures):
    for entry in fixtures["questions"]:
        assert _asked_in_the_text(entry["question"]) == {entry["intent"]}


def test_paraphrases_are_not_in_the_training_text_nor_near_copies(fixtures):
    for entry in fixtures["paraphrases"]:
        assert not _asked_in_the_text(entry["question"])
        near = corpus.phrasings_like(entry["question"], least_overlap_fraction=0.8)
        assert not [phrasing.question for phrasing in near], entry["question"]


@pytest.mark.slow
def test_no_question_of_the_training_text_has_two_answers():
    intents: dict[str, set[str]] = {}
    for phrasing in corpus.phrasings():
        intents.setdefault(corpus.normalized(phrasing.question), set()).add(phrasing.intent)
    assert not {question: found for question, found in intents.items() if len(found) > 1}


def test_development_questions_are_other_ones(fixtures):
    judged = {corpus.normalized(entry["question"]) for entry in fixtures["paraphrases"]}
    for question, intent in DEVELOPMENT_QUESTIONS:
        assert intent in ANSWERS
        assert corpus.normalized(question) not in judged
        assert not _asked_in_the_text(question)


def test_some_of_both_must_be_declined(fixtures):
    for kind in ("questions", "paraphrases"):
        assert sum(e["intent"] == corpus.OFF_TOPIC for e in fixtures[kind]) >= 3


def test_required_words_are_met_by_the_right_answer_and_by_no_other(fixtures):
    for entry in fixtures["questions"] + fixtures["paraphrases"]:
        met_by = {
            name
            for name, answer in ANSWERS.items()
            if all(words.lower() in answer.lower() for words in entry["required"])
        }
        assert met_by == {entry["intent"]}, entry["question"]


@pytest.mark.slow
def test_phrasings_of_like_words_are_those_of_the_full_listing():
    question = "how do i see the plan"
    words = set(question.split())
    listed = {
        phrasing.question
        for phrasing in corpus.phrasings()
        if len(words & (w := set(corpus.normalized(phrasing.question).split())))
        >= 0.7 * len(words | w)
    }
    found = {p.question for p in corpus.phrasings_like(question, least_overlap_fraction=0.7)}
    assert found == listed
    assert question in found


def _asked_in_the_text(question):
    """Return the intents whose phrasings hold the question, case and marks aside."""
    alike = corpus.phrasings_like(question, least_overlap_fraction=1.0)
    wanted = corpus.normalized(question)
    return {p.intent for p in alike if corpus.normalized(p.question) == wanted}
