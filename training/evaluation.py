"""Judge the network while it trains: which questions would it answer word for word?

Greedy decoding gives the true answer exactly if, fed the true answer, the network prefers each of
its tokens in turn; so one pass judges many questions, and nothing has to be generated.

Knows: that judgement, and how experts were used.
Does not know: llama.cpp, quantization, or how questions are chosen.
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.conversations import Example, pad
from training.corpus import Phrasing
from training.model import DemoModel
from training.tokenizer import TURN_END, prompt_text


@torch.no_grad()
def answered_exactly(
    model: DemoModel, tokenizer: Tokenizer, phrasings: Sequence[Phrasing]
) -> tuple[bool, ...]:
    """Return for each question whether the greedy answer is the true one, word for word."""
    model.eval()
    verdicts: list[bool] = []
    for start in range(0, len(phrasings), 64):
        part = phrasings[start : start + 64]
        batch = pad([_example(tokenizer, phrasing) for phrasing in part])
        hidden, _ = model(batch.tokens[:, :-1], batch.present[:, :-1])
        right = model.output(hidden).argmax(dim=-1) == batch.tokens[:, 1:]
        verdicts += (right | (batch.weights[:, 1:] == 0)).all(dim=1).tolist()
    model.train()
    return tuple(verdicts)


@torch.no_grad()
def expert_shares(model: DemoModel, tokenizer: Tokenizer, phrasings: Sequence[Phrasing]) -> Tensor:
    """Return [layers, experts]: each expert's share of its layer's picks on these questions."""
    model.eval()
    picks = torch.zeros(model.shape.layers, model.shape.experts)
    for start in range(0, len(phrasings), 64):
        part = phrasings[start : start + 64]
        batch = pad([_example(tokenizer, phrasing) for phrasing in part])
        _, routing = model(batch.tokens, batch.present)
        picks += routing.expert_share * int(batch.present.sum())
    model.train()
    return picks / picks.sum(dim=1, keepdim=True)


def _example(tokenizer: Tokenizer, phrasing: Phrasing) -> Example:
    asked = tokenizer.encode(prompt_text([("user", phrasing.question)])).ids
    answered = tokenizer.encode(f"{phrasing.answer}{TURN_END}").ids
    return Example(
        tokens=(*asked, *answered),
        weights=(*(0.0 for _ in asked), *(1.0 for _ in answered)),
    )
