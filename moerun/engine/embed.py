"""Texts as vectors: the hidden state that the model ends with.

Beliefs: `llama_set_embeddings` may be switched on a context that writes text, too; without a
pooling of its own a model's vector is that of the last token, as ollama's runner takes it —
include/llama.h:1145, src/llama-context.cpp @ 0.3.36 — checked by tests/engine/test_embed.py.

Knows: batches of one text, pooling, lengths.
Does not know: answers, or what the vectors are compared with.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine.interface import EmbeddingRequest, EmbeddingResult
from moerun.engine.load import LoadedModel
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import EngineRefused, UsageError

_POOLED_BY_NONE: Final = 0  # LLAMA_POOLING_TYPE_NONE — include/llama.h:176 @ 0.3.36

Vector = numpy.typing.NDArray[numpy.float32]


def embed(
    loaded: LoadedModel, vocabulary: Vocabulary, request: EmbeddingRequest
) -> EmbeddingResult:
    """Return a vector for each text; the memory of the model is forgotten."""
    started_s = time.monotonic()
    width = int(loaded.abi.llama.llama_model_n_embd(loaded.model))
    if request.dimensions is not None and not 0 < request.dimensions <= width:
        raise UsageError(
            f"The model's vectors have {width:,} dimensions; {request.dimensions} were asked for."
        )
    prompts = [_fitted(loaded, vocabulary.tokenize(text), request) for text in request.texts]
    with _embeddings_on(loaded):
        vectors = [_vector(loaded, tokens, width) for tokens in prompts]
    return EmbeddingResult(
        vectors=tuple(_finished(vector[: request.dimensions], request) for vector in vectors),
        prompt_tokens=sum(len(tokens) for tokens in prompts),
        total_s=time.monotonic() - started_s,
    )


def _fitted(loaded: LoadedModel, tokens: list[int], request: EmbeddingRequest) -> list[int]:
    """Return tokens that one batch and the context hold; a pooled text must be one batch."""
    llama = loaded.abi.llama
    is_pooled = int(llama.llama_pooling_type(loaded.context)) != _POOLED_BY_NONE
    most = loaded.context_tokens
    if is_pooled or not llama.llama_get_memory(loaded.context):
        most = min(most, int(llama.llama_n_ubatch(loaded.context)))
    if not tokens:
        raise UsageError("A text without any token has no vector.")
    if len(tokens) <= most:
        return tokens
    if not request.truncates:
        raise UsageError(
            f"A text has {len(tokens):,} tokens, and {most:,} can be made a vector of.",
            hint="Shorten it, let it be cut, or load the model with a larger context.",
        )
    return tokens[:most]


@contextmanager
def _embeddings_on(loaded: LoadedModel) -> Iterator[None]:
    llama = loaded.abi.llama
    llama.llama_set_embeddings(loaded.context, True)
    try:
        yield
    finally:
        llama.llama_set_embeddings(loaded.context, False)
        if memory := llama.llama_get_memory(loaded.context):
            llama.llama_memory_clear(memory, True)


def _vector(loaded: LoadedModel, tokens: list[int], width: int) -> Vector:
    llama = loaded.abi.llama
    memory = llama.llama_get_memory(loaded.context)
    if memory:
        llama.llama_memory_clear(memory, True)
    for start in range(0, len(tokens), loaded.decode_tokens):
        part = tokens[start : start + loaded.decode_tokens]
        array = (llama.llama_token * len(part))(*part)
        batch = llama.llama_batch_get_one(array, len(part))
        outputs = (llama.ctypes.c_int8 * len(part))(*([1] * len(part)))
        batch.logits = outputs
        run = llama.llama_decode if memory else llama.llama_encode
        if status := _run(loaded, run, batch):
            raise EngineRefused(f"The engine could not compute a vector (status {status}).")
    pointer = llama.llama_get_embeddings_seq(loaded.context, 0) or llama.llama_get_embeddings_ith(
        loaded.context, -1
    )
    if not pointer:
        raise UsageError("This model gives no vectors.")
    return numpy.array(numpy.ctypeslib.as_array(pointer, shape=(width,)), dtype=numpy.float32)


def _run(loaded: LoadedModel, run: Any, batch: Any) -> int:
    """Run a batch, with whoever supplies the experts told of it."""
    hook, supplier = loaded.hook, loaded.supplier
    if hook is not None:
        hook.begin(batch.n_tokens)
    status = int(run(loaded.context, batch))
    if hook is not None:
        hook.end(is_complete=status == 0)
    if supplier is not None and status == 0:
        supplier.check()
    return status


def _finished(vector: Vector, request: EmbeddingRequest) -> tuple[float, ...]:
    length = float(numpy.linalg.norm(vector))
    if not numpy.isfinite(length) or length == 0:
        raise EngineRefused("The model's vector has no length.")
    scaled = vector / length if request.normalises else vector
    return tuple(float(value) for value in scaled)
