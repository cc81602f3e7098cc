"""From a request to an answer that can be made: its tokens, its limits, its samplers.

Knows: how much room a prompt leaves, and what of it may be left out.
Does not know: other answers, batches, plans, processes.
"""

from typing import Final

from moerun.engine.answer_text import AnswerText
from moerun.engine.answers import Answer, AnswerPlan
from moerun.engine.chat import ChatPrompt
from moerun.engine.grammar import make_grammar
from moerun.engine.interface import AnswerReceiver, GenerationRequest, Overflow
from moerun.engine.load import LoadedModel
from moerun.engine.sampler_chain import SamplerChain
from moerun.engine.sampling import SamplingChoice
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import UsageError

# Where a context that shifts would let an answer go on for ever, as ollama bounds it, too.
_CONTEXTS_OF_ENDLESS: Final = 10
_MOST_TOP_LOGPROBS: Final = 20


def make_answer(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    request: GenerationRequest,
    prompt: ChatPrompt,
    tokens: list[int],
    choice: SamplingChoice,
    receiver: AnswerReceiver,
) -> Answer:
    """Return an answer that is ready to be made.

    One seed gives one answer where the memory holds the same at the start and nobody shares the
    batches; reused tokens, and those beside others, are computed in other batches, which may
    round differently. UsageError when it cannot be made.
    """
    tokens, notes = _fitted(loaded.context_tokens, tokens, request)
    top = request.top_logprobs
    if top is not None and not 0 <= top <= _MOST_TOP_LOGPROBS:
        raise UsageError(f"top_logprobs must be between 0 and {_MOST_TOP_LOGPROBS}, not {top}.")
    room = _room(loaded.context_tokens, len(tokens), request)
    grammar = make_grammar(loaded, prompt.grammar or "") if prompt.grammar else None
    keep = 1 if request.keep_tokens is None else request.keep_tokens
    return Answer(
        AnswerPlan(
            prompt=tuple(tokens),
            room_tokens=room,
            seed=choice.seed,
            overflow=request.overflow,
            keep_tokens=len(tokens) if keep < 0 else min(keep, len(tokens)),
            marks=prompt.marks,
            has_grammar=grammar is not None,
            top_logprobs=top,
            wants_tokens=request.wants_tokens,
            notes=(*prompt.notes, *notes),
        ),
        chain=SamplerChain(
            loaded.abi.llama,
            choice,
            vocabulary_size=loaded.vocabulary_size,
            context_tokens=loaded.context_tokens,
            grammar=grammar,
        ),
        text=AnswerText(
            stop=(*request.stop, *prompt.stop), splitter=prompt.splitter, tools=prompt.tools
        ),
        receiver=receiver,
        vocabulary=vocabulary,
    )


def _fitted(
    context_tokens: int, tokens: list[int], request: GenerationRequest
) -> tuple[list[int], tuple[str, ...]]:
    """Return a prompt that leaves room, with its middle left out where that is wished."""
    if not request.truncates or len(tokens) < context_tokens or context_tokens < 8:
        return tokens, ()
    # Half of what is left for an answer when the prompt alone would fill everything.
    keep = min(max(1, request.keep_tokens or 1), context_tokens // 4)
    tail = context_tokens - keep - max(1, context_tokens // 4)
    left_out = len(tokens) - keep - tail
    note = f"{left_out:,} tokens in the middle of the prompt were left out, since it was too long"
    return [*tokens[:keep], *tokens[-tail:]], (note,)


def _room(context_tokens: int, prompt_tokens: int, request: GenerationRequest) -> int:
    maximum_tokens = request.maximum_tokens
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
    if request.overflow is Overflow.SHIFT:
        room = _CONTEXTS_OF_ENDLESS * context_tokens
    return room if maximum_tokens is None else min(room, maximum_tokens)
