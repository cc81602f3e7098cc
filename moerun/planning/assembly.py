"""From the chosen candidate to a plan: placements by layer, and a charge for every byte.

Knows: how a plan is written down.
Does not know: why the candidate was chosen.
"""

from moerun.machine.description import HOST, SSD, DeviceId
from moerun.model.description import ExpertPart, Layer, Tensor, TensorRole, TensorUse
from moerun.planning.candidate import Candidate
from moerun.planning.choices import extra_buffers
from moerun.planning.plan import (
    Charge,
    ChargeKind,
    Confidence,
    LayerPlacement,
    Ledger,
    SlotLayer,
    SlotPlan,
    StreamingPlan,
    TensorPlacement,
)
from moerun.planning.situation import Situation, gpu_charges, host_charges, tied_copy_bytes
from moerun.planning.slot_gain import expected_hit_fraction
from moerun.planning.strategy import AllocationPolicy
from moerun.planning.streaming import streaming_mode

Shared = tuple[tuple[TensorRole, DeviceId], ...]


def layer_placements(at: Situation, candidate: Candidate) -> tuple[LayerPlacement, ...]:
    """Return where each layer and each part of its experts live."""
    dense = [HOST] * at.problem.cargo.layer_count
    experts: list[dict[ExpertPart, DeviceId]] = [{} for _ in dense]
    for device, run in zip(candidate.devices, candidate.runs, strict=True):
        for index in range(run.first, run.end):
            dense[index] = device
        for index, parts in run.experts:
            for part, _ in parts:
                experts[index][part] = device
    for device, by_layer in ((HOST, candidate.ram_parts), (SSD, candidate.ssd_parts)):
        for index, parts in enumerate(by_layer):
            for part, _ in parts:
                experts[index][part] = device
    return tuple(
        LayerPlacement(
            layer=layer.index,
            dense=dense[layer.index],
            experts=tuple(
                (part, _part_device(at, layer, part, experts[layer.index]))
                for part in layer.expert_parts
            ),
        )
        for layer in at.problem.model.layers
    )


def shared_placements(at: Situation, candidate: Candidate) -> Shared:
    """Return where the tensors of no layer live: inputs on the host, the rest with the output."""
    output = candidate.devices[-1] if candidate.devices else HOST
    present = {tensor.role for tensor in at.problem.model.shared} | {TensorRole.OUTPUT}
    return tuple(
        (role, HOST if role is TensorRole.INPUT else output)
        for role in TensorRole
        if role in present or role is TensorRole.INPUT
    )


def streaming_plan(at: Situation, candidate: Candidate) -> StreamingPlan | None:
    """Return how the experts on SSD stream; None where they do not."""
    cache, strategy = candidate.cache, at.problem.strategy
    if cache is None:
        return None
    return StreamingPlan(
        mode=streaming_mode(at.problem),
        limit_bytes=candidate.room_bytes,
        cache_bytes=cache.cache_bytes,
        minimum_bytes=cache.minimum_bytes,
        cycle_bytes=cache.cycle_bytes,
        expert_bytes=cache.expert_bytes,
        preload_experts=strategy.preload_experts,
        is_adaptive=strategy.allocation_policy is AllocationPolicy.ADAPTIVE,
    )


def slot_plan(at: Situation, candidate: Candidate, *, is_trial: bool = False) -> SlotPlan | None:
    """Return the slots of every layer that has any; None where there are none."""
    wish = at.problem.slots
    if wish is None:
        return None
    layers = tuple(
        SlotLayer(
            layer=index,
            device=device,
            slots=each.slots,
            slot_bytes=wish.layers[index].slot_bytes,
            size_bytes=wish.layers[index].size_bytes(each.slots),
        )
        for device, each in zip(candidate.devices, candidate.slots, strict=True)
        for index in range(each.run.first, each.run.end)
        if wish.layers[index].slot_bytes
    )
    if not layers:
        return None
    held_bytes = sum(layer.slots * layer.slot_bytes for layer in layers)
    hits = sum(
        layer.slot_bytes
        * expected_hit_fraction(layer.slots / wish.expert_count, expert_count=wish.expert_count)
        for layer in layers
    )
    one_of_each = sum(layer.slot_bytes for layer in layers)
    return SlotPlan(
        layers=layers,
        expected_hit_fraction=hits / one_of_each,
        held_fraction=held_bytes / (one_of_each * wish.expert_count),
        is_trial=is_trial,
        least_gain_fraction=held_bytes / at.problem.cargo.expert_bytes if is_trial else 0.0,
    )


def exceptions(
    at: Situation, layers: tuple[LayerPlacement, ...], shared: Shared
) -> tuple[TensorPlacement, ...]:
    """Return the pinned tensors that do not lie where their layer or role does."""
    devices = at.problem.pinning.devices
    return tuple(
        TensorPlacement(tensor=tensor.name, device=devices[tensor.name])
        for tensor in at.problem.model.loaded_tensors
        if tensor.name in devices
        and (
            tensor.use is TensorUse.DUPLICATED
            or devices[tensor.name] != _placed(tensor, layers, shared)
        )
    )


def ledger(at: Situation, candidate: Candidate, layers: tuple[LayerPlacement, ...]) -> Ledger:
    """Return every byte that the plan takes, margins included."""
    devices = _devices(at, layers, shared_placements(at, candidate))
    charges = [
        *_weight_charges(at, devices),
        *_slot_charges(slot_plan(at, candidate)),
        *_output_copy(at, candidate),
        *_repeated(at, candidate),
        *_state_charges(at, layers),
        *_fixed_charges(at, candidate),
    ]
    return Ledger(charges=tuple(charge for charge in charges if charge.size_bytes))


def _devices(
    at: Situation, layers: tuple[LayerPlacement, ...], shared: Shared
) -> dict[str, DeviceId]:
    """Return where each loaded tensor lives."""
    pinned = at.problem.pinning.devices
    roles = dict(shared)
    experts = [dict(placement.experts) for placement in layers]
    found: dict[str, DeviceId] = {}
    for tensor in at.problem.model.loaded_tensors:
        if tensor.name in pinned:
            found[tensor.name] = pinned[tensor.name]
        elif tensor.layer is None:
            found[tensor.name] = roles.get(tensor.role, HOST)
        elif tensor.role is TensorRole.EXPERT and tensor.part is not None:
            found[tensor.name] = experts[tensor.layer][tensor.part]
        else:
            found[tensor.name] = layers[tensor.layer].dense
    return found


def _part_device(
    at: Situation, layer: Layer, part: ExpertPart, free: dict[ExpertPart, DeviceId]
) -> DeviceId:
    """Return the device of a part: of its free tensors, else of the pinned ones."""
    if part in free:
        return free[part]
    pinned = at.problem.pinning.devices
    return next(pinned[t.name] for t in layer.expert_tensors if t.part is part)


def _placed(tensor: Tensor, layers: tuple[LayerPlacement, ...], shared: Shared) -> DeviceId:
    if tensor.layer is None:
        return dict(shared).get(tensor.role, HOST)
    if tensor.role is TensorRole.EXPERT and tensor.part is not None:
        return layers[tensor.layer].expert_device(tensor.part)
    return layers[tensor.layer].dense


def _weight_charges(at: Situation, devices: dict[str, DeviceId]) -> list[Charge]:
    sums: dict[tuple[int | None, DeviceId, ChargeKind], int] = {}
    pinned = at.problem.pinning.devices
    for tensor in at.problem.model.loaded_tensors:
        if tensor.use is TensorUse.REPEATED and tensor.name not in pinned:
            continue
        is_expert = tensor.role is TensorRole.EXPERT and tensor.part is not None
        kind = ChargeKind.EXPERT_WEIGHTS if is_expert else ChargeKind.DENSE_WEIGHTS
        key = (tensor.layer, devices[tensor.name], kind)
        sums[key] = sums.get(key, 0) + tensor.size_bytes
    return [
        Charge(device=device, kind=kind, size_bytes=size, confidence=Confidence.EXACT, layer=layer)
        for (layer, device, kind), size in sums.items()
    ]


def _output_copy(at: Situation, candidate: Candidate) -> list[Charge]:
    """Charge the second copy of a tied embedding where the engine makes one."""
    tied = at.problem.cargo.tied_output
    if tied is None:
        return []
    if candidate.devices:
        return [_dense(candidate.devices[-1], tied.size_bytes, Confidence.EXACT)]
    if extra_buffers(at.problem, candidate):
        return [_dense(HOST, tied_copy_bytes(at.problem), Confidence.ASSUMED)]
    return []


def _repeated(at: Situation, candidate: Candidate) -> list[Charge]:
    size = at.problem.cargo.repeated_bytes
    holders = [
        device
        for device, run in zip(candidate.devices, candidate.runs, strict=True)
        if run.end > run.first
    ]
    if candidate.host_layers:
        holders.append(HOST)
    return [_dense(device, size, Confidence.EXACT) for device in holders]


def _dense(device: DeviceId, size_bytes: int, confidence: Confidence) -> Charge:
    return Charge(
        device=device,
        kind=ChargeKind.DENSE_WEIGHTS,
        size_bytes=size_bytes,
        confidence=confidence,
    )


def _state_charges(at: Situation, layers: tuple[LayerPlacement, ...]) -> list[Charge]:
    kinds = (
        (ChargeKind.KV_CACHE, at.kv_bytes),
        (ChargeKind.RECURRENT_STATE, at.problem.cargo.recurrent_bytes),
    )
    return [
        Charge(
            device=placement.dense,
            kind=kind,
            size_bytes=sizes[placement.layer],
            confidence=Confidence.DERIVED,
            layer=placement.layer,
        )
        for kind, sizes in kinds
        for placement in layers
    ]


def _slot_charges(slots: SlotPlan | None) -> list[Charge]:
    return [
        Charge(
            device=layer.device,
            kind=ChargeKind.EXPERT_SLOTS,
            size_bytes=layer.size_bytes,
            confidence=Confidence.DERIVED,
            layer=layer.layer,
        )
        for layer in (() if slots is None else slots.layers)
    ]


def _fixed_charges(at: Situation, candidate: Candidate) -> list[Charge]:
    found: list[Charge] = []
    for device in candidate.devices:
        charges = gpu_charges(
            at,
            at.problem.machine.gpu(device),
            has_output=device == candidate.devices[-1],
            has_staging=candidate.has_staging,
            is_pipelined=candidate.is_pipelined,
        )
        found += [
            Charge(device=device, kind=kind, size_bytes=s.size_bytes, confidence=s.confidence)
            for kind, s in charges
        ]
        margin = at.problem.rooms.gpu(device).margin_bytes
        found.append(_assumed(device, ChargeKind.MARGIN, margin))
    found += [
        Charge(device=HOST, kind=kind, size_bytes=s.size_bytes, confidence=s.confidence)
        for kind, s in host_charges(
            at,
            tuple(at.problem.machine.gpu(device) for device in candidate.devices),
            work=candidate.need.work,
            is_pipelined=candidate.is_pipelined,
        )
    ]
    staging = candidate.need.staging_bytes
    margin = at.problem.rooms.host.margin_bytes
    return [
        *found,
        Charge(
            device=HOST,
            kind=ChargeKind.STAGING,
            size_bytes=staging + (0 if candidate.cache is None else candidate.cache.beside_bytes),
            confidence=Confidence.DERIVED,
        ),
        Charge(
            device=HOST,
            kind=ChargeKind.EXPERT_CACHE,
            size_bytes=candidate.cache_bytes,
            confidence=Confidence.DERIVED,
        ),
        _assumed(HOST, ChargeKind.MARGIN, margin),
    ]


def _assumed(device: DeviceId, kind: ChargeKind, size_bytes: int) -> Charge:
    return Charge(device=device, kind=kind, size_bytes=size_bytes, confidence=Confidence.ASSUMED)
