"""What a runner is told about streaming, as values.

Knows: the choices that a plan leaves to the run.
Does not know: how they are carried out.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from moerun.experts.layout import ExpertLayout, StreamedTensor, expert_layout
from moerun.machine.description import HOST, Machine
from moerun.model.description import Model
from moerun.planning.plan import Plan, SlotPlan
from moerun.planning.strategy import Limit, StreamingMode


class PolicyName(StrEnum):
    """Which expert leaves when another needs its room."""

    LRU = "lru"
    FREQUENCY = "frequency"  # LRU with frequency weight


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdCacheOrder:
    """The folder of the cache and the room it may take; a share is of its file system."""

    path: str
    limit: Limit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingOrder:
    """How one model is to be streamed; None leaves a choice to the run.

    `limit_bytes` bounds all host memory of the runner; `cache_bytes` of it are planned for
    experts, at most, and `minimum_bytes` at least. `state_folder` is where what was learned of
    this model on this machine is kept. `is_adaptive` lets the cache follow memory pressure.
    `trace_path` is a file that was begun with its header, to which the routing of every token is
    added; `traced` are the matrices whose routing that is, with their layers. With the mode `off`
    nothing streams, and the order is for the trace or the slots alone. `ssd_cache` is where copies
    of what is read lie on a faster disk. `slots` are made in the memory of devices; `slotted` are
    the matrices that they stand in for, whether or not these stream too.
    """

    layout: ExpertLayout
    mode: StreamingMode
    limit_bytes: int
    cache_bytes: int
    minimum_bytes: int
    policy: PolicyName | None = None
    preload_experts: int | None = None
    is_adaptive: bool = True
    reader_threads: int | None = None
    read_bytes: int | None = None
    state_folder: str | None = None
    model_digest: str = ""
    machine_fingerprint: str = ""
    trace_path: str | None = None
    traced: tuple[tuple[str, int], ...] = ()
    ssd_cache: SsdCacheOrder | None = None
    slots: SlotPlan | None = None
    slotted: tuple[StreamedTensor, ...] = ()


def streaming_order(
    plan: Plan, model: Model, machine: Machine, *, state_folder: str | None
) -> StreamingOrder | None:
    """Return how the experts of a plan stream; None where none do."""
    streaming = plan.streaming
    if streaming is None:
        return _slots_alone(plan, model, machine, state_folder)
    devices = plan.devices_by_tensor(model)
    held = frozenset(name for name, device in devices.items() if device == HOST)
    return StreamingOrder(
        layout=expert_layout(model, devices, held=held),
        mode=streaming.mode,
        limit_bytes=streaming.limit_bytes,
        cache_bytes=streaming.cache_bytes,
        minimum_bytes=streaming.minimum_bytes,
        preload_experts=streaming.preload_experts,
        is_adaptive=streaming.is_adaptive,
        state_folder=state_folder,
        model_digest=model.digest,
        machine_fingerprint=machine.fingerprint,
        ssd_cache=_ssd_cache_order(plan),
        slots=plan.slots,
        slotted=_slotted(plan, expert_layout(model, devices)),
    )


def without_slots(order: StreamingOrder) -> StreamingOrder | None:
    """Return an order that makes no slots; None where it was for these alone."""
    if order.slots is not None and order.mode is StreamingMode.OFF:
        return None
    return replace(order, slots=None, slotted=())


def _slots_alone(
    plan: Plan, model: Model, machine: Machine, state_folder: str | None
) -> StreamingOrder | None:
    """Return the order of a model that is in memory as a whole, and has slots beside."""
    if plan.slots is None:
        return None
    layout = expert_layout(model, plan.devices_by_tensor(model))
    return StreamingOrder(
        layout=layout,
        mode=StreamingMode.OFF,
        limit_bytes=layout.resident_bytes + layout.expert_bytes,
        cache_bytes=layout.expert_bytes,
        minimum_bytes=layout.expert_bytes,
        preload_experts=0,
        is_adaptive=False,
        state_folder=state_folder,
        model_digest=model.digest,
        machine_fingerprint=machine.fingerprint,
        slots=plan.slots,
        slotted=_slotted(plan, layout),
    )


def _slotted(plan: Plan, on_host: ExpertLayout) -> tuple[StreamedTensor, ...]:
    """Return the matrices of the layers that have slots."""
    if plan.slots is None:
        return ()
    layers = {layer.layer for layer in plan.slots.layers}
    return tuple(tensor for tensor in on_host.tensors if tensor.layer in layers)


def _ssd_cache_order(plan: Plan) -> SsdCacheOrder | None:
    path = plan.strategy.ssd_cache_path
    if path is None:
        return None
    return SsdCacheOrder(path=path, limit=plan.strategy.max_swap_size)
