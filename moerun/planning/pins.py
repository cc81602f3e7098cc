"""What the user pinned: globs over tensor names, resolved to devices and checked.

Knows: how pins match, and which pins contradict the model, the machine or one another.
Does not know: budgets, or what is planned around the pins.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from types import MappingProxyType
from typing import Final

from moerun.errors import PinConflict
from moerun.machine.description import HOST, SSD, DeviceId, Machine, is_gpu
from moerun.model.description import Model, Tensor, TensorRole
from moerun.planning.budgets import usable_gpus
from moerun.planning.strategy import LoadMode, Pin, Strategy, Tier

_READING_ALL: Final = frozenset({LoadMode.COPY, LoadMode.LOCK, LoadMode.DIRECT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinning:
    """Devices by tensor name, for pinned tensors only."""

    devices: Mapping[str, DeviceId]
    pins: Mapping[str, Pin]


NO_PINS = Pinning(devices=MappingProxyType({}), pins=MappingProxyType({}))


def resolve_pins(model: Model, machine: Machine, strategy: Strategy) -> Pinning:
    """Return where each pinned tensor goes; PinConflict says which pin cannot be honoured."""
    if not strategy.pins:
        return NO_PINS
    devices: dict[str, DeviceId] = {}
    pins: dict[str, Pin] = {}
    for pin in strategy.pins:
        device = _device(pin, machine, strategy)
        matches = re.compile(translate(pin.pattern)).match
        matched = [tensor for tensor in model.loaded_tensors if matches(tensor.name)]
        if not matched:
            raise PinConflict(
                f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) matches none of the "
                f"{len(model.loaded_tensors)} tensors that are loaded",
                hint="names look like blk.0.ffn_up_exps.weight; * stands for any text",
            )
        for tensor in matched:
            _check(pin, device, tensor)
            if devices.get(tensor.name, device) != device:
                raise PinConflict(
                    f"{tensor.name} is pinned to {pins[tensor.name].device} "
                    f"({pins[tensor.name].origin}) and to {pin.device} ({pin.origin}); "
                    "keep one of the two"
                )
            devices[tensor.name] = device
            pins[tensor.name] = pin
    return Pinning(devices=MappingProxyType(devices), pins=MappingProxyType(pins))


def _device(pin: Pin, machine: Machine, strategy: Strategy) -> DeviceId:
    device = machine.resolve(pin.device)
    if device is None:
        known = ", ".join([*(machine.label(gpu.id) for gpu in machine.gpus), "cpu", "ssd"])
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) names a device that is not "
            f"here; there are {known}"
        )
    tier = Tier.VRAM if is_gpu(device) else Tier.SSD if device == SSD else Tier.RAM
    if tier not in strategy.hierarchy and device != HOST:
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) needs {tier.value}, which is "
            f"not in the hierarchy {[str(level) for level in strategy.hierarchy]}"
        )
    if device == SSD and strategy.load_mode in _READING_ALL:
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) leaves tensors on SSD, and the "
            f"load mode {strategy.load_mode} reads the whole file; use --load-mode mmap"
        )
    usable = {gpu.id for gpu in usable_gpus(machine, strategy)}
    if is_gpu(device) and device not in usable:
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) names a GPU that shares the "
            "host's memory, which is not used beside another one here"
        )
    return device


def _check(pin: Pin, device: DeviceId, tensor: Tensor) -> None:
    if device == SSD and tensor.role is not TensorRole.EXPERT:
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) would leave {tensor.name} on "
            "SSD; every token needs it, only experts can stay there"
        )
    if is_gpu(device) and tensor.role is TensorRole.INPUT:
        raise PinConflict(
            f"the pin '{pin.pattern}={pin.device}' ({pin.origin}) would move {tensor.name} to a "
            "GPU; llama.cpp looks tokens up on the host"
        )
