"""The placement flags, once for every verb that plans: `plan`, `run` and those to come.

Each flag is a row below: its names, the setting it gives a value to, and its help. Values are
handed to the settings as they were typed, so that a flag, a variable and a file are read by the
same rules and refused in the same words.

Knows: the names of flags, and which setting each one sets.
Does not know: how values are read (moerun.settings does), or what a plan makes of them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementFlags:
    """What the command line asked for: settings by key, and files that stand for other sources."""

    settings: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    machine_file: str | None = None
    config_file: str | None = None

    def given(self, key: str) -> str | tuple[str, ...] | None:
        """Return what was typed for a setting, None when its flag was not given."""
        return dict(self.settings).get(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flag:
    """One flag. `keys` are the settings that take its value; none for files."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    metavar: str
    explanation: str
    is_repeatable: bool = False

    @property
    def parameter(self) -> str:
        """Return the name of its parameter in Python."""
        return self.names[0].removeprefix("--").replace("-", "_")


_FLAGS: Final[tuple[_Flag, ...]] = (
    _Flag(
        names=("--vram",),
        keys=("vram_limit",),
        metavar="SIZE[,SIZE]",
        explanation="Most to use of each GPU: 8G, 80%, or one per GPU: 8G,24G.",
    ),
    _Flag(
        names=("--ram",),
        keys=("ram_limit",),
        metavar="SIZE",
        explanation="Most host memory to use: 32G or 80%.",
    ),
    _Flag(
        names=("--ctx",),
        keys=("context",),
        metavar="TOKENS",
        explanation="Context: 16384, 32k, or max for the largest that fits.",
    ),
    _Flag(
        names=("--kv-type",),
        keys=("kv_type_k", "kv_type_v"),
        metavar="TYPE",
        explanation="Type of the KV cache: f16, q8_0, q4_0, ...",
    ),
    _Flag(
        names=("--kv-type-k",), keys=("kv_type_k",), metavar="TYPE", explanation="Type of its keys."
    ),
    _Flag(
        names=("--kv-type-v",),
        keys=("kv_type_v",),
        metavar="TYPE",
        explanation="Type of its values.",
    ),
    _Flag(
        names=("--policy",),
        keys=("allocation_policy",),
        metavar="NAME",
        explanation="adaptive, or conservative for larger margins.",
    ),
    _Flag(
        names=("--hierarchy",),
        keys=("hierarchy",),
        metavar="TIERS",
        explanation="Tiers to use, fastest first: vram,ram,ssd or vram,ram.",
    ),
    _Flag(
        names=("--expert-residency",),
        keys=("expert_residency",),
        metavar="SHARE",
        explanation="Share of experts wanted in VRAM: 60%, or {vram: 60%, ram: 40%}.",
    ),
    _Flag(
        names=("--pin",),
        keys=("pins",),
        metavar="GLOB=DEVICE",
        explanation="Tensors by name to gpu0, gpu1, cpu or ssd; repeatable.",
        is_repeatable=True,
    ),
    _Flag(
        names=("--cpu-expert-layers", "--n-cpu-moe"),
        keys=("cpu_expert_layers",),
        metavar="N",
        explanation="Keep the experts of the first N layers off the GPUs.",
    ),
    _Flag(
        names=("--split-layers",),
        keys=("split_layers",),
        metavar="yes|no",
        explanation="Whether one layer's experts may lie on two devices.",
    ),
    _Flag(
        names=("--load-mode",),
        keys=("load_mode",),
        metavar="MODE",
        explanation="How weights reach RAM: mmap, copy, lock, direct.",
    ),
    _Flag(
        names=("--batch",), keys=("batch",), metavar="TOKENS", explanation="Prompt tokens at once."
    ),
    _Flag(
        names=("--ubatch",),
        keys=("ubatch",),
        metavar="TOKENS",
        explanation="Tokens computed at once.",
    ),
    _Flag(
        names=("--flash-attention",),
        keys=("flash_attention",),
        metavar="auto|on|off",
        explanation="Flash attention.",
    ),
    _Flag(
        names=("--extra-buffers",),
        keys=("extra_buffers",),
        metavar="auto|on|off",
        explanation="Repack host weights for the processor.",
    ),
    _Flag(names=("--threads",), keys=("threads",), metavar="N", explanation="Threads of the CPU."),
    _Flag(
        names=("--streaming",),
        keys=("streaming",),
        metavar="MODE",
        explanation="How experts move: auto, off, paging, cache, slots in VRAM.",
    ),
    _Flag(
        names=("--expert-slots",),
        keys=("expert_slots",),
        metavar="N",
        explanation="Experts of each layer that have slots in VRAM; 0 for none.",
    ),
    _Flag(
        names=("--preload",),
        keys=("preload_experts",),
        metavar="N",
        explanation="Experts of the next layer to foretell and read ahead; 0: none.",
    ),
    _Flag(
        names=("--ssd-cache",),
        keys=("ssd_cache_path",),
        metavar="FOLDER",
        explanation="Folder on a fast disk for copies of what streams from a slow one.",
    ),
    _Flag(
        names=("--max-swap",),
        keys=("max_swap_size",),
        metavar="SIZE",
        explanation="Most that all copies in the SSD cache may take.",
    ),
    _Flag(
        names=("--gpu-margin",),
        keys=("gpu_margin",),
        metavar="SIZE",
        explanation="Memory to leave free on each GPU.",
    ),
    _Flag(
        names=("--host-margin",),
        keys=("host_margin",),
        metavar="SIZE",
        explanation="Host memory to leave free.",
    ),
    _Flag(
        names=("--workers", "--worker"),
        keys=("workers",),
        metavar="HOST:PORT[=SIZE]",
        explanation="Workers that lend memory, at most SIZE; repeatable, or with commas.",
        is_repeatable=True,
    ),
)
_MACHINE_FILE: Final = _Flag(
    names=("--machine",),
    keys=(),
    metavar="FILE",
    explanation="Plan for the machine in a file of 'doctor --json'.",
)
_CONFIG_FILE: Final = _Flag(
    names=("--config",),
    keys=(),
    metavar="FILE",
    explanation="Settings to read in place of config.yaml and ./moerun.yaml.",
)


def placement_variables() -> dict[str, str]:
    """Return the environment variables that set what the flags set, for the end of a help."""
    from moerun.settings.keys import KEYS

    names = {key: flag.names[0] for flag in _FLAGS for key in flag.keys}
    return {key.variable: f"as {names[key.short]}" for key in KEYS if key.short in names}


def flag_name(key: str) -> str:
    """Return the flag that sets a setting, as it is typed."""
    return next((flag.names[0] for flag in _FLAGS if key in flag.keys), key)


def with_placement_flags(
    *, can_imagine_machine: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb all placement flags; it receives them as one argument, `flags`.

    `--machine` is only for verbs that do not load what they plan.
    """
    files = (_MACHINE_FILE, _CONFIG_FILE) if can_imagine_machine else (_CONFIG_FILE,)
    rows = (*_FLAGS, *files)

    def give(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def verb(**values: Any) -> None:
            typed = {row.parameter: values.pop(row.parameter) for row in rows}
            function(**values, flags=_collect(typed))

        own = inspect.signature(function, eval_str=True)
        kept = [parameter for parameter in own.parameters.values() if parameter.name != "flags"]
        verb.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*kept, *(_parameter(row) for row in rows)]
        )
        return verb

    return give


def _parameter(row: _Flag) -> inspect.Parameter:
    """Return the parameter from which typer makes the flag."""
    option = typer.Option(*row.names, metavar=row.metavar, help=row.explanation)
    kind: Any = list[str] | None if row.is_repeatable else str | None
    return inspect.Parameter(
        row.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _collect(typed: Mapping[str, Any]) -> PlacementFlags:
    """Return the flags that were given; a later row overrules an earlier one for the same key."""
    settings: dict[str, str | tuple[str, ...]] = {}
    for row in _FLAGS:
        value = typed[row.parameter]
        if value is None:
            continue
        settings.update(dict.fromkeys(row.keys, tuple(value) if row.is_repeatable else value))
    return PlacementFlags(
        settings=tuple(settings.items()),
        machine_file=typed.get(_MACHINE_FILE.parameter),
        config_file=typed.get(_CONFIG_FILE.parameter),
    )
