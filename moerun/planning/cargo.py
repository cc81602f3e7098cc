"""What must be placed, as plain numbers: the model's bytes by layer, after pins and residencies.

Knows: which bytes are free to go to a GPU, which are held on the host, which are pinned.
Does not know: budgets, or where anything goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from moerun.errors import PinConflict
from moerun.machine.description import HOST, DeviceId, is_gpu
from moerun.model.description import ExpertPart, Model, Tensor, TensorRole, TensorUse
from moerun.model.state import kv_bytes, recurrent_bytes
from moerun.planning.pins import Pinning
from moerun.planning.strategy import ExpertResidency, Strategy, Tier, Toggle
from moerun.units import format_gib

PartBytes = tuple[tuple[ExpertPart, int], ...]

# The parts of one layer in the order in which they earn room: up and gate share their input, so
# they stay together; the merged matrix stands for both.
PART_ORDER = (ExpertPart.GATE_UP, ExpertPart.UP, ExpertPart.GATE, ExpertPart.DOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """Bytes by layer, as tuples with one entry for each layer; pinned tensors are not in them.

    `vram_parts` may go to a GPU; `host_parts` must not (held back by `cpu_expert_layers` or by
    the share wanted in VRAM). `pins_host_matrices` says that pins make the host multiply.
    """

    dense_bytes: tuple[int, ...]
    vram_parts: tuple[PartBytes, ...]
    host_parts: tuple[PartBytes, ...]
    recurrent_bytes: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    tied_output: Tensor | None
    repeated_bytes: int
    pinned_dense_bytes: Mapping[DeviceId, int]
    pinned_expert_bytes: Mapping[DeviceId, int]
    expert_bytes: int
    ram_expert_limit_bytes: int | None
    pins_host_matrices: bool

    @property
    def layer_count(self) -> int:
        """Return how many layers there are."""
        return len(self.dense_bytes)

    def pinned_bytes(self, device: DeviceId) -> int:
        """Return what is pinned to a device."""
        return self.pinned_dense_bytes.get(device, 0) + self.pinned_expert_bytes.get(device, 0)

    @property
    def tied_bytes(self) -> int:
        """Return the bytes of the copy of the input embedding that serves as output."""
        return 0 if self.tied_output is None else self.tied_output.size_bytes


def cargo(model: Model, strategy: Strategy, pinning: Pinning, *, has_slots: bool = False) -> Cargo:
    """Sort the model's tensors into what is free, held and pinned.

    Where slots in VRAM hold copies of experts, the experts themselves are held on the host. Raises
    PinConflict where the wanted shares of experts contradict one another or the pins.
    """
    pinned_dense: dict[DeviceId, int] = {}
    pinned_experts: dict[DeviceId, int] = {}
    dense: list[int] = []
    parts: list[PartBytes] = []
    for layer in model.layers:
        dense_bytes = 0
        part_bytes: dict[ExpertPart, int] = {}
        for tensor in layer.tensors:
            if tensor.use in (TensorUse.SKIPPED, TensorUse.REPEATED):
                continue
            device = pinning.devices.get(tensor.name)
            is_expert = tensor.role is TensorRole.EXPERT and tensor.part is not None
            if device is not None:
                pinned = pinned_experts if is_expert else pinned_dense
                pinned[device] = pinned.get(device, 0) + tensor.size_bytes
            elif is_expert and tensor.part is not None:
                part_bytes[tensor.part] = part_bytes.get(tensor.part, 0) + tensor.size_bytes
            else:
                dense_bytes += tensor.size_bytes
        dense.append(dense_bytes)
        parts.append(tuple((part, part_bytes[part]) for part in PART_ORDER if part in part_bytes))
    shared = _shared_bytes(model, pinning, pinned_dense)
    total = model.expert_bytes
    free, held = _held_back(parts, strategy, total, pinned_experts, has_slots=has_slots)
    return Cargo(
        dense_bytes=tuple(dense),
        vram_parts=free,
        host_parts=held,
        recurrent_bytes=tuple(recurrent_bytes(layer) for layer in model.layers),
        input_bytes=shared.input_bytes,
        output_bytes=shared.output_bytes,
        tied_output=shared.tied_output,
        repeated_bytes=shared.repeated_bytes,
        pinned_dense_bytes=pinned_dense,
        pinned_expert_bytes=pinned_experts,
        expert_bytes=total,
        ram_expert_limit_bytes=_ram_limit(strategy.expert_residency, total),
        pins_host_matrices=_pins_host_matrices(model, pinning),
    )


def state_bytes(model: Model, strategy: Strategy, *, context_tokens: int) -> tuple[int, ...]:
    """Return the bytes of each layer's KV cache with that context."""
    return tuple(
        kv_bytes(
            layer,
            context_tokens=context_tokens,
            ubatch_tokens=strategy.ubatch_tokens,
            key_encoding=strategy.kv_encoding_k,
            value_encoding=strategy.kv_encoding_v,
            flash_attention=strategy.flash_attention is not Toggle.OFF,
        )
        for layer in model.layers
    )


def sums(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return running sums that begin with 0, so that `[j] - [i]` is the sum of `i` to `j`."""
    return (0, *accumulate(values))


def _pins_host_matrices(model: Model, pinning: Pinning) -> bool:
    """Whether a pin keeps a tensor on the host that is multiplied; token lookups do not count."""
    return bool(pinning.devices) and any(
        tensor.name in pinning.devices
        and not is_gpu(pinning.devices[tensor.name])
        and (tensor.role is not TensorRole.INPUT or tensor.use is TensorUse.DUPLICATED)
        for tensor in model.loaded_tensors
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    input_bytes: int
    output_bytes: int
    tied_output: Tensor | None
    repeated_bytes: int


def _shared_bytes(model: Model, pinning: Pinning, pinned_dense: dict[DeviceId, int]) -> _Shared:
    inputs = outputs = repeated = 0
    tied = None
    for tensor in model.loaded_tensors:
        if tensor.layer is not None and tensor.use is not TensorUse.REPEATED:
            continue
        device = pinning.devices.get(tensor.name)
        if device is not None:
            pinned_dense[device] = pinned_dense.get(device, 0) + tensor.size_bytes
        elif tensor.use is TensorUse.REPEATED:
            repeated += tensor.size_bytes
        elif tensor.role is TensorRole.INPUT:
            inputs += tensor.size_bytes
            if tensor.use is TensorUse.DUPLICATED:
                tied = tensor
        else:
            outputs += tensor.size_bytes
    return _Shared(
        input_bytes=inputs, output_bytes=outputs, tied_output=tied, repeated_bytes=repeated
    )


def _held_back(
    parts: list[PartBytes],
    strategy: Strategy,
    total: int,
    pinned: Mapping[DeviceId, int],
    *,
    has_slots: bool,
) -> tuple[tuple[PartBytes, ...], tuple[PartBytes, ...]]:
    """Split the free expert parts into those that may go to a GPU and those that must not."""
    residency = strategy.expert_residency
    first_free = min(len(parts), strategy.cpu_expert_layers or 0)
    free: Sequence[PartBytes] = [()] * first_free + parts[first_free:]
    if residency is not None:
        _check_residency(residency, strategy, total, pinned)
    if has_slots:
        return ((),) * len(parts), tuple(parts)
    if residency is not None and residency.vram_fraction is not None:
        pinned_vram = sum(size for device, size in pinned.items() if is_gpu(device))
        share = int(total * residency.vram_fraction) - pinned_vram
        free = fill_from_the_end(free, share, split_layers=strategy.split_layers)
    held = tuple(
        tuple(item for item in whole if item not in kept)
        for whole, kept in zip(parts, free, strict=True)
    )
    return tuple(free), held


def sum_bytes(parts: Sequence[PartBytes]) -> int:
    """Return the bytes of all parts of all layers."""
    return sum(size for layer in parts for _, size in layer)


def fill_from_the_end(
    parts: Sequence[PartBytes], room_bytes: int, *, split_layers: bool
) -> tuple[PartBytes, ...]:
    """Keep whole layers from the last one on, then parts of one, as long as the room lasts."""
    kept: list[PartBytes] = [()] * len(parts)
    for index in range(len(parts) - 1, -1, -1):
        size = sum(part_bytes for _, part_bytes in parts[index])
        if size <= room_bytes:
            kept[index] = parts[index]
            room_bytes -= size
            continue
        if split_layers:
            kept[index] = first_fit(parts[index], room_bytes)
        break
    return tuple(kept)


def first_fit(parts: PartBytes, room_bytes: int) -> PartBytes:
    """Return the parts that fit one after another, in their order."""
    taken: list[tuple[ExpertPart, int]] = []
    for part, size in parts:
        if size <= room_bytes:
            taken.append((part, size))
            room_bytes -= size
    return tuple(taken)


def _ram_limit(residency: ExpertResidency | None, total: int) -> int | None:
    if residency is None or residency.ram_fraction is None:
        return None
    return int(total * residency.ram_fraction)


def _check_residency(
    residency: ExpertResidency, strategy: Strategy, total: int, pinned: Mapping[DeviceId, int]
) -> None:
    vram, ram = residency.vram_fraction, residency.ram_fraction
    told = f"expert_residency wants {_percent(vram)} in VRAM and {_percent(ram)} in RAM"
    if (vram or 0) + (ram or 0) > 1 + 1e-9:
        raise PinConflict(
            f"{told} of {format_gib(total)}, together more than all of it; lower one of the two"
        )
    for tier, share in ((Tier.VRAM, vram), (Tier.RAM, ram)):
        if share and tier not in strategy.hierarchy:
            raise PinConflict(
                f"{told}, and the hierarchy {[str(level) for level in strategy.hierarchy]} "
                f"leaves {tier.value} out; add it or lower the share to 0%"
            )
    left_open = vram is None or ram is None
    if not left_open and (vram or 0) + (ram or 0) < 1 - 1e-9 and Tier.SSD not in strategy.hierarchy:
        raise PinConflict(f"{told}, and the hierarchy has no ssd for the rest; add it")
    pinned_vram = sum(size for device, size in pinned.items() if is_gpu(device))
    if vram is not None and pinned_vram > int(total * vram):
        raise PinConflict(
            f"the pins put {format_gib(pinned_vram)} of experts into VRAM, and expert_residency "
            f"allows {_percent(vram)} of {format_gib(total)}; drop pins or raise the share"
        )
    pinned_ram = pinned.get(HOST, 0)
    if ram is not None and pinned_ram > int(total * ram):
        raise PinConflict(
            f"the pins put {format_gib(pinned_ram)} of experts into RAM, and expert_residency "
            f"allows {_percent(ram)} of {format_gib(total)}; drop pins or raise the share"
        )


def _percent(fraction: float | None) -> str:
    return "any share" if fraction is None else f"{fraction * 100:g}%"
