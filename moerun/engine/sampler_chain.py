"""The engine's samplers as one chain, with or without a grammar.

Knows: the order of the samplers, and how a choice is held to a grammar.
Does not know: where the settings come from, or when a grammar counts.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy
import numpy.typing

from moerun.engine.sampling import SamplingChoice
from moerun.errors import EngineRefused, UsageError

# llama_token_data — include/llama.h @ 0.3.36
_CANDIDATE: Final = numpy.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
# How many candidates mirostat 1 estimates from — common/sampling.cpp @ 0.3.36
_MIROSTAT_M: Final = 100


class SamplerChain:
    """The engine's samplers in llama.cpp's own order: bias, penalties, the cuts, temperature.

    With a grammar the choice is checked against it, and made again among what it allows when it
    does not agree, as llama.cpp's own tools do: checking a whole vocabulary each time is slow.
    """

    def __init__(
        self,
        llama: Any,
        choice: SamplingChoice,
        *,
        vocabulary_size: int,
        context_tokens: int,
        grammar: Any = None,
    ) -> None:
        """Build the chain; `grammar` is a sampler of the engine, which is freed with it."""
        self._llama = llama
        self._vocabulary_size = vocabulary_size
        self._grammar = grammar
        self._candidates = numpy.zeros(0, dtype=_CANDIDATE)
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if not self._chain:
            raise EngineRefused("The engine could not make a sampler chain.")
        self._has_penalties = choice.has_penalties
        if choice.logit_bias:
            self._add_bias(choice.logit_bias)
        if choice.has_penalties:
            last = choice.repeat_last_tokens
            self._add(
                llama.llama_sampler_init_penalties(
                    vocabulary_size,
                    context_tokens if last < 0 else last,
                    choice.repeat_penalty,
                    choice.frequency_penalty,
                    choice.presence_penalty,
                )
            )
        self._add_choosers(choice)

    def _add_choosers(self, choice: SamplingChoice) -> None:
        llama = self._llama
        if choice.temperature == 0:
            self._add(llama.llama_sampler_init_greedy())
            return
        if choice.mirostat:
            self._add(llama.llama_sampler_init_temp(choice.temperature))
            tau, eta = choice.mirostat_tau, choice.mirostat_eta
            if choice.mirostat == 1:
                size = self._vocabulary_size
                self._add(
                    llama.llama_sampler_init_mirostat(size, choice.seed, tau, eta, _MIROSTAT_M)
                )
            else:
                self._add(llama.llama_sampler_init_mirostat_v2(choice.seed, tau, eta))
            return
        self._add(llama.llama_sampler_init_top_k(choice.top_k))
        if choice.typical_p != 1.0:
            self._add(llama.llama_sampler_init_typical(choice.typical_p, 0))
        self._add(llama.llama_sampler_init_top_p(choice.top_p, 0))
        self._add(llama.llama_sampler_init_min_p(choice.min_p, 0))
        self._add(llama.llama_sampler_init_temp(choice.temperature))
        self._add(llama.llama_sampler_init_dist(choice.seed))

    def remember(self, tokens: Sequence[int]) -> None:
        """Let the penalties know of the prompt, as llama.cpp's own tools do."""
        if self._has_penalties:
            for token in tokens:
                self._llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any, row: int = -1) -> int:
        """Return the next token after a row of the last batch, and remember it."""
        return int(self._llama.llama_sampler_sample(self._chain, context, row))

    def sample_bound(
        self,
        logits: numpy.typing.NDArray[numpy.float32],
        *,
        is_free: Callable[[int], bool] = lambda token: False,
    ) -> tuple[int, bool]:
        """Return the next token that the grammar allows, and whether the grammar counted it.

        A token that `is_free` passes by the grammar. EngineRefused when no token of the
        vocabulary can go on, which the engine itself would meet with an abort.
        """
        self._fill(logits)
        token = self._choose()
        if is_free(token):
            self._llama.llama_sampler_accept(self._chain, token)
            return token, False
        if not self._allows(token):
            self._fill(logits)
            self._apply(self._grammar, self._candidates)
            if not numpy.isfinite(self._candidates["logit"]).any():
                raise EngineRefused("No token of this model's vocabulary goes on in the format.")
            token = self._choose()
            if not self._allows(token):
                raise EngineRefused("The chosen samplers leave no token that the format allows.")
        self._llama.llama_sampler_accept(self._grammar, token)
        self._llama.llama_sampler_accept(self._chain, token)
        return token, True

    def free(self) -> None:
        """Give the samplers back; a second call does nothing."""
        for name in ("_chain", "_grammar"):
            sampler = getattr(self, name)
            if sampler:
                self._llama.llama_sampler_free(sampler)
                setattr(self, name, None)

    def _fill(self, logits: numpy.typing.NDArray[numpy.float32]) -> None:
        if not len(self._candidates):
            self._candidates = numpy.zeros(self._vocabulary_size, dtype=_CANDIDATE)
        self._candidates["id"] = numpy.arange(self._vocabulary_size, dtype=numpy.int32)
        self._candidates["logit"] = logits
        self._candidates["p"] = 0.0

    def _choose(self) -> int:
        return int(self._candidates["id"][self._apply(self._chain, self._candidates)])

    def _apply(self, sampler: Any, candidates: numpy.typing.NDArray[numpy.void]) -> int:
        pointer = ctypes.POINTER(self._llama.llama_token_data)
        array = self._llama.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, pointer),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        self._llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.selected)

    def _allows(self, token: int) -> bool:
        single = numpy.array([(token, 1.0, 0.0)], dtype=_CANDIDATE)
        self._apply(self._grammar, single)
        return bool(numpy.isfinite(single["logit"][0]))

    def _add_bias(self, biases: tuple[tuple[int, float], ...]) -> None:
        if (largest := max(token for token, _ in biases)) >= self._vocabulary_size:
            self.free()
            raise UsageError(
                f"A logit_bias names token {largest}, and the model has {self._vocabulary_size:,}."
            )
        array = (self._llama.llama_logit_bias * len(biases))(*biases)
        self._add(
            self._llama.llama_sampler_init_logit_bias(self._vocabulary_size, len(biases), array)
        )

    def _add(self, sampler: Any) -> None:
        # A NULL sampler in a chain is a crash at the first token.
        if not sampler:
            self.free()
            raise EngineRefused("The engine could not make a sampler.")
        self._llama.llama_sampler_chain_add(self._chain, sampler)
