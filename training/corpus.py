"""The training text: every phrasing of every intent, and the questions to decline.

Knows: how a pattern stands for its phrasings, and how a name or a task becomes a question.
Does not know: typing errors, conversations, tokens, or a model.
"""

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from training.intents import INTENTS, Intent
from training.off_topic import ACTIVITIES, FIXED, PEOPLE, PLACES, REFUSAL, THINGS, WORKS

OFF_TOPIC: Final = "off_topic"

ASKING_FOR_A_NAME: Final[tuple[str, ...]] = (
    "what {is|are} <name>",
    "{what's|whats} <name>",
    "what does <name> mean",
    "<name>",
    "what {do you mean|is meant} by <name>",
    "explain <name>",
    "{can|could} you explain <name>",
    "define <name>",
    "tell me {|more |something }about <name>",
    "describe <name>",
    "{the |}meaning of <name>",
    "what {is|are} <name> {for|good for}",
    "what does <name> do",
    "i {do not|don't} {understand|know|get} <name>",
    "<name> {explained|meaning|definition}",
    "give me {a definition|an explanation} of <name>",
    "help me understand <name>",
    "how {can|should|do} i understand <name>",
    "{why|when} {do i need|would i need} <name>",
    "what {exactly|actually} {is|are} <name>",
    "what about <name>",
    "how does <name> work",
    "what should i know about <name>",
    "i have a question about <name>",
    "{in a few words|briefly|simply put}, what {is|are} <name>",
    "what can <name> do",
    "i keep {reading|hearing} about <name>, what is {it|that}",
    "{is there|do you have} <name>",
    "what is the {purpose|role|idea|use|point} of <name>",
)

ASKING_FOR_A_TASK: Final[tuple[str, ...]] = (
    "how {do|can|could|would|should} i <task>",
    "how to <task>",
    "how do you <task>",
    "how does one <task>",
    "what is the {way|command|best way} to <task>",
    "i {want|need|wish|try|would like|have} to <task>",
    "i'd like to <task>",
    "{is there|do you know} {a|any} way to <task>",
    "can i <task>",
    "is it possible to <task>",
    "{show|tell} me how {to|i can} <task>",
    "what {do|must|should|can} i {type|do|enter} to <task>",
    "{which|what} command {lets me|do i use to|is there to|should i use to} <task>",
    "<task>",
    "{please|just} <task>",
    "help me <task>",
    "let me <task>",
    "what if i want to <task>",
    "can {it|moerun|you|one|we} <task>",
    "{any|a} {command|option|flag|setting} to <task>",
    "{which|what} {option|flag|setting} {is there|do i need} to <task>",
    "how is it possible to <task>",
    "{where|when} can i <task>",
    "i {don't|do not} know how to <task>",
    "{my boss|somebody|a friend} wants to <task>, how",
)

PLAIN_WAYS: Final = 4  # of each kind, from the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrasing:
    """One way to ask, what it is about, and the answer."""

    intent: str
    question: str
    answer: str


def expand(pattern: str) -> Iterator[str]:
    """Yield everything that the pattern stands for."""
    parts = [_choices(part) for part in _split(pattern)]
    for chosen in itertools.product(*parts):
        yield _tidy("".join(chosen))


def pick(pattern: str, rng: random.Random) -> str:
    """Return one phrasing of the pattern, each choice drawn alone."""
    return _tidy("".join(rng.choice(_choices(part)) for part in _split(pattern)))


def patterns(intent: Intent) -> tuple[str, ...]:
    """Return the patterns of an intent, its names and tasks put into questions."""
    return (
        *intent.questions,
        *(frame.replace("<name>", name) for name in intent.names for frame in ASKING_FOR_A_NAME),
        *(frame.replace("<task>", task) for task in intent.tasks for frame in ASKING_FOR_A_TASK),
    )


def phrasings() -> Iterator[Phrasing]:
    """Yield the whole text, about a million questions, those to decline included."""
    for source in _sources():
        for question in expand(source.pattern):
            yield Phrasing(intent=source.intent, question=question, answer=source.answer)


def phrasings_like(question: str, *, least_overlap_fraction: float) -> Iterator[Phrasing]:
    """Yield the phrasings that share at least that fraction of words with the question.

    The fraction is of the words that either of the two has. Patterns that cannot reach it are
    passed over by their words alone, so this takes a small part of the time of a full listing.
    """
    words = set(normalized(question).split())
    for source in _sources():
        required, possible = _words_of(source.pattern)
        best_shared = len(words & possible)
        fewest_together = len(words | required)
        if best_shared < least_overlap_fraction * fewest_together:
            continue
        for candidate in expand(source.pattern):
            others = set(normalized(candidate).split())
            if len(words & others) >= least_overlap_fraction * len(words | others):
                yield Phrasing(intent=source.intent, question=candidate, answer=source.answer)


def draw(intent: Intent, rng: random.Random) -> Phrasing:
    """Draw a phrasing: first its kind (question, name, task) and then the words.

    The first name of an intent and the plain ways to ask for it count most, as in life.
    """
    kinds = ["question"] * bool(intent.questions)
    kinds += ["name"] * bool(intent.names)
    kinds += ["task"] * bool(intent.tasks)
    match rng.choice(kinds):
        case "question":
            pattern = rng.choice(intent.questions)
        case "name":
            name = intent.names[0] if rng.random() < 0.4 else rng.choice(intent.names)
            frames = ASKING_FOR_A_NAME[:PLAIN_WAYS] if rng.random() < 0.5 else ASKING_FOR_A_NAME
            pattern = rng.choice(frames).replace("<name>", name)
        case _:
            frames = ASKING_FOR_A_TASK[:PLAIN_WAYS] if rng.random() < 0.4 else ASKING_FOR_A_TASK
            pattern = rng.choice(frames).replace("<task>", rng.choice(intent.tasks))
    return Phrasing(intent=intent.name, question=pick(pattern, rng), answer=intent.answer)


def draw_off_topic(rng: random.Random) -> Phrasing:
    """Draw a question to decline."""
    question = pick(rng.choice(FIXED), rng)
    for slot, choices in _SLOTS.items():
        while slot in question:
            question = question.replace(slot, rng.choice(choices), 1)
    return Phrasing(intent=OFF_TOPIC, question=question, answer=REFUSAL)


def normalized(question: str) -> str:
    """Return the words of a question alone, so that case and punctuation do not tell two apart."""
    return " ".join(re.findall(r"(?:--)?[a-z0-9_]+", question.lower().replace("'", "")))


_SLOTS: Final = {
    "<place>": PLACES,
    "<person>": PEOPLE,
    "<thing>": THINGS,
    "<activity>": ACTIVITIES,
    "<work>": WORKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    intent: str
    answer: str
    pattern: str


@functools.cache
def _sources() -> tuple[_Source, ...]:
    """Return every pattern of the text; the slots of off-topic ones become choices."""
    sources = [
        _Source(intent=intent.name, answer=intent.answer, pattern=pattern)
        for intent in INTENTS
        for pattern in patterns(intent)
    ]
    for fixed in FIXED:
        for pattern in expand(fixed):
            for slot, choices in _SLOTS.items():
                pattern = pattern.replace(slot, "{" + "|".join(choices) + "}")
            sources.append(_Source(intent=OFF_TOPIC, answer=REFUSAL, pattern=pattern))
    return tuple(sources)


@functools.cache
def _words_of(pattern: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that every phrasing of the pattern has, and those that one may have."""
    required: set[str] = set()
    possible: set[str] = set()
    parts = _split(pattern)
    for index, part in enumerate(parts):
        choices = [normalized(choice).split() for choice in _choices(part)]
        possible.update(itertools.chain.from_iterable(choices))
        if part.startswith("{"):
            continue
        # A word that touches a choice is only a piece of one.
        whole = part if index == 0 or part[:1].isspace() else part.partition(" ")[2]
        whole = (
            whole if index == len(parts) - 1 or part[-1:].isspace() else whole.rpartition(" ")[0]
        )
        required.update(normalized(whole).split())
    return frozenset(required), frozenset(possible)


def _split(pattern: str) -> list[str]:
    return [part for part in re.split(r"(\{[^}]*\})", pattern) if part]


def _choices(part: str) -> tuple[str, ...]:
    if part.startswith("{"):
        return tuple(part[1:-1].split("|"))
    return (part,)


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace(" ,", ",").strip()
