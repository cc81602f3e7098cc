"""How the next token is chosen: the request, the model's defaults, and llama.cpp's.

Knows: the order of precedence, and sound ranges.
Does not know: samplers, which tokens come, or where the settings were written.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moerun.engine.interface import Sampling
from moerun.errors import UsageError

# The header keys that carry a model's own defaults — src/llama-arch.cpp:172 @ 0.3.36 — checked by
# tests/engine/test_generate.py.
MODEL_KEYS: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "repeat_last_tokens": "general.sampling.penalty_last_n",
    "mirostat": "general.sampling.mirostat",
    "mirostat_tau": "general.sampling.mirostat_tau",
    "mirostat_eta": "general.sampling.mirostat_eta",
}
# `common_params_sampling` — common/common.h:226 @ 0.3.36
ENGINE_DEFAULTS: Final[Mapping[str, float]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_tokens": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
}
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "repeat_last_tokens": (-1, 2**31 - 1),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
}
# What OpenAI's interface allows; at its ends a token is never or always chosen.
_MOST_BIAS: Final = 100.0
# LLAMA_DEFAULT_SEED means "draw one" to the engine, so it is not a seed — include/llama.h @ 0.3.36
_RESERVED_SEED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """Settings with nothing left open. `temperature` 0 is greedy; `repeat_penalty` 1 is none."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_tokens: int
    presence_penalty: float
    frequency_penalty: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int

    @property
    def has_penalties(self) -> bool:
        """Whether repetition changes anything."""
        return self.repeat_last_tokens != 0 and (
            self.repeat_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


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
        typical_p=values["typical_p"],
        repeat_penalty=values["repeat_penalty"],
        repeat_last_tokens=int(values["repeat_last_tokens"]),
        presence_penalty=values["presence_penalty"],
        frequency_penalty=values["frequency_penalty"],
        mirostat=int(values["mirostat"]),
        mirostat_tau=values["mirostat_tau"],
        mirostat_eta=values["mirostat_eta"],
        logit_bias=_sound_bias(sampling.logit_bias),
        seed=seed,
    )


def _sound_bias(biases: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    for token, bias in biases:
        if token < 0 or not abs(bias) <= _MOST_BIAS:
            raise UsageError(
                f"A logit_bias must be of a token's number and between -{_MOST_BIAS:g} and "
                f"{_MOST_BIAS:g}, not {token}: {bias:g}."
            )
    return tuple(
        (token, -math.inf if bias == -_MOST_BIAS else float(bias)) for token, bias in biases
    )
