"""The decoding loop: a prompt in, text out as it comes, and how it went.

Knows: the order of prefill, sampling, stop conditions and clocks.
Does not know: templates, plans, processes.
"""

import time
from collections.abc import Callable

from moerun.engine.decode import Decoder
from moerun.engine.interface import GenerationResult, StopReason
from moerun.engine.load import LoadedModel
from moerun.engine.pieces import PieceDecoder, StopMatcher
from moerun.engine.sampling import SamplerChain, SamplingChoice
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import UsageError


def generate(
    loaded: LoadedModel,
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompt: list[int],
    choice: SamplingChoice,
    *,
    maximum_tokens: int | None,
    stop: tuple[str, ...],
    on_text: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> GenerationResult:
    """Answer a prompt of tokens; the memory of earlier calls is reused as far as it agrees.

    One seed gives one answer where the memory holds the same at the start; reused tokens were
    computed in other batches, which may round differently.
    """
    room = _room(loaded.context_tokens, len(prompt), maximum_tokens)
    chain = SamplerChain(loaded.abi.llama, choice, vocabulary_size=loaded.vocabulary_size)
    started_s = time.monotonic()
    try:
        reused, is_done = decoder.prefill(prompt, is_cancelled=is_cancelled)
        prompt_s = time.monotonic() - started_s
        writer = _Writer(on_text, stop)
        reason, answer_tokens = StopReason.CANCELLED, 0
        if is_done:
            chain.remember(prompt)
            reason, answer_tokens = _write_answer(
                loaded, decoder, vocabulary, chain, writer, room=room, is_cancelled=is_cancelled
            )
    finally:
        chain.free()
    return GenerationResult(
        stop_reason=reason,
        prompt_tokens=len(prompt),
        reused_tokens=reused,
        answer_tokens=answer_tokens,
        prompt_s=prompt_s,
        answer_s=time.monotonic() - started_s - prompt_s,
        seed=choice.seed,
    )


def _room(context_tokens: int, prompt_tokens: int, maximum_tokens: int | None) -> int:
    if prompt_tokens == 0:
        raise UsageError("The prompt is empty.")
    if maximum_tokens is not None and maximum_tokens < 1:
        raise UsageError(f"At least one token must be asked for, not {maximum_tokens}.")
    if prompt_tokens >= context_tokens:
        needed = -(-(prompt_tokens + 256) // 256) * 256
        raise UsageError(
            f"The prompt has {prompt_tokens:,} tokens and the context holds "
            f"{context_tokens:,}; nothing is left for an answer.",
            hint=f"Shorten it, or pass --ctx {needed} or more.",
        )
    room = context_tokens - prompt_tokens
    return room if maximum_tokens is None else min(room, maximum_tokens)


def _write_answer(
    loaded: LoadedModel,
    decoder: Decoder,
    vocabulary: Vocabulary,
    chain: SamplerChain,
    writer: "_Writer",
    *,
    room: int,
    is_cancelled: Callable[[], bool],
) -> tuple[StopReason, int]:
    """Sample and run tokens until something ends the answer; the last one is not run."""
    reason, count = StopReason.LENGTH, 0
    while count < room:
        token = chain.sample(loaded.context)
        count += 1
        if vocabulary.is_end(token):
            reason = StopReason.END
            break
        writer.write(vocabulary.piece(token))
        if writer.is_stopped:
            reason = StopReason.END
            break
        if count == room:
            break
        if is_cancelled():
            reason = StopReason.CANCELLED
            break
        decoder.advance(token)
    writer.finish()
    return reason, count


class _Writer:
    """Hands over whole characters up to the first stop string."""

    def __init__(self, on_text: Callable[[str], None], stop: tuple[str, ...]) -> None:
        self._on_text = on_text
        self._pieces = PieceDecoder()
        self._stops = StopMatcher(stop)

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_hit

    def write(self, piece: bytes) -> None:
        self._hand_over(self._stops.feed(self._pieces.feed(piece)))

    def finish(self) -> None:
        self._hand_over(self._stops.feed(self._pieces.finish()) + self._stops.finish())

    def _hand_over(self, text: str) -> None:
        if text:
            self._on_text(text)
