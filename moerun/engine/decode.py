"""Running tokens through the model, and what of them is still in its memory.

Knows: batches, the memory of past tokens and when part of it can be kept, cancellation.
Does not know: text, sampling, or conversations.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine.load import LoadedModel
from moerun.engine.load_log import error_line, find_memory_failure
from moerun.errors import EngineOutOfMemory, EngineRefused

_SEQUENCE: Final = 0
_POLL_S: Final = 0.05
# What llama_decode returns — include/llama.h:996 @ 0.3.36
_OK: Final = 0
_NO_SLOT: Final = 1
_ABORTED: Final = 2


class Decoder:
    """One sequence of tokens in the memory of a loaded model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._llama = loaded.abi.llama
        self._memory = self._llama.llama_get_memory(loaded.context)
        if not self._memory:
            raise EngineRefused(
                "This model keeps no memory of past tokens, so it cannot write answers.",
                hint="It may be an embedding model.",
            )
        self._has_state = bool(
            self._llama.llama_model_is_recurrent(loaded.model)
            or self._llama.llama_model_is_hybrid(loaded.model)
        )
        self._tokens: list[int] = []
        self._single = (self._llama.llama_token * 1)()
        self._no_abort = self._llama.ggml_abort_callback()
        if loaded.hook is not None:
            loaded.hook.learn()
            self.clear()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the tokens that the memory holds."""
        return tuple(self._tokens)

    def clear(self) -> None:
        """Forget all tokens.

        The cells of a KV cache are only marked free: overwriting gigabytes with zeroes takes
        seconds and commits memory that was never used. A recurrent state has no such marks.
        """
        self._llama.llama_memory_clear(self._memory, self._has_state)
        self._tokens.clear()

    def prefill(self, tokens: list[int], *, is_cancelled: Callable[[], bool]) -> tuple[int, bool]:
        """Bring the memory to `tokens`; return how many were still there, and if it was done.

        The last token is always run, since its logits are what comes next. False means cancelled;
        the memory then holds what was run.
        """
        reused = self._keep_prefix(tokens)
        with _AbortOn(self, is_cancelled):
            for start in range(reused, len(tokens), self._loaded.decode_tokens):
                if is_cancelled():
                    return reused, False
                part = tokens[start : start + self._loaded.decode_tokens]
                array = self._array(part)  # named, since the batch only points to it
                batch = self._llama.llama_batch_get_one(array, len(part))
                if start + len(part) < len(tokens):
                    no_outputs = (ctypes.c_int8 * len(part))()
                    batch.logits = no_outputs
                if not self._run(batch):
                    self._resynchronise(tokens)
                    return reused, False
                self._tokens += part
        return reused, True

    def advance(self, token: int) -> None:
        """Run one token."""
        self._single[0] = token
        self._run(self._llama.llama_batch_get_one(self._single, 1))
        self._tokens.append(token)

    def evaluate(self, tokens: list[int]) -> numpy.typing.NDArray[numpy.float32]:
        """Return the logits after each token of a fresh sequence, one row for each."""
        self.clear()
        rows = []
        for start in range(0, len(tokens), self._loaded.decode_tokens):
            part = tokens[start : start + self._loaded.decode_tokens]
            array = self._array(part)
            batch = self._llama.llama_batch_get_one(array, len(part))
            wanted = (ctypes.c_int8 * len(part))(*([1] * len(part)))
            batch.logits = wanted
            self._run(batch)
            self._tokens += part
            rows.append(self._rows(len(part)))
        return numpy.concatenate(rows)

    def _rows(self, count: int) -> numpy.typing.NDArray[numpy.float32]:
        pointer = self._llama.llama_get_logits(self._loaded.context)
        if not pointer:
            raise EngineRefused("The engine computed no logits.")
        rows = numpy.ctypeslib.as_array(pointer, shape=(count, self._loaded.vocabulary_size))
        return numpy.array(rows, dtype=numpy.float32, copy=True)

    def _array(self, tokens: list[int]) -> Any:
        return (self._llama.llama_token * len(tokens))(*tokens)

    def _keep_prefix(self, tokens: list[int]) -> int:
        """Drop from the memory all that `tokens` does not begin with; return what remains.

        Beliefs: a recurrent state cannot go back (`seq_rm` says no), and a sliding window may have
        lost tokens that an earlier position needs — src/llama-memory-recurrent.cpp,
        tools/server/server-context.cpp @ 0.3.36 — checked by tests/engine/test_generate.py.
        """
        keep = 0
        for kept, wanted in zip(self._tokens, tokens[:-1], strict=False):
            if kept != wanted:
                break
            keep += 1
        if keep == len(self._tokens):
            return keep
        window = self._llama.llama_model_n_swa(self._loaded.model)
        first = self._llama.llama_memory_seq_pos_min(self._memory, _SEQUENCE)
        is_window_whole = window == 0 or first <= max(0, keep - window)
        if (
            keep > 0
            and is_window_whole
            and self._llama.llama_memory_seq_rm(self._memory, _SEQUENCE, keep, -1)
        ):
            del self._tokens[keep:]
            return keep
        self.clear()
        return 0

    def _resynchronise(self, tokens: list[int]) -> None:
        """After an abort, take over how far the engine came."""
        done = self._llama.llama_memory_seq_pos_max(self._memory, _SEQUENCE) + 1
        self._tokens = tokens[:done]

    def _run(self, batch: Any) -> bool:
        """Decode a batch; False when it was aborted.

        Whatever a supplier of experts raises leaves here, and nothing of the sequence is kept.
        """
        mark = self._loaded.log.mark()
        hook, supplier = self._loaded.hook, self._loaded.supplier
        if hook is not None:
            hook.begin()
        status = self._llama.llama_decode(self._loaded.context, batch)
        try:
            if hook is not None:
                hook.end(is_complete=status == _OK)
            if supplier is not None and status == _OK:
                supplier.check()
        except BaseException:
            self.clear()
            raise
        if status == _OK:
            return True
        if status == _ABORTED:
            return False
        lines = self._loaded.log.since(mark)
        self.clear()
        if status == _NO_SLOT:
            raise EngineRefused(
                f"The context of {self._loaded.context_tokens:,} tokens is full.",
                hint="Ask for a larger one with --ctx.",
            )
        memory = find_memory_failure(lines)
        if memory is not None:
            raise EngineOutOfMemory(
                "The engine ran out of memory while it computed.",
                device=memory.buffer,
                requested_bytes=memory.requested_bytes,
                hint="Plan with a larger margin or a smaller --ctx.",
            )
        raise EngineRefused(
            f"The engine could not compute the next tokens (status {status}): "
            f"{error_line(lines) or 'it gave no reason'}.",
            log_tail=self._loaded.log.tail(),
        )


class _AbortOn:
    """While open, a cancellation stops the engine in the middle of a batch.

    The callback is asked at every node of the graph, so it is there for prompts alone, where a
    batch may take minutes; ggml honours it on the processor only.
    """

    def __init__(self, decoder: Decoder, is_cancelled: Callable[[], bool]) -> None:
        self._decoder = decoder
        self._is_cancelled = is_cancelled
        self._next_s = 0.0
        self._answer = False
        self._failure: BaseException | None = None
        self._callback = decoder._llama.ggml_abort_callback(self._ask)

    def __enter__(self) -> "_AbortOn":
        self._set(self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._decoder._no_abort)
        if self._failure is not None:
            raise self._failure

    def _ask(self, _: Any) -> bool:
        if not self._answer and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _POLL_S
            try:
                self._answer = self._is_cancelled()
            except BaseException as error:  # also Ctrl-C; it must not pass through C
                self._failure, self._answer = error, True
        return self._answer

    def _set(self, callback: Any) -> None:
        self._decoder._llama.llama_set_abort_callback(self._decoder._loaded.context, callback, None)
