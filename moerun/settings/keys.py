"""Every key that can be set: its name in YAML, its variable, its flag, how it is read and shown.

Knows: the whole list; the default file, `moerun config` and the layers all follow it.
Does not know: which layer set what.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from moerun.planning.strategy import (
    MINIMUM_CONTEXT_TOKENS,
    AllocationPolicy,
    ExpertResidency,
    Limit,
    LoadMode,
    Pin,
    StreamingMode,
    Toggle,
)
from moerun.settings import values
from moerun.settings.description import Settings
from moerun.settings.nodes import Node, Text
from moerun.units import GIB, KIB, MIB, TIB

STRATEGY_SECTION: Final = "memory_strategy"
PINS_SECTION: Final = f"{STRATEGY_SECTION}.pins"
SECTIONS: Final = (STRATEGY_SECTION, PINS_SECTION)
_VARIABLE_PREFIX: Final = "MOERUN_"
_LARGEST_CONTEXT_TOKENS: Final = 1 << 27
_LARGEST_BATCH_TOKENS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. `name` is its path in YAML; `short` names it in variables and for `--get`.

    `parse` gives the fields of `Strategy` (or of `Settings` when `is_of_settings`) that it sets;
    `show` gives what a file would hold. A project file may not set a `is_personal` key, nor a
    path (`is_path`) outside its folder.
    """

    name: str
    short: str
    flag: str
    parse: Callable[[Node], Mapping[str, Any]]
    show: Callable[[Settings], Any]
    is_of_settings: bool = False
    is_path: bool = False
    is_personal: bool = False

    @property
    def variable(self) -> str:
        """Return the name of its environment variable."""
        return _VARIABLE_PREFIX + self.short.upper()

    def apply(self, settings: Settings, fields: Mapping[str, Any]) -> Settings:
        """Return the settings with what `parse` gave."""
        if self.is_of_settings:
            return replace(settings, **fields)
        return replace(settings, strategy=replace(settings.strategy, **fields))


def find_key(name: str) -> Key | None:
    """Return the key of that path or short name, None when there is none."""
    for key in KEYS:
        if name in (key.name, key.short):
            return key
    return None


def closest_name(name: str, candidates: tuple[str, ...]) -> str | None:
    """Return the candidate most like a mistyped name, None when none is near."""
    matches = get_close_matches(name.lower(), candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


def write_bytes(size_bytes: int) -> str:
    """Return a size so that reading it gives the same bytes: `8G`, `1536M`, `1000b`."""
    for unit_bytes, suffix in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{suffix}"
    return f"{size_bytes}b"


def write_limit(limit: Limit) -> str:
    """Return a limit so that reading it gives the same."""
    if limit.limit_bytes is not None:
        return write_bytes(limit.limit_bytes)
    return _write_share(limit.of_total_fraction or 0.0)


def _write_share(fraction: float) -> str:
    return f"{fraction * 100:.12g}%"


def _write(value: object) -> Any:
    """Return a field's value as a file would hold it; None is `auto`."""
    match value:
        case None:
            return values.AUTO
        case bool() | int():
            return value
        case StrEnum():
            return value.value
        case str():
            return value
        case Limit():
            return write_limit(value)
        case ExpertResidency():
            shares = {"vram": value.vram_fraction, "ram": value.ram_fraction}
            return {
                name: _write_share(share) for name, share in shares.items() if share is not None
            }
        case tuple():
            return [_write(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no written form")


def _strategy_key(
    section: str,
    name: str,
    flag: str,
    parse: Callable[[Node], Any],
    *,
    field: str | None = None,
    show: Callable[[Any], Any] = _write,
    is_path: bool = False,
) -> Key:
    """Return a key that sets one field of the strategy, of its own name unless `field` is given."""
    target = field or name
    return Key(
        name=f"{section}.{name}" if section else name,
        short=name,
        flag=flag,
        parse=lambda node: {target: parse(node)},
        show=lambda settings: show(getattr(settings.strategy, target)),
        is_path=is_path,
    )


def _parse_context(node: Node) -> Mapping[str, Any]:
    word = node.text.strip().lower() if isinstance(node, Text) else ""
    if word in (values.AUTO, "max"):
        return {"context_tokens": None, "context_is_largest": word == "max"}
    tokens = values.tokens_of(MINIMUM_CONTEXT_TOKENS, _LARGEST_CONTEXT_TOKENS)(node)
    return {"context_tokens": tokens, "context_is_largest": False}


def _show_context(settings: Settings) -> Any:
    return (
        "max" if settings.strategy.context_is_largest else _write(settings.strategy.context_tokens)
    )


def _show_limits(limits: tuple[Limit, ...] | None) -> Any:
    written = _write(limits)
    return written[0] if isinstance(written, list) and len(written) == 1 else written


def _show_pins(pins: tuple[Pin, ...]) -> dict[str, str]:
    return {pin.pattern: pin.device for pin in pins}


_AUTO_SIZE: Final = values.auto_or(values.size_of)
_AUTO_LIMIT: Final = values.auto_or(values.limit_of)

KEYS: Final[tuple[Key, ...]] = (
    _strategy_key(STRATEGY_SECTION, "hierarchy", "--hierarchy", values.hierarchy_of),
    _strategy_key(
        STRATEGY_SECTION, "allocation_policy", "--policy", values.choice_of(AllocationPolicy)
    ),
    _strategy_key(
        STRATEGY_SECTION,
        "vram_limit",
        "--vram",
        values.auto_or(values.limits_of),
        show=_show_limits,
    ),
    _strategy_key(STRATEGY_SECTION, "ram_limit", "--ram", _AUTO_LIMIT),
    _strategy_key(
        STRATEGY_SECTION,
        "expert_residency",
        "--expert-residency",
        values.auto_or(values.residency_of),
    ),
    _strategy_key(
        STRATEGY_SECTION,
        "ssd_cache_path",
        "--ssd-cache",
        values.auto_or(values.path_of),
        is_path=True,
    ),
    _strategy_key(STRATEGY_SECTION, "max_swap_size", "--max-swap", _AUTO_LIMIT),
    _strategy_key(
        STRATEGY_SECTION,
        "preload_experts",
        "--preload",
        values.auto_or(values.count_of(0, 1_000_000)),
    ),
    _strategy_key(STRATEGY_SECTION, "streaming", "--streaming", values.choice_of(StreamingMode)),
    _strategy_key(
        STRATEGY_SECTION,
        "expert_slots",
        "--expert-slots",
        values.auto_or(values.count_of(0, 1_000_000)),
    ),
    Key(
        name=f"{PINS_SECTION}.patterns",
        short="pins",
        flag="--pin",
        parse=lambda node: {"pins": values.pins_of(node)},
        show=lambda settings: _show_pins(settings.strategy.pins),
    ),
    _strategy_key(
        PINS_SECTION,
        "cpu_expert_layers",
        "--cpu-expert-layers",
        values.auto_or(values.count_of(0, 10_000)),
    ),
    Key(
        name="context",
        short="context",
        flag="--ctx",
        parse=_parse_context,
        show=_show_context,
    ),
    _strategy_key(
        "",
        "kv_type_k",
        "--kv-type-k",
        values.encoding_of,
        field="kv_encoding_k",
        show=str.lower,
    ),
    _strategy_key(
        "",
        "kv_type_v",
        "--kv-type-v",
        values.encoding_of,
        field="kv_encoding_v",
        show=str.lower,
    ),
    _strategy_key(
        "", "batch", "--batch", values.count_of(1, _LARGEST_BATCH_TOKENS), field="batch_tokens"
    ),
    _strategy_key(
        "", "ubatch", "--ubatch", values.count_of(1, _LARGEST_BATCH_TOKENS), field="ubatch_tokens"
    ),
    _strategy_key("", "flash_attention", "--flash-attention", values.choice_of(Toggle)),
    _strategy_key("", "extra_buffers", "--extra-buffers", values.choice_of(Toggle)),
    _strategy_key("", "load_mode", "--load-mode", values.auto_or(values.choice_of(LoadMode))),
    _strategy_key("", "split_layers", "--split-layers", values.switch_of),
    _strategy_key("", "threads", "--threads", values.auto_or(values.count_of(1, 1024))),
    _strategy_key("", "gpu_margin", "--gpu-margin", _AUTO_SIZE, field="gpu_margin_bytes"),
    _strategy_key("", "host_margin", "--host-margin", _AUTO_SIZE, field="host_margin_bytes"),
    Key(
        name="workers",
        short="workers",
        flag="--workers",
        parse=lambda node: {"workers": values.workers_of(node)},
        show=lambda settings: list(settings.workers),
        is_of_settings=True,
        is_personal=True,
    ),
)
