"""Several answers made at once: who has which sequence, and what the next batch holds.

Each step runs one batch: the newest token of every answer, and as much of the prompts as is left
room for. An answer takes the idle sequence whose tokens agree longest with its prompt. All
sequences share the cells of one context. When they run out, idle sequences are forgotten first;
then the answer that began last waits, without its cells, until another has ended; an answer that
is alone forgets the older half of its context where it may, and ends otherwise.

Knows: sequences, cells, turns.
Does not know: text, sampling, or who asked.
"""

import time
from collections import deque
from typing import Final

from moerun.engine.answers import NOWHERE, Answer
from moerun.engine.decode import Decoder, Piece, agreement
from moerun.engine.interface import Overflow, StopReason
from moerun.engine.load import LoadedModel

# How much of a prompt goes with the tokens of other answers, which wait for it.
_PROMPT_TOKENS_BESIDE: Final = 256


class Sharing:
    """The answers of one loaded model, in its sequences."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder) -> None:
        self._loaded = loaded
        self._decoder = decoder
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []
        self._used_s = [0.0] * loaded.sequences

    @property
    def is_busy(self) -> bool:
        """Whether any answer is not ended."""
        return bool(self._waiting or self._active)

    def begin(self, answer: Answer) -> None:
        """Take an answer in; it has its turn as soon as a sequence is free."""
        self._waiting.append(answer)

    def step(self) -> None:
        """Run one batch; whatever fails is told to those whose answer it was."""
        try:
            self._drop_cancelled()
            self._admit()
            self._make_room()
            if self._active:
                self._run()
        except Exception as error:
            self._abandon(error)
        except BaseException:
            self._forget_all()
            raise

    def _drop_cancelled(self) -> None:
        for answer in [*self._active, *self._waiting]:
            try:
                if answer.receiver.is_cancelled():
                    self._end(answer, StopReason.CANCELLED)
            except Exception as error:
                self._release(answer)
                answer.fail(error)

    def _admit(self) -> None:
        """Give free sequences to those who wait, in their order, while their tokens find cells."""
        while self._waiting and len(self._active) < self._loaded.sequences:
            answer = self._waiting[0]
            busy = sum(len(a.tokens) for a in self._active)
            if self._active and busy + len(answer.tokens) >= self._loaded.context_tokens:
                return
            self._waiting.popleft()
            self._place(answer)

    def _place(self, answer: Answer) -> None:
        """Put an answer into the idle sequence that agrees longest; of equals the oldest."""
        taken = {active.sequence for active in self._active}
        idle = [number for number in range(self._loaded.sequences) if number not in taken]
        answer.sequence = max(
            idle,
            key=lambda n: (
                agreement(self._decoder.held(n), answer.tokens),
                not self._decoder.held(n),
                -self._used_s[n],
                -n,
            ),
        )
        reused = self._decoder.keep_prefix(answer.sequence, answer.tokens)
        if answer.prompt_from_s is None:
            answer.prompt_from_s = time.monotonic()
            answer.reused_tokens = reused
        self._active.append(answer)

    def _make_room(self) -> None:
        """Make sure that the next batch finds its cells."""
        while self._active:
            wanted = sum(len(self._pending(a)) for a in self._active)
            if self._held_tokens() + min(wanted, self._decoder.decode_tokens) <= self._cells:
                return
            taken = {active.sequence for active in self._active}
            idle = [
                n
                for n in range(self._loaded.sequences)
                if n not in taken and len(self._decoder.held(n))
            ]
            if idle:
                self._decoder.forget(min(idle, key=lambda n: self._used_s[n]))
            elif len(self._active) > 1:
                self._send_back(self._active[-1])
            elif not self._shift(self._active[0]):
                self._end(self._active[0], StopReason.LENGTH)

    def _shift(self, answer: Answer) -> bool:
        """Forget the older half of an answer's context; False where that cannot be."""
        if answer.plan.overflow is not Overflow.SHIFT or not self._decoder.can_shift:
            return False
        held = len(self._decoder.held(answer.sequence))
        keep = min(answer.plan.keep_tokens, held - 2)
        drop = (held - keep) // 2
        if drop < 1:
            return False
        self._decoder.shift(answer.sequence, keep_tokens=keep, drop_tokens=drop)
        del answer.tokens[keep : keep + drop]
        answer.shifted_tokens += drop
        return True

    def _send_back(self, answer: Answer) -> None:
        """Let an answer wait for cells; what it has written is run again when it goes on."""
        self._active.remove(answer)
        self._decoder.forget(answer.sequence)
        answer.sequence = NOWHERE
        self._waiting.appendleft(answer)

    def _run(self) -> None:
        """Run the next batch, and let every answer that came to its last token write one."""
        pieces = self._pieces()
        is_prompt = any(len(piece.tokens) > 1 for piece, _ in pieces)
        lone = pieces[0][1] if len(pieces) == 1 and len(self._active) == 1 else None
        is_done = self._decoder.run(
            [piece for piece, _ in pieces],
            # Asked at every node of the graph, so for a lone prompt only.
            is_cancelled=lone.receiver.is_cancelled if lone is not None and is_prompt else None,
        )
        if not is_done and lone is not None:
            self._end(lone, StopReason.CANCELLED)
            return
        row = -1
        for piece, answer in pieces:
            row += len(piece.tokens)
            if piece.wants_logits:
                self._write(answer, row)

    def _write(self, answer: Answer, row: int) -> None:
        try:
            answer.write_next(self._loaded.context, row, self._decoder.logits)
        except Exception as error:
            self._release(answer)
            answer.fail(error)
            return
        if answer.stop_reason is not None:
            self._end(answer, answer.stop_reason)

    def _pieces(self) -> list[tuple[Piece, Answer]]:
        """Return what the next batch runs: all single tokens, then prompts as far as it reaches."""
        pending = [(self._pending(answer), answer) for answer in self._active]
        single = [(tokens, answer) for tokens, answer in pending if len(tokens) == 1]
        longer = [(tokens, answer) for tokens, answer in pending if len(tokens) > 1]
        room = self._decoder.decode_tokens - len(single)
        if single:
            room = min(room, _PROMPT_TOKENS_BESIDE)
        pieces = [
            (Piece(sequence=a.sequence, tokens=tokens, wants_logits=True), a)
            for tokens, a in single[: self._decoder.decode_tokens]
        ]
        for tokens, answer in longer:
            part = tokens[: max(0, room)]
            if part:
                is_last = len(part) == len(tokens)
                piece = Piece(sequence=answer.sequence, tokens=part, wants_logits=is_last)
                pieces.append((piece, answer))
                room -= len(part)
        return pieces

    def _pending(self, answer: Answer) -> list[int]:
        return answer.tokens[len(self._decoder.held(answer.sequence)) :]

    @property
    def _cells(self) -> int:
        return self._loaded.context_tokens

    def _held_tokens(self) -> int:
        return sum(len(self._decoder.held(n)) for n in range(self._loaded.sequences))

    def _end(self, answer: Answer, reason: StopReason) -> None:
        self._release(answer)
        try:
            answer.finish(reason)
        except Exception as error:
            answer.fail(error)

    def _release(self, answer: Answer) -> None:
        """Take an answer out; its tokens stay, for whoever begins like it."""
        if answer in self._active:
            self._active.remove(answer)
            self._used_s[answer.sequence] = time.monotonic()
        if answer in self._waiting:
            self._waiting.remove(answer)

    def _abandon(self, error: Exception) -> None:
        """Tell everybody whose answer was in the memory, which may hold anything now."""
        active, self._active = self._active, []
        for answer in active:
            answer.fail(error)

    def _forget_all(self) -> None:
        for answer in (*self._active, *self._waiting):
            answer.chain.free()
        self._active.clear()
        self._waiting.clear()
