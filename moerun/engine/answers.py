"""One answer in the making: what is asked, what was written so far, and how it ends.

Knows: the order of sampling, stop conditions and clocks for one sequence.
Does not know: other answers, batches, or templates.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine.answer_text import AnswerText
from moerun.engine.interface import (
    AnswerReceiver,
    GenerationResult,
    Overflow,
    StopReason,
    TokenLogprob,
)
from moerun.engine.sampler_chain import SamplerChain
from moerun.engine.vocabulary import Vocabulary

NOWHERE: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What an answer is made of: its prompt, its limits, and how its text is taken apart.

    `marks` are control tokens that the text is taken apart by. `keep_tokens` survive a shift.
    """

    prompt: tuple[int, ...]
    room_tokens: int
    seed: int
    overflow: Overflow = Overflow.END
    keep_tokens: int = 1
    marks: frozenset[str] = frozenset()
    has_grammar: bool = False
    top_logprobs: int | None = None
    wants_tokens: bool = False
    notes: tuple[str, ...] = ()


class Answer:
    """The state of one answer. `tokens` are all that its sequence is to hold, in order."""

    def __init__(
        self,
        plan: AnswerPlan,
        *,
        chain: SamplerChain,
        text: AnswerText,
        receiver: AnswerReceiver,
        vocabulary: Vocabulary,
    ) -> None:
        """Begin with the prompt."""
        self.plan = plan
        self.chain = chain
        self.text = text
        self.receiver = receiver
        self.vocabulary = vocabulary
        self.begun_s = time.monotonic()
        self.tokens = list(plan.prompt)
        self.sequence = NOWHERE
        self.reused_tokens = 0
        self.answer_tokens = 0
        self.shifted_tokens = 0
        self.prompt_from_s: float | None = None
        self.answer_from_s: float | None = None
        self.stop_reason: StopReason | None = None

    def write_next(self, context: Any, row: int, logits: Callable[[int], Any]) -> None:
        """Choose the token after a row of the last batch, and hand over what it gives."""
        if self.answer_from_s is None:
            self.answer_from_s = time.monotonic()
            self.chain.remember(self.plan.prompt)
        if self.plan.has_grammar and self.text.is_content:
            token, _ = self.chain.sample_bound(logits(row))
        elif self.plan.has_grammar:
            token, _ = self.chain.sample_bound(logits(row), is_free=self._stands_before)
        else:
            token = self.chain.sample(context, row)
        self.answer_tokens += 1
        if self.vocabulary.is_end(token):
            self.stop_reason = StopReason.END
            return
        if self.plan.top_logprobs is not None:
            self.text.note_logprob(self._logprob(token, logits(row), self.plan.top_logprobs))
        if (part := self.text.feed(self._piece(token))) is not None:
            self.receiver.receive(part)
        if self.text.is_stopped:
            self.stop_reason = StopReason.END
        elif self.answer_tokens == self.plan.room_tokens:
            self.stop_reason = StopReason.LENGTH
        self.tokens.append(token)

    def finish(self, reason: StopReason) -> None:
        """Hand over what was held back, and the result."""
        self.chain.free()
        now_s = time.monotonic()
        prompt_from_s = now_s if self.prompt_from_s is None else self.prompt_from_s
        answer_from_s = now_s if self.answer_from_s is None else self.answer_from_s
        if self.answer_tokens and (part := self.text.finish()) is not None:
            self.receiver.receive(part)
        self.receiver.finish(
            GenerationResult(
                stop_reason=reason,
                prompt_tokens=len(self.plan.prompt),
                reused_tokens=self.reused_tokens,
                answer_tokens=self.answer_tokens,
                prompt_s=answer_from_s - prompt_from_s,
                answer_s=now_s - answer_from_s,
                seed=self.plan.seed,
                notes=self.plan.notes,
                wait_s=prompt_from_s - self.begun_s,
                tool_calls=tuple(self.text.tool_calls),
                stop_string=self.text.stop_string,
                shifted_tokens=self.shifted_tokens,
                tokens=tuple(self.tokens) if self.plan.wants_tokens else (),
            )
        )

    def fail(self, error: Exception) -> None:
        """Give up."""
        self.chain.free()
        self.receiver.fail(error)

    def _piece(self, token: int) -> bytes:
        """Return the bytes of a token; a control token's when the text is taken apart by it."""
        piece = self.vocabulary.piece(token)
        if not piece and self.plan.marks:
            mark = self.vocabulary.text_of(token)
            return mark.encode() if mark in self.plan.marks else b""
        return piece

    def _stands_before(self, token: int) -> bool:
        return not self.vocabulary.is_end(token) and self.text.may_open(self._piece(token))

    def _logprob(
        self, token: int, logits: numpy.typing.NDArray[numpy.float32], top: int
    ) -> TokenLogprob:
        """Return the figures of a token by the model's own scores, before anything is cut."""
        scores = logits.astype(numpy.float64)
        scores -= scores.max()
        scores -= numpy.log(numpy.exp(scores).sum())
        likeliest: list[int] = []
        if top > 0:
            count = min(top, len(scores))
            some = numpy.argpartition(-scores, count - 1)[:count]
            likeliest = sorted((int(i) for i in some), key=lambda i: (-scores[i], i))

        def figures(number: int, among: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
            data = self.vocabulary.piece(number, with_control=True)
            return TokenLogprob(
                token=number,
                text=data.decode("utf-8", "replace"),
                token_bytes=tuple(data),
                logprob=float(scores[number]),
                top=among,
            )

        return figures(token, tuple(figures(each) for each in likeliest))
