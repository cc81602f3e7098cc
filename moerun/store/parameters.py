"""The parameters that a model may carry: their names, what values they take, what each sets.

Names are ollama's; beside them stand moerun's own settings of memory and placement, under the names
that MOERUN_* variables have (`ram_limit`, `expert_residency`, `cpu_expert_layers`, ...).

Knows: the list, and how a value is written in a Modelfile and in a manifest.
Does not know: how a setting of memory is read (moerun.settings does), or how tokens are chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from moerun.errors import UsageError


class Target(StrEnum):
    """What a parameter sets: the choice of tokens, an answer, or a setting; or nothing here."""

    SAMPLING = "sampling"
    ANSWER = "answer"
    SETTING = "setting"
    NOTHING = "nothing"


class Kind(StrEnum):
    """What values a parameter takes."""

    COUNT = "a whole number"
    NUMBER = "a number"
    SWITCH = "true or false"
    TEXT = "a text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter; `sets` is the name of what it sets there. `why` is of one without effect."""

    kind: Kind
    target: Target
    sets: str
    lowest: float | None = None
    highest: float | None = None
    why: str = ""


def _sampling(sets: str, kind: Kind, lowest: float, highest: float | None = None) -> Parameter:
    return Parameter(kind=kind, target=Target.SAMPLING, sets=sets, lowest=lowest, highest=highest)


def _setting(sets: str, kind: Kind = Kind.TEXT) -> Parameter:
    return Parameter(kind=kind, target=Target.SETTING, sets=sets)


def _nothing(why: str, kind: Kind = Kind.TEXT) -> Parameter:
    return Parameter(kind=kind, target=Target.NOTHING, sets="", why=why)


_PLACED: Final = "moerun places layers and experts by its own plan"
_GONE: Final = "llama.cpp has no such choice any more"

PARAMETERS: Final[Mapping[str, Parameter]] = {
    "temperature": _sampling("temperature", Kind.NUMBER, 0.0),
    "top_k": _sampling("top_k", Kind.COUNT, 0),
    "top_p": _sampling("top_p", Kind.NUMBER, 0.0, 1.0),
    "min_p": _sampling("min_p", Kind.NUMBER, 0.0, 1.0),
    "typical_p": _sampling("typical_p", Kind.NUMBER, 0.0, 1.0),
    "repeat_penalty": _sampling("repeat_penalty", Kind.NUMBER, 0.01),
    "repeat_last_n": _sampling("repeat_last_tokens", Kind.COUNT, -1),
    "presence_penalty": _sampling("presence_penalty", Kind.NUMBER, -2.0, 2.0),
    "frequency_penalty": _sampling("frequency_penalty", Kind.NUMBER, -2.0, 2.0),
    "mirostat": _sampling("mirostat", Kind.COUNT, 0, 2),
    "mirostat_tau": _sampling("mirostat_tau", Kind.NUMBER, 0.0),
    "mirostat_eta": _sampling("mirostat_eta", Kind.NUMBER, 0.0),
    "seed": _sampling("seed", Kind.COUNT, 0, 2**32 - 2),
    "num_predict": Parameter(
        kind=Kind.COUNT, target=Target.ANSWER, sets="maximum_tokens", lowest=-2
    ),
    "num_keep": Parameter(kind=Kind.COUNT, target=Target.ANSWER, sets="keep_tokens", lowest=-1),
    "stop": Parameter(kind=Kind.TEXT, target=Target.ANSWER, sets="stop"),
    "num_ctx": _setting("context"),
    "num_batch": _setting("batch"),
    "num_thread": _setting("threads"),
    "moe_cpu_layers": _setting("cpu_expert_layers"),
    **{
        name: _setting(name)
        for name in (
            "hierarchy", "allocation_policy", "vram_limit", "ram_limit", "expert_residency",
            "max_swap_size", "preload_experts", "expert_slots", "streaming", "pins",
            "cpu_expert_layers", "context", "kv_type_k", "kv_type_v", "batch", "ubatch",
            "flash_attention", "extra_buffers", "load_mode", "split_layers", "threads",
            "gpu_margin", "host_margin",
        )
    },
    "num_gpu": _nothing(_PLACED, Kind.COUNT),
    "main_gpu": _nothing(_PLACED, Kind.COUNT),
    "low_vram": _nothing(_PLACED, Kind.SWITCH),
    "use_mmap": _nothing("load_mode says how weights reach RAM", Kind.SWITCH),
    "use_mlock": _nothing("load_mode says how weights reach RAM", Kind.SWITCH),
    "numa": _nothing(_PLACED, Kind.SWITCH),
    "f16_kv": _nothing("kv_type_k and kv_type_v say it", Kind.SWITCH),
    "penalize_newline": _nothing(_GONE, Kind.SWITCH),
    "tfs_z": _nothing(_GONE, Kind.NUMBER),
    "vocab_only": _nothing("moerun loads models to answer", Kind.SWITCH),
    "num_gqa": _nothing("the model's header says it", Kind.COUNT),
    "draft_num_predict": _nothing("moerun has no draft models", Kind.COUNT),
}  # fmt: skip
LISTED: Final = frozenset({"stop", "pins"})  # those that may be given several times


def read_parameter(name: str, text: str, *, where: str) -> Any:
    """Return the value of a parameter as a manifest holds it; UsageError for a wrong one."""
    parameter = PARAMETERS.get(name)
    if parameter is None:
        close = get_close_matches(name, PARAMETERS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(PARAMETERS)}"
        raise UsageError(f"{where}: there is no parameter '{name[:80]}'", hint=hint)
    if parameter.target is Target.NOTHING:
        raise UsageError(
            f"{where}: {name} would have no effect: {parameter.why}", hint="remove the line"
        )
    value = _value(parameter.kind, text)
    if value is None or (isinstance(value, int | float) and not _is_within(value, parameter)):
        raise UsageError(f"{where}: {name} takes {_said(parameter)}, not '{text[:80]}'")
    return value


def usable(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what of a manifest's parameters has an effect, and one note for each that has none.

    A manifest comes from anywhere: what is wrong in it is left out, and said.
    """
    kept: dict[str, Any] = {}
    notes = []
    for name, value in parameters.items():
        parameter = PARAMETERS.get(name)
        if parameter is None:
            notes.append(f"the model's parameter {name[:80]} is not known here")
        elif parameter.target is Target.NOTHING:
            notes.append(f"the model's parameter {name} has no effect: {parameter.why}")
        elif (sound := _sound(parameter, value, is_listed=name in LISTED)) is None:
            notes.append(f"the model's parameter {name} takes {_said(parameter)}, and was left out")
        else:
            kept[name] = sound
    return kept, tuple(notes)


def _sound(parameter: Parameter, value: Any, *, is_listed: bool) -> Any:
    """Return a value of a manifest, None when it is of another kind or out of bounds."""
    if is_listed:
        items = value if isinstance(value, list) else [value]
        return items if items and all(isinstance(item, str) and item for item in items) else None
    if isinstance(value, list | dict) or value is None:
        return None
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    read = _value(parameter.kind, text)
    if isinstance(read, int | float) and not _is_within(read, parameter):
        return None
    return read


def _value(kind: Kind, text: str) -> Any:
    text = text.strip()
    match kind:
        case Kind.TEXT:
            return text or None
        case Kind.SWITCH:
            return {"true": True, "false": False}.get(text.lower())
        case Kind.COUNT:
            try:
                return int(text)
            except ValueError:
                whole = _number(text)  # a manifest may say 40.0
                return int(whole) if whole is not None and whole == int(whole) else None
        case Kind.NUMBER:
            return _number(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # neither infinity nor what is no number


def _is_within(value: float, parameter: Parameter) -> bool:
    if parameter.lowest is not None and value < parameter.lowest:
        return False
    return parameter.highest is None or value <= parameter.highest


def _said(parameter: Parameter) -> str:
    if parameter.lowest is None:
        return parameter.kind.value
    if parameter.highest is None:
        return f"{parameter.kind} of at least {parameter.lowest:g}"
    return f"{parameter.kind} between {parameter.lowest:g} and {parameter.highest:g}"
