"""Running tokens through the model, and what of them is still in its memory.

Knows: batches, the memory of past tokens and when part of it can be kept, cancellation.
Does not know: text, sampling, or conversations.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine.load import LoadedModel
from moerun.engine.load_log import error_line, find_memory_failure
from moerun.errors import EngineOutOfMemory, EngineRefused

_POLL_S: Final = 0.05
# What llama_decode returns — include/llama.h:996 @ 0.3.36
_OK: Final = 0
_NO_SLOT: Final = 1
_ABORTED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens to run next in a sequence; `wants_logits` of the last of them."""

    sequence: int
    tokens: Sequence[int]
    wants_logits: bool


class Decoder:
    """The sequences of tokens in the memory of a loaded model; most have one, number 0."""

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
        self._sequences: list[list[int]] = [[] for _ in range(loaded.sequences)]
        self._batch = _Batch(self._llama, loaded.decode_tokens)
        self._no_abort = self._llama.ggml_abort_callback()
        if loaded.hook is not None:
            loaded.hook.learn()
            self.clear()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the tokens that the memory holds of the first sequence."""
        return tuple(self._sequences[0])

    @property
    def can_shift(self) -> bool:
        """Whether tokens in the middle can be forgotten, and the later ones moved down."""
        return not self._has_state and bool(self._llama.llama_memory_can_shift(self._memory))

    @property
    def decode_tokens(self) -> int:
        """How many tokens one `run` takes."""
        return self._loaded.decode_tokens

    def held(self, sequence: int) -> Sequence[int]:
        """Return the tokens that the memory holds of a sequence; not to be changed."""
        return self._sequences[sequence]

    def clear(self) -> None:
        """Forget all tokens of all sequences.

        The cells of a KV cache are only marked free: overwriting gigabytes with zeroes takes
        seconds and commits memory that was never used. A recurrent state has no such marks.
        """
        self._llama.llama_memory_clear(self._memory, self._has_state)
        for tokens in self._sequences:
            tokens.clear()

    def forget(self, sequence: int) -> None:
        """Forget one sequence."""
        if len(self._sequences) == 1:
            self.clear()
            return
        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._sequences[sequence].clear()

    def prefill(self, tokens: list[int], *, is_cancelled: Callable[[], bool]) -> tuple[int, bool]:
        """Bring the first sequence to `tokens`; return how many were there, and if it was done.

        The last token is always run, since its logits are what comes next. False means cancelled;
        the memory then holds what was run.
        """
        reused = self.keep_prefix(0, tokens)
        for start in range(reused, len(tokens), self._loaded.decode_tokens):
            if is_cancelled():
                return reused, False
            part = tokens[start : start + self._loaded.decode_tokens]
            is_last = start + len(part) == len(tokens)
            piece = Piece(sequence=0, tokens=part, wants_logits=is_last)
            if not self.run((piece,), is_cancelled=is_cancelled):
                return reused, False
        return reused, True

    def advance(self, token: int) -> None:
        """Run one token of the first sequence."""
        self.run((Piece(sequence=0, tokens=(token,), wants_logits=True),))

    def run(
        self, pieces: Sequence[Piece], *, is_cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Run pieces of different sequences as one batch; False when it was cancelled midway.

        Then the memory holds what was run. Nothing of any sequence is kept after an error.
        """
        batch = self._batch.filled(
            [(piece, len(self._sequences[piece.sequence])) for piece in pieces]
        )
        if is_cancelled is None:
            return self._ran(batch, pieces)
        with _AbortOn(self, is_cancelled):
            return self._ran(batch, pieces)

    def evaluate(self, tokens: list[int]) -> numpy.typing.NDArray[numpy.float32]:
        """Return the logits after each token of a fresh sequence, one row for each."""
        self.clear()
        rows = []
        for start in range(0, len(tokens), self._loaded.decode_tokens):
            part = tokens[start : start + self._loaded.decode_tokens]
            piece = Piece(sequence=0, tokens=part, wants_logits=True)
            self._run(self._batch.filled([(piece, start)], wants_all=True))
            self._sequences[0] += part
            rows.append(self._rows(len(part)))
        return numpy.concatenate(rows)

    def logits(self, row: int) -> numpy.typing.NDArray[numpy.float32]:
        """Return the logits of a row of the batch that was run last, until the next one."""
        pointer = self._llama.llama_get_logits_ith(self._loaded.context, row)
        if not pointer:
            raise EngineRefused("The engine computed no logits.")
        return numpy.ctypeslib.as_array(pointer, shape=(self._loaded.vocabulary_size,))

    def shift(self, sequence: int, *, keep_tokens: int, drop_tokens: int) -> None:
        """Forget `drop_tokens` behind the first `keep_tokens`, and move the rest down.

        What moves keeps what it saw when it was computed, and is turned to its new positions.
        """
        held = self._sequences[sequence]
        end = keep_tokens + drop_tokens
        self._llama.llama_memory_seq_rm(self._memory, sequence, keep_tokens, end)
        self._llama.llama_memory_seq_add(self._memory, sequence, end, len(held), -drop_tokens)
        del held[keep_tokens:end]

    def _ran(self, batch: Any, pieces: Sequence[Piece]) -> bool:
        """Run a batch and take note of what the memory holds then."""
        is_done = self._run(batch)
        for piece in pieces:
            held = self._sequences[piece.sequence]
            held += piece.tokens
            if not is_done:
                del held[self._engine_length(piece.sequence) :]
        return is_done

    def _rows(self, count: int) -> numpy.typing.NDArray[numpy.float32]:
        pointer = self._llama.llama_get_logits(self._loaded.context)
        if not pointer:
            raise EngineRefused("The engine computed no logits.")
        rows = numpy.ctypeslib.as_array(pointer, shape=(count, self._loaded.vocabulary_size))
        return numpy.array(rows, dtype=numpy.float32, copy=True)

    def keep_prefix(self, sequence: int, tokens: Sequence[int]) -> int:
        """Drop what does not agree with `tokens`; return how many tokens stay.

        The last token never stays, since its logits are wanted.

        Beliefs: a recurrent state cannot go back (`seq_rm` says no), and a sliding window may have
        lost tokens that an earlier position needs — src/llama-memory-recurrent.cpp,
        tools/server/server-context.cpp @ 0.3.36 — checked by tests/engine/test_generate.py.
        """
        held = self._sequences[sequence]
        keep = min(agreement(held, tokens), max(0, len(tokens) - 1))
        if keep == len(held):
            return keep
        window = self._llama.llama_model_n_swa(self._loaded.model)
        first = self._llama.llama_memory_seq_pos_min(self._memory, sequence)
        is_window_whole = window == 0 or first <= max(0, keep - window)
        if (
            keep > 0
            and is_window_whole
            and self._llama.llama_memory_seq_rm(self._memory, sequence, keep, -1)
        ):
            del held[keep:]
            return keep
        self.forget(sequence)
        return 0

    def _engine_length(self, sequence: int) -> int:
        """Return how far the engine came, as after an abort."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def _run(self, batch: Any) -> bool:
        """Decode a batch; False when it was aborted.

        Whatever a supplier of experts raises leaves here, and nothing of the sequence is kept.
        """
        mark = self._loaded.log.mark()
        hook, supplier = self._loaded.hook, self._loaded.supplier
        if hook is not None:
            hook.begin(batch.n_tokens)
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


def agreement(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their head."""
    shared = min(len(held), len(wanted))
    if held[:shared] == wanted[:shared]:  # at the speed of C, where both are of one kind
        return shared
    return next((i for i in range(shared) if held[i] != wanted[i]), shared)


class _Batch:
    """The arrays of `llama_batch` — include/llama.h:236 @ 0.3.36 — made once."""

    def __init__(self, llama: Any, size: int) -> None:
        self._tokens = (llama.llama_token * size)()
        self._positions = (llama.llama_pos * size)()
        self._counts = (ctypes.c_int32 * size)(*([1] * size))
        self._numbers = (llama.llama_seq_id * size)()
        pointer = ctypes.POINTER(llama.llama_seq_id)
        step = ctypes.sizeof(llama.llama_seq_id)
        base = ctypes.addressof(self._numbers)
        self._lists = (pointer * size)(
            *(ctypes.cast(base + row * step, pointer) for row in range(size))
        )
        self._outputs = (ctypes.c_int8 * size)()
        self._batch = llama.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._lists,
            logits=self._outputs,
        )

    def filled(self, pieces: Sequence[tuple[Piece, int]], *, wants_all: bool = False) -> Any:
        """Return the batch with pieces that begin at positions."""
        row = 0
        for piece, position in pieces:
            for token in piece.tokens:
                self._tokens[row] = token
                self._positions[row] = position
                self._numbers[row] = piece.sequence
                self._outputs[row] = wants_all
                position, row = position + 1, row + 1
            self._outputs[row - 1] = piece.wants_logits
        self._batch.n_tokens = row
        return self._batch


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
