"""Giving a loaded model its slots: its graph is looked at, memory taken, and looked at once more.

A layer whose graph does not let slots stand in keeps its experts on the host, and is named. Where
no layer is left, or slots were wanted of a model that repacks its experts, that is an error.

Knows: the order of the steps.
Does not know: what makes a graph fit, or what is put into slots.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

from moerun.engine import abi, devices
from moerun.engine.arguments import EngineArgs, LayerSlots
from moerun.engine.device_slots import DeviceSlots, LayerRoom, LayerTensors
from moerun.engine.graph_cuts import Graph
from moerun.engine.slot_memory import Device
from moerun.engine.slot_tensors import layer_tensors
from moerun.engine.slot_use import LOOKED_AT
from moerun.errors import EngineRefused, SlotsRefused
from moerun.machine.description import HOST, DeviceId

Learn = Callable[[int], Graph | None]
"""Have the graph of so many tokens met, none of it computed; its nodes live until the next call."""

_OFF_HINT = "--streaming off runs the model without slots."


def open_slots(
    opened: abi.Abi, args: EngineArgs, learn: Learn, *, architecture: str
) -> tuple[DeviceSlots, list[str]]:
    """Return the slots of a model, off, and a sentence on every kind of layer that has none.

    Raises SlotsRefused where there would be none at all, EngineOutOfMemory.
    """
    if args.extra_buffers:
        raise EngineRefused(
            "Experts that are repacked for the processor cannot be copied to slots of a device.",
            hint="Plan with slots, which turns repacking off, or use --streaming off.",
        )
    one, two = LOOKED_AT
    graph = learn(one)
    if graph is None:
        raise SlotsRefused(
            f"experts of {architecture} cannot be read from slots: it has an encoder, whose graph "
            "cannot be looked at before it runs"
        )
    found = {
        wish.layer: layer_tensors(graph, wish.layer, is_slotted=False) for wish in args.expert_slots
    }
    refused = _sentences(found.values())
    rooms = _rooms(opened, args, found)
    if not rooms:
        raise SlotsRefused(
            f"experts of {architecture} cannot be read from slots: {'; '.join(refused)}"
        )
    slots = DeviceSlots(opened, rooms)
    try:
        _check_again(slots, rooms, lambda: learn(two), architecture)
    except BaseException:
        slots.close()
        raise
    return slots, refused


def _rooms(
    opened: abi.Abi, args: EngineArgs, found: dict[int, LayerTensors]
) -> tuple[LayerRoom, ...]:
    places = {wish.device: _device(opened, args, wish.device) for wish in args.expert_slots}
    return tuple(
        LayerRoom(
            tensors=found[wish.layer],
            device=places[wish.device],
            slots=_checked(wish, found[wish.layer]),
        )
        for wish in args.expert_slots
        if found[wish.layer].refusal is None
    )


def _checked(wish: LayerSlots, tensors: LayerTensors) -> int:
    """Return how many slots a layer gets: no more than it has experts, no fewer than a token's."""
    if wish.slots < tensors.experts_used:
        raise EngineRefused(
            f"Layer {wish.layer} is to have {wish.slots} slots for experts, and a token uses "
            f"{tensors.experts_used} of them."
        )
    return min(wish.slots, tensors.expert_count)


def _device(opened: abi.Abi, args: EngineArgs, wanted: DeviceId) -> Device:
    if wanted == HOST:
        return Device(
            id=HOST,
            pointer=devices.processor(),
            buffer_type=devices.processor_buffer_type(),
        )
    references = tuple(reference for reference in args.devices if reference.id == wanted)
    if not references:
        raise EngineRefused(
            f"Slots for experts are wanted on {wanted}, which is not among the devices of the plan."
        )
    (pointer,) = devices.device_pointers(references)
    return Device(id=wanted, pointer=pointer, buffer_type=opened.device_buffer_type(pointer))


def _check_again(
    slots: DeviceSlots,
    rooms: Sequence[LayerRoom],
    learn: Callable[[], Graph | None],
    architecture: str,
) -> None:
    """Look at the graph that reads slots: the choice must not have been copied elsewhere.

    It is of other tokens than the one before, which the engine would else use again.
    """
    if slots.most_tokens < 2:
        least = min(room.slots for room in rooms)
        raise EngineRefused(
            f"{least} slots for experts in a layer are too few: two tokens may use "
            f"{2 * max(room.tensors.experts_used for room in rooms)}.",
            hint=_OFF_HINT,
        )
    slots.turn(True)
    try:
        graph = learn()
        again = (
            [layer_tensors(graph, room.tensors.layer, is_slotted=True) for room in rooms]
            if graph
            else []
        )
    finally:
        slots.turn(False)
    for room, now in itertools.zip_longest(rooms, again):
        if now is None or now.tensors != room.tensors.tensors:
            reason = now.refusal if now is not None and now.refusal else "its graph changed"
            raise SlotsRefused(
                f"experts of {architecture} cannot be read from slots on {room.device.id}: layer "
                f"{room.tensors.layer}: {reason}"
            )


def _sentences(found: Iterable[LayerTensors]) -> list[str]:
    """Return why layers have no slots, one sentence for each reason."""
    by_reason: dict[str, list[int]] = {}
    for tensors in found:
        if tensors.refusal is not None:
            by_reason.setdefault(tensors.refusal, []).append(tensors.layer)
    return [
        f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))} "
        f"{'have' if len(layers) > 1 else 'has'} no slots for experts: {reason}"
        for reason, layers in by_reason.items()
    ]
