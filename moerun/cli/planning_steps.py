"""From what was typed to what a plan is made of: settings, model, machine; shared by the verbs.

Knows: the order of asking, and when a machine is imagined instead of probed.
Does not know: the engine (a verb that runs asks it), or how anything is shown.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moerun.cli.options import PlacementFlags
from moerun.errors import ConfigError, ModelNotFound, UsageError
from moerun.settings.description import LoadedSettings

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.model.description import Model

_VRAM_KEY = "vram_limit"
_RAM_KEY = "ram_limit"
_LONGEST_NAME = 80
_GPU_BACKENDS = frozenset({"cuda", "hip", "vulkan", "metal", "sycl"})


def read_settings(flags: PlacementFlags) -> LoadedSettings:
    """Return the settings of all layers under the flags; ConfigError names key and origin."""
    from moerun.settings.load import load_settings

    file = _file(flags.config_file, "--config")
    return load_settings(dict(flags.settings), file=file)


def read_named_model(name: str) -> "Model":
    """Return the model that a name or a path means, from its header alone."""
    from moerun.model.gguf_header import read_model
    from moerun.store.names import resolve_model

    try:
        path = resolve_model(name)
    except (ValueError, OSError) as error:  # a NUL in it, too long, a folder that is closed
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelNotFound(f"'{name[:_LONGEST_NAME]}' cannot be looked up: {reason}") from error
    return read_model(path)


def machine_to_plan_for(
    flags: PlacementFlags, loaded: LoadedSettings, model_path: Path | None = None
) -> "Machine":
    """Return the machine that a dry run plans for; the engine is not asked.

    It is the one in the file of `--machine`, else the one at hand; `--vram` gives GPUs to a
    machine that has none, and `--ram` memory to one that has less.
    """
    machine = _machine_at_hand_or_in_file(_file(flags.machine_file, "--machine"), model_path)
    machine = replace(machine, notes=(*machine.notes, *_engine_notes(machine, flags, loaded)))
    machine = _with_imagined_vram(machine, flags, loaded)
    machine = _with_imagined_ram(machine, flags, loaded)
    check_limits(machine, loaded)
    return machine


def _engine_notes(
    machine: "Machine", flags: PlacementFlags, loaded: LoadedSettings
) -> tuple[str, ...]:
    """Say where a run will differ, for its engine is asked and a plan's is not."""
    from moerun.engine.installation import installed_backends

    notes = []
    if workers := loaded.settings.workers:
        notes.append(f"RPC workers are asked only when a model is run: {', '.join(workers)}")
    backends = frozenset(installed_backends())
    if flags.machine_file is None and machine.gpus and backends and not backends & _GPU_BACKENDS:
        notes.append(
            "the installed engine was built for the CPU alone, so a run would not use the GPUs "
            "planned for here; rebuild it with: make run BACKEND=auto"
        )
    return tuple(notes)


def _machine_at_hand_or_in_file(file: Path | None, model_path: Path | None) -> "Machine":
    if file is not None:
        from moerun.machine.document import read_machine

        return read_machine(file)
    from moerun.machine.probe import probe_machine

    return probe_machine(model_path=model_path)


def check_limits(machine: "Machine", loaded: LoadedSettings) -> None:
    """Refuse a list of VRAM limits that does not name one for each GPU."""
    limits = loaded.settings.strategy.vram_limit
    if limits is None or not machine.gpus or len(limits) in (1, len(machine.gpus)):
        return
    key = f"memory_strategy.{_VRAM_KEY}"
    origin = loaded.origin(key)
    count = len(machine.gpus)
    raise ConfigError(
        f"{origin}: {len(limits)} limits are given for {count} GPU{'' if count == 1 else 's'}",
        key=key,
        origin=origin,
        hint="give one limit for all GPUs, or one for each; 'moerun doctor' lists them",
    )


def _with_imagined_vram(
    machine: "Machine", flags: PlacementFlags, loaded: LoadedSettings
) -> "Machine":
    """Give a machine without GPUs the ones that `--vram` names."""
    from moerun.machine.hypothetical import with_vram

    limits = loaded.settings.strategy.vram_limit
    if machine.gpus or flags.given(_VRAM_KEY) is None or limits is None:
        return machine
    sizes = tuple(limit.limit_bytes for limit in limits if limit.limit_bytes is not None)
    if len(sizes) < len(limits):
        raise UsageError(
            "--vram: there is no GPU here whose share could be taken",
            hint="give a size, such as --vram 24G, to plan for such a GPU",
        )
    return with_vram(machine, sizes) if any(sizes) else machine


def _with_imagined_ram(
    machine: "Machine", flags: PlacementFlags, loaded: LoadedSettings
) -> "Machine":
    """Give a machine the memory that `--ram` names where it has less, or is imagined anyway."""
    from moerun.machine.hypothetical import with_ram

    limit = loaded.settings.strategy.ram_limit
    if flags.given(_RAM_KEY) is None or limit is None or not limit.limit_bytes:
        return machine
    is_imagined = any(gpu.is_hypothetical for gpu in machine.gpus)
    if limit.limit_bytes > machine.host.total_bytes or is_imagined:
        return with_ram(machine, limit.limit_bytes)
    return machine


def _file(path: str | None, flag: str) -> Path | None:
    """Return the path that a flag names, None when it was not given."""
    if path is None:
        return None
    if not path.strip() or "\0" in path:
        raise UsageError(f"{flag}: '{path}' is not the path of a file")
    return Path(path).expanduser()
