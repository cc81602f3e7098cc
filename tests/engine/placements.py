"""Placements of a tiny model over the host and two devices, as the engine's arguments.

Knows: how each placement is said to llama.cpp, by hand.
Does not know: the planner, or what a placement gives.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from moerun.engine.arguments import EngineArgs, EngineDeviceRef, Override
from moerun.machine.description import HOST
from moerun.planning.strategy import LoadMode, Toggle
from tests.engine.plain import Settings

ALL_LAYERS = 99
EXPERTS = r"\.ffn_(gate|up|down|gate_up)_exps\."
EXPERTS_ON_HOST = "experts on the host"
GATE_AND_UP = r"\.ffn_(gate|up|gate_up)_exps\."


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A name for the report, and the arguments. Telling ones are run with every setting."""

    name: str
    args: EngineArgs
    is_telling: bool = False


def on_the_host(path: Path, settings: Settings) -> EngineArgs:
    """Return the arguments of a load that uses no device."""
    return EngineArgs(
        model_path=str(path),
        devices=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        context_tokens=settings.context_tokens,
        batch_tokens=2048,
        ubatch_tokens=settings.ubatch_tokens,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.ON if settings.flash_attention else Toggle.OFF,
        extra_buffers=settings.extra_buffers,
        load_mode=LoadMode.MMAP,
        threads=settings.threads,
        swa_full=settings.swa_full,
    )


def host_placement(path: Path, settings: Settings) -> Placement:
    """Return the placement without devices, mapped.

    It is also what a part on SSD uses: its pages are read when they are touched.
    """
    return Placement(name="all on the host", args=on_the_host(path, settings), is_telling=True)


def load_mode_placements(path: Path, settings: Settings) -> tuple[Placement, ...]:
    """Return one placement for each other way of getting weights into host memory."""
    args = on_the_host(path, settings)
    modes = (LoadMode.COPY, LoadMode.LOCK, LoadMode.DIRECT)
    return tuple(
        Placement(name=f"all on the host, {mode}", args=replace(args, load_mode=mode))
        for mode in modes
    )


def device_placements(
    path: Path,
    settings: Settings,
    devices: tuple[EngineDeviceRef, ...],
    workers: tuple[str, ...],
) -> tuple[Placement, ...]:
    """Return placements over one and two devices, whole layers and parts of them."""
    whole = replace(
        on_the_host(path, settings),
        devices=devices[:1],
        workers=workers,
        n_gpu_layers=ALL_LAYERS,
    )
    experts_on_host = replace(whole, overrides=(Override(pattern=EXPERTS, device=HOST),))
    first, second = devices
    return (
        Placement(name="all on a device", args=whole),
        Placement(name=EXPERTS_ON_HOST, args=experts_on_host, is_telling=True),
        Placement(
            name="experts copied to the host",
            args=replace(experts_on_host, load_mode=LoadMode.COPY),
        ),
        Placement(
            name="two devices, experts on the host",
            args=replace(experts_on_host, devices=devices, tensor_split=(1.0, 1.0)),
        ),
        Placement(
            name="down on the device, gate and up on the host",
            args=replace(whole, overrides=(Override(pattern=GATE_AND_UP, device=HOST),)),
            is_telling=True,
        ),
        Placement(
            name="experts of the first two layers on the host",
            args=replace(whole, overrides=(Override(pattern=r"blk\.[01]" + EXPERTS, device=HOST),)),
        ),
        Placement(
            name="experts on the second device, all else on the first",
            args=replace(
                whole,
                devices=devices,
                tensor_split=(1.0, 0.0),
                overrides=(
                    Override(pattern=r"blk\.[01]" + EXPERTS, device=second.id),
                    Override(pattern=EXPERTS, device=first.id),
                ),
            ),
        ),
        Placement(
            name="the last layer on a device",
            args=replace(whole, n_gpu_layers=2),
            is_telling=True,
        ),
        Placement(
            name="layers on the host, and on two devices",
            args=replace(whole, devices=devices, n_gpu_layers=4, tensor_split=(2.0, 2.0)),
            is_telling=True,
        ),
    )
