"""Conversations as token ids, with the weight of each as a thing to predict.

Knows: how phrasings become turns, which tokens are answers, how a batch is padded.
Does not know: the text, the network, or how either is judged.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import corpus
from training.intents import INTENTS, SMALL_TALK, Intent
from training.tokenizer import TURN_END, TURN_START, turn_text, with_dropout
from training.variation import vary

OFF_TOPIC_SHARE: Final = 0.18
PLAIN_SHARE: Final = 0.3  # of the questions, asked exactly as the text has them
TURN_COUNT_WEIGHTS: Final = (80, 13, 7)  # for one, two and three turns
SYSTEM_SHARE: Final = 0.04
SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You are a helper.",
    "Answer questions about moerun.",
    "Be brief.",
    "You answer in one sentence.",
)
QUESTION_WEIGHT: Final = 0.05  # of a question's tokens, where an answer's tokens count one
OPENING_WEIGHT: Final = 3.0  # an answer's first tokens decide what it is about
OPENING_TOKENS: Final = 5
# Answers are soon known by heart and the choice among them is not, so most are shown in part: a
# step then holds nearly twice the questions.
CUT_SHARE: Final = 0.6
CUT_TOKENS: Final = 10
SPLIT_DROPOUT_FRACTION: Final = 0.1
SPLIT_DROPOUT_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation's ids, and how much each counts as a token to be predicted."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded rows: `present` marks text, `weights` says how much a prediction counts."""

    tokens: Tensor
    present: Tensor
    weights: Tensor


class ConversationSource:
    """Draws conversations without end, never asking what is held out."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int, held_out: frozenset[str]) -> None:
        self._tokenizer = tokenizer
        self._rough_tokenizer = with_dropout(tokenizer, SPLIT_DROPOUT_FRACTION)
        self._rng = random.Random(seed)
        self._held_out = held_out
        self._weights = [_weight(intent) for intent in INTENTS]

    def phrasing(self) -> corpus.Phrasing:
        """Draw one question with its answer, varied; held-out questions are drawn again."""
        rng = self._rng
        while True:
            if rng.random() < OFF_TOPIC_SHARE:
                drawn = corpus.draw_off_topic(rng)
            else:
                drawn = corpus.draw(rng.choices(INTENTS, self._weights)[0], rng)
            question = drawn.question if rng.random() < PLAIN_SHARE else vary(drawn.question, rng)
            if corpus.normalized(question) not in self._held_out:
                return corpus.Phrasing(intent=drawn.intent, question=question, answer=drawn.answer)

    def example(self) -> Example:
        """Draw a conversation of one to three turns."""
        rng = self._rng
        tokens: list[int] = []
        weights: list[float] = []
        if rng.random() < SYSTEM_SHARE:
            tokens += self._ids(turn_text("system", rng.choice(SYSTEM_MESSAGES)))
            weights += [0.0] * len(tokens)
        turn_count = rng.choices((1, 2, 3), TURN_COUNT_WEIGHTS)[0]
        for turn in range(turn_count):
            phrasing = self.phrasing()
            asked = self._ids(
                turn_text("user", phrasing.question), rough=rng.random() < SPLIT_DROPOUT_SHARE
            )
            asked += self._ids(f"{TURN_START}assistant\n")
            answered = self._ids(f"{phrasing.answer}{TURN_END}\n")
            if turn == turn_count - 1 and rng.random() < CUT_SHARE:
                answered = answered[:CUT_TOKENS]
            tokens += asked + answered
            weights += [QUESTION_WEIGHT] * len(asked)
            weights += [
                OPENING_WEIGHT if place < OPENING_TOKENS else 1.0 for place in range(len(answered))
            ]
        return Example(tokens=tuple(tokens), weights=tuple(weights))

    def batches(self, *, batch_tokens: int, pool: int = 512) -> Iterator[Batch]:
        """Yield batches of conversations of like length, of about that many tokens each."""
        while True:
            examples = sorted((self.example() for _ in range(pool)), key=lambda e: len(e.tokens))
            groups: list[list[Example]] = [[]]
            for example in examples:
                if (len(groups[-1]) + 1) * len(example.tokens) > batch_tokens:
                    groups.append([])
                groups[-1].append(example)
            self._rng.shuffle(groups)
            for group in groups:
                yield pad(group)

    def _ids(self, text: str, *, rough: bool = False) -> list[int]:
        tokenizer = self._rough_tokenizer if rough else self._tokenizer
        return tokenizer.encode(text, add_special_tokens=False).ids


def pad(examples: list[Example]) -> Batch:
    """Put examples into rows of one length; zero stands after the end."""
    length = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    weights = torch.zeros(len(examples), length)
    present = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        end = len(example.tokens)
        tokens[row, :end] = torch.tensor(example.tokens)
        weights[row, :end] = torch.tensor(example.weights)
        present[row, :end] = True
    return Batch(tokens=tokens, present=present, weights=weights)


def _weight(intent: Intent) -> float:
    """Weigh an intent: tasks are asked most, courtesies and single exit codes least."""
    if intent.name == "what_is_moerun":
        return 2.0  # the first thing that a newcomer asks
    if intent in SMALL_TALK or intent.name.startswith("exit_"):
        return 0.5
    return 1.5 if intent.tasks else 1.0
