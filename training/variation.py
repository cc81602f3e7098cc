"""Vary a question the way people type: case, marks, courtesy, other words, slips.

The aim is that the model learns what a question is about and not how it is spelled.

Knows: openings, closings, words of like meaning, kinds of typing errors.
Does not know: intents or answers; it never changes what is asked.
"""

import random
import re
from typing import Final

OPENINGS: Final = (
    "hi, ",
    "hello, ",
    "hey, ",
    "hello moerun, ",
    "please ",
    "quick question: ",
    "can you tell me ",
    "could you tell me ",
    "i would like to know ",
    "i wonder ",
    "i was wondering ",
    "ok, ",
    "so, ",
    "so ",
    "and ",
    "also ",
    "now ",
    "excuse me, ",
    "sorry, ",
    "tell me, ",
    "tell me ",
    "well, ",
    "question: ",
    "do you know ",
    "i'd like to know ",
    "good morning, ",
    "one more question: ",
    "i am curious: ",
    "just curious, ",
    "maybe you know ",
    "actually, ",
    "i forgot: ",
    "remind me, ",
    "for a newcomer: ",
    "as a newcomer, ",
    "dear helper, ",
    "say, ",
    "but ",
    "then ",
    "can anybody tell me ",
    "i'm confused, ",
    "i just installed it. ",
    "i have a gpu. ",
    "i am on linux. ",
    "i read the readme. ",
    "my model is large. ",
    "i use a laptop. ",
    "i have a question, ",
)
CLOSINGS: Final = (
    " please",
    " thanks",
    " thank you",
    " in moerun",
    " with moerun",
    " exactly",
    " briefly",
    " in simple words",
    " here",
    " then",
    " again",
    " in general",
    " for me",
    " actually",
    " on my machine",
    " on linux",
    " today",
    " anyway",
    " in short",
    " for a newcomer",
    ", please",
    ", can you tell me",
    ", do you know",
    ", any idea",
    " i wonder",
    " in practice",
    " at all",
)
FILLERS: Final = (
    "just",
    "actually",
    "really",
    "exactly",
    "maybe",
    "now",
    "simply",
    "here",
    "there",
    "somehow",
    "basically",
    "quickly",
    "possibly",
    "the",
    "my",
    "a",
    "all",
    "that",
    "this",
    "some",
)
SMALL_WORDS: Final = frozenset(
    (
        *("a", "an", "the", "do", "does", "did", "i", "to", "is", "are", "of", "for", "my", "it"),
        *("can", "could", "would", "should", "will", "that", "this", "there", "be", "me", "you"),
        *("want", "please", "in", "on"),
    )
)
LIKE_WORDS: Final = (
    ("show", "display", "print", "give me", "present"),
    ("see", "look at", "view", "get to see", "find"),
    ("command", "verb", "subcommand", "instruction"),
    ("option", "flag", "switch", "parameter", "argument"),
    ("setting", "value", "option"),
    ("settings", "preferences", "options", "values"),
    ("machine", "computer", "pc", "system", "box", "workstation", "laptop", "server", "desktop"),
    ("gpu", "graphics card", "video card", "gpu card", "graphics processor", "gfx card"),
    ("gpus", "graphics cards", "video cards", "cards"),
    ("vram", "gpu memory", "video memory", "graphics memory", "video ram", "memory of the gpu"),
    ("ram", "system memory", "main memory", "host memory", "normal memory"),
    ("ssd", "disk", "drive", "hard drive", "solid state disk", "nvme drive", "storage"),
    ("limit", "cap", "restrict", "bound", "constrain"),
    ("model", "llm", "language model", "network", "neural network"),
    ("explain", "describe", "clarify", "explain to me", "make clear"),
    ("use", "take", "work with", "employ"),
    ("uses", "takes", "consumes", "needs", "occupies"),
    ("need", "require", "want"),
    ("start", "launch", "begin", "fire up", "kick off"),
    ("run", "execute", "start"),
    ("large", "big", "huge"),
    ("larger", "bigger", "greater", "longer"),
    ("choose", "pick", "select", "decide"),
    ("chosen", "picked", "selected", "decided"),
    ("chooses", "picks", "selects", "decides", "determines"),
    ("change", "modify", "alter", "adjust"),
    ("check", "verify", "test", "examine", "look at"),
    ("answers", "replies", "responses", "output"),
    ("answer", "reply", "response"),
    ("ask", "query", "question"),
    ("talk", "chat", "speak", "converse", "have a chat"),
    ("conversation", "chat", "dialogue", "discussion", "dialog"),
    ("happens", "goes on", "is going on", "will happen", "would happen"),
    ("if", "when", "in case"),
    ("why", "how come", "for what reason", "what is the reason that"),
    ("file", "document"),
    ("text", "document", "content", "input"),
    ("folder", "directory"),
    ("prompt", "question", "input", "request"),
    ("different", "another", "other"),
    ("another", "a different", "some other"),
    ("placed", "put", "located", "stored", "allocated", "loaded"),
    ("place", "put", "store", "move"),
    ("put", "place", "move"),
    ("free", "unused", "available", "empty"),
    ("error", "failure", "problem", "fault"),
    ("fails", "breaks", "does not work"),
    ("keep", "leave", "retain"),
    ("stop", "end", "quit", "halt"),
    ("install", "set up", "get running"),
    ("build", "compile", "make"),
    ("tests", "test suite", "unit tests", "checks"),
    ("tensors", "weights", "layers", "blocks", "parts"),
    ("tensor", "weight", "matrix"),
    ("quickly", "fast"),
    ("slow", "sluggish"),
    ("size", "amount", "capacity"),
    ("does it", "does moerun", "does the program", "does this tool", "does the thing"),
    ("can it", "can moerun", "can the program", "could it", "is it able to"),
    ("which", "what"),
    (
        "how do i",
        "how can i",
        "how do we",
        "how does one",
        "how would i",
        "how should i",
        "what must i do to",
        "how could i",
    ),
    ("i want to", "i would like to", "i need to", "i'd love to", "i wish to", "id like to"),
    ("data", "prompts", "text", "information", "inputs", "questions"),
    ("internet", "web", "network", "cloud", "online world"),
    ("reasons", "reasoning", "motives", "causes", "grounds"),
    ("decisions", "choices", "decision"),
    ("comes from", "originates", "came from", "is from"),
    ("colors", "colours", "coloured text", "color output"),
    ("context", "context window", "context length"),
    ("write", "type", "enter", "say"),
    ("worse", "poorer", "lower quality", "less good"),
    ("script", "program", "shell script", "code"),
    ("wins", "is stronger", "takes effect"),
    ("fit", "fit in", "be small enough", "have room"),
    ("gb", "gigabytes", "gigs", "gig"),
    ("at once", "simultaneously", "together"),
    ("token", "word"),
    ("without", "with no", "not having"),
    ("no", "not any"),
    ("cannot", "can't", "can not", "cant"),
    ("do not", "don't", "dont"),
    ("does not", "doesn't", "doesnt"),
    ("is not", "isn't", "isnt"),
    ("memory use", "memory usage", "memory consumption", "used memory"),
    ("live", "in real time", "continuously"),
    ("update", "refresh", "renew"),
    ("exit", "stop", "end", "finish", "quit"),
    ("exit code", "return code", "error code", "status"),
    ("get", "obtain", "receive", "have"),
    ("tell me", "say", "let me know", "inform me"),
    ("mean", "signify", "stand for", "say"),
    ("inside", "within", "in"),
    ("difference between", "differences between", "distinction between"),
    ("hardware", "devices", "equipment"),
    ("found", "detected", "seen", "recognized"),
    ("know", "find out", "learn", "see"),
    ("real", "actual", "true"),
)
NEAR_KEYS: Final = {
    "a": "sq",
    "b": "vn",
    "c": "xv",
    "d": "sf",
    "e": "wr",
    "f": "dg",
    "g": "fh",
    "h": "gj",
    "i": "uo",
    "j": "hk",
    "k": "jl",
    "l": "k",
    "m": "n",
    "n": "bm",
    "o": "ip",
    "p": "o",
    "r": "et",
    "s": "ad",
    "t": "ry",
    "u": "yi",
    "v": "cb",
    "w": "qe",
    "x": "zc",
    "y": "tu",
}


def vary(question: str, rng: random.Random) -> str:
    """Return the question as somebody else might have typed it."""
    text = question
    if rng.random() < 0.65:
        text = _swap_like_words(text, rng)
    if rng.random() < 0.08:
        text = _keep_key_words(text)
    if rng.random() < 0.2:
        text = _insert_filler(text, rng)
    if rng.random() < 0.15:
        text = _drop_a_word(text, rng)
    if rng.random() < 0.25:
        text = rng.choice(OPENINGS) + text
    if rng.random() < 0.15:
        text += rng.choice(CLOSINGS)
    if rng.random() < 0.15:
        text = _slip(text, rng)
    return _dress(text, rng)


def _swap_like_words(text: str, rng: random.Random) -> str:
    """Exchange up to three words or phrases for others of like meaning."""
    padded = f" {text} "
    usable = [group for group in LIKE_WORDS if any(f" {word} " in padded for word in group)]
    for group in rng.sample(usable, min(len(usable), rng.randint(1, 3))):
        present = [word for word in group if f" {word} " in padded]
        if not present:  # an earlier exchange may have taken the word away
            continue
        padded = padded.replace(f" {rng.choice(present)} ", f" {rng.choice(group)} ", 1)
    return padded.strip()


def _keep_key_words(text: str) -> str:
    """Return the text as someone types into a search box; a short question stays as it is."""
    kept = [word for word in text.split(" ") if word.lower() not in SMALL_WORDS]
    return " ".join(kept) if len(kept) >= 2 else text


def _insert_filler(text: str, rng: random.Random) -> str:
    """Put in a word that changes nothing; now and then one that nobody knows."""
    words = text.split(" ")
    filler = rng.choice(FILLERS)
    if rng.random() < 0.3:
        filler = "".join(rng.choice(tuple(NEAR_KEYS)) for _ in range(rng.randint(3, 8)))
    words.insert(rng.randint(1, len(words)), filler)
    return " ".join(words)


def _drop_a_word(text: str, rng: random.Random) -> str:
    """Leave one short word out; longer ones tend to carry the meaning."""
    words = text.split(" ")
    droppable = [i for i, word in enumerate(words) if len(word) <= 4 and word.isalpha()]
    if len(words) >= 4 and droppable:
        del words[rng.choice(droppable)]
    return " ".join(words)


def _slip(text: str, rng: random.Random) -> str:
    """Make one typing error inside a word of more than three letters."""
    places = [match.start() for match in re.finditer(r"(?<=[a-z])[a-z](?=[a-z]{2})", text)]
    if not places:
        return text
    at = rng.choice(places)
    match rng.randrange(4):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + text[at] + text[at:]
        case 2:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case _:
            return text[:at] + rng.choice(NEAR_KEYS.get(text[at], "e")) + text[at + 1 :]


def _dress(text: str, rng: random.Random) -> str:
    """Choose case and the closing mark."""
    match rng.choices(("sentence", "as it is", "lower", "title", "upper"), (44, 33, 16, 5, 2))[0]:
        case "sentence":
            text = text[:1].upper() + text[1:]
            text = re.sub(r"\bi\b", "I", text)
        case "lower":
            text = text.lower()
        case "title":
            text = text.title()
        case "upper":
            text = text.upper()
        case _:
            pass
    if rng.random() < 0.15:
        text = re.sub(r"\b(gpu|vram|ram|ssd|json|moe|llm|kv|cpu)\b", lambda m: m[0].upper(), text)
    return text + rng.choices(("?", "", ".", "!", " ?", "??"), (48, 38, 8, 2, 2, 2))[0]
