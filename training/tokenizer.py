"""A byte-level BPE vocabulary of the training text, in the form GPT-2 uses.

Knows: how the vocabulary is learned, its special tokens, and the ChatML form of a conversation.
Does not know: what the text says, or a model.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def learn(lines: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """Learn the merges from the lines; special tokens take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    # The same expression that llama.cpp applies for `tokenizer.ggml.pre = gpt-2`.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def with_dropout(tokenizer: Tokenizer, fraction: float) -> Tokenizer:
    """Return a copy that leaves out that fraction of merges by chance.

    Training on such splits makes misspelt and unseen words less foreign.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.model.dropout = fraction
    return copy


def turn_text(role: str, content: str) -> str:
    """Return one finished turn as the chat template writes it."""
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


def prompt_text(messages: Sequence[tuple[str, str]]) -> str:
    """Return a conversation of (role, content) that waits for the answer."""
    return "".join(turn_text(*message) for message in messages) + f"{TURN_START}assistant\n"


def merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges in order, each as two pieces with a space between."""
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Return every token's text in order of its id."""
    by_id = {number: piece for piece, number in tokenizer.get_vocab().items()}
    return [by_id[number] for number in range(len(by_id))]
