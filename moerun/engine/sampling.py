"""How the next token is chosen: the request, the model's defaults, and llama.cpp's.

Knows: the order of precedence, sound ranges, and the order of the sampler chain.
Does not know: which tokens come, or where the settings were written.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moerun.engine.interface import Sampling
from moerun.errors import EngineRefused, UsageError

# The header keys that carry a model's own defaults — src/llama-arch.cpp:172 @ 0.3.36 — checked by
# tests/engine/test_generate.py.
MODEL_KEYS: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "repeat_last_tokens": "general.sampling.penalty_last_n",
}
# `common_params_sampling` — common/common.h:226 @ 0.3.36
ENGINE_DEFAULTS: Final[Mapping[str, float]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "repeat_last_tokens": 64,
}
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "repeat_last_tokens": (0, 2**31 - 1),
}
# LLAMA_DEFAULT_SEED means "draw one" to the engine, so it is not a seed — include/llama.h @ 0.3.36
_RESERVED_SEED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """Settings with nothing left open. `temperature` 0 is greedy; `repeat_penalty` 1 is none."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_tokens: int
    seed: int

    @property
    def has_penalties(self) -> bool:
        """Whether repetition changes anything."""
        return self.repeat_last_tokens > 0 and self.repeat_penalty != 1.0


def choose_sampling(sampling: Sampling, model_defaults: Mapping[str, float]) -> SamplingChoice:
    """Return the request's settings, completed; UsageError for one that makes no sense."""
    values: dict[str, float] = {}
    for name, (least, most) in _RANGES.items():
        asked = getattr(sampling, name)
        value = asked if asked is not None else model_defaults.get(name, ENGINE_DEFAULTS[name])
        if not math.isfinite(value) or not least <= value <= most:
            if asked is not None:
                raise UsageError(
                    f"{name} must be between {least:g} and {most:,.10g}, not {value:g}."
                )
            value = ENGINE_DEFAULTS[name]  # a model's header may say anything
        values[name] = value
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    if not 0 <= seed < _RESERVED_SEED:
        raise UsageError(f"A seed must be between 0 and {_RESERVED_SEED - 1}, not {seed}.")
    return SamplingChoice(
        temperature=values["temperature"],
        top_k=int(values["top_k"]),
        top_p=values["top_p"],
        min_p=values["min_p"],
        repeat_penalty=values["repeat_penalty"],
        repeat_last_tokens=int(values["repeat_last_tokens"]),
        seed=seed,
    )


class SamplerChain:
    """The engine's samplers in llama.cpp's own order: penalties, top-k, top-p, min-p, warmth."""

    def __init__(self, llama: Any, choice: SamplingChoice, *, vocabulary_size: int) -> None:
        self._llama = llama
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if not self._chain:
            raise EngineRefused("The engine could not make a sampler chain.")
        self._has_penalties = choice.has_penalties
        if choice.has_penalties:
            self._add(
                llama.llama_sampler_init_penalties(
                    vocabulary_size, choice.repeat_last_tokens, choice.repeat_penalty, 0.0, 0.0
                )
            )
        if choice.temperature == 0:
            self._add(llama.llama_sampler_init_greedy())
            return
        self._add(llama.llama_sampler_init_top_k(choice.top_k))
        self._add(llama.llama_sampler_init_top_p(choice.top_p, 0))
        self._add(llama.llama_sampler_init_min_p(choice.min_p, 0))
        self._add(llama.llama_sampler_init_temp(choice.temperature))
        self._add(llama.llama_sampler_init_dist(choice.seed))

    def remember(self, tokens: list[int]) -> None:
        """Let the penalties know of the prompt, as llama.cpp's own tools do."""
        if self._has_penalties:
            for token in tokens:
                self._llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any) -> int:
        """Return the next token after the last one decoded, and remember it."""
        return int(self._llama.llama_sampler_sample(self._chain, context, -1))

    def free(self) -> None:
        """Give the chain back; a second call does nothing."""
        if self._chain:
            self._llama.llama_sampler_free(self._chain)
            self._chain = None

    def _add(self, sampler: Any) -> None:
        # A NULL sampler in a chain is a crash at the first token.
        if not sampler:
            self.free()
            raise EngineRefused("The engine could not make a sampler.")
        self._llama.llama_sampler_chain_add(self._chain, sampler)
