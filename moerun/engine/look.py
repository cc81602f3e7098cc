"""Looking at the machine: what the engine lists and what the system tells, as one.

Knows: when the engine need not be asked, and that what fails on the way is a note.
Does not know: workers, how devices are matched, or what will be planned.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from moerun.machine.description import EngineDevice, Machine

# Backends whose devices are none of their own memory; an engine with no other lists no GPU.
_WITHOUT_GPU: Final = frozenset(("cpu", "blas", "rpc"))


def look_at_machine(*, model_path: Path | None = None, asks_always: bool = False) -> "Machine":
    """Return the machine with the engine's devices.

    Asking the engine takes a process and half a second, so an engine built for the processor
    alone is asked only with `asks_always`.
    """
    from dataclasses import replace

    from moerun.engine.installation import installed_backends
    from moerun.machine.probe import probe_machine

    backends = frozenset(installed_backends())
    notes: list[str] = []
    devices = _ask_engine(notes) if asks_always or _may_have_gpus(backends) else ()
    machine = probe_machine(model_path=model_path, engine_devices=devices, engine_backends=backends)
    return replace(machine, notes=(*notes, *machine.notes))


def _may_have_gpus(backends: frozenset[str]) -> bool:
    """Whether the engine could list a GPU; an unusual build, or none, is asked to be sure."""
    return "cpu" not in backends or not backends <= _WITHOUT_GPU


def _ask_engine(notes: list[str]) -> "tuple[EngineDevice, ...] | None":
    from moerun.engine.child_probe import probe_engine
    from moerun.errors import EngineError

    try:
        return probe_engine().devices
    except EngineError as error:
        notes.append(error.message.rstrip("."))
        return None
