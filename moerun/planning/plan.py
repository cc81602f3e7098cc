"""A plan as values: where each tensor lives, what each device is charged, and why.

Knows: the nouns of a decision and the sums over them.
Does not know: how a plan is made, shown, or carried out.
"""

from dataclasses import dataclass
from enum import StrEnum

from moerun.machine.description import HOST, DeviceId, Machine, is_gpu
from moerun.model.description import ExpertPart, Model, Tensor, TensorRole
from moerun.planning.strategy import LoadMode, Strategy, StreamingMode, Toggle


class ChargeKind(StrEnum):
    """What memory on a device is used for."""

    DENSE_WEIGHTS = "dense_weights"
    EXPERT_WEIGHTS = "expert_weights"
    KV_CACHE = "kv_cache"
    RECURRENT_STATE = "recurrent_state"
    COMPUTE = "compute"
    RUNTIME = "runtime"
    STAGING = "staging"
    EXPERT_CACHE = "expert_cache"  # experts that are on SSD, as many as are held at a time
    EXPERT_SLOTS = "expert_slots"  # copies in VRAM of experts that the host has, likely ones
    MARGIN = "margin"


class Confidence(StrEnum):
    """How a charge is known."""

    EXACT = "exact"  # from the header
    MEASURED = "measured"  # by the engine, on this model and placement
    DERIVED = "derived"  # by a formula that a test holds against the engine
    ASSUMED = "assumed"  # a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlacement:
    """Where one layer lives. Its KV cache and state lie with `dense`.

    `experts` has an entry for each part the layer has; `ssd` means mapped, not charged to RAM.
    """

    layer: int
    dense: DeviceId
    experts: tuple[tuple[ExpertPart, DeviceId], ...] = ()

    def expert_device(self, part: ExpertPart) -> DeviceId:
        """Return the device of one part; KeyError when the layer has no such part."""
        return dict(self.experts)[part]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """An exception for one tensor (a pin); it overrides what its layer says."""

    tensor: str
    device: DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Memory that something takes on a device; `layer` is None for what belongs to no layer."""

    device: DeviceId
    kind: ChargeKind
    size_bytes: int
    confidence: Confidence
    layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All charges of a plan. Charges on `ssd` are bytes on storage, not memory."""

    charges: tuple[Charge, ...]

    def total_bytes(self, device: DeviceId) -> int:
        """Return all that is charged to a device, margins included."""
        return sum(charge.size_bytes for charge in self.charges if charge.device == device)

    def used_bytes(self, device: DeviceId) -> int:
        """Return what is charged to a device without its margin."""
        return self.total_bytes(device) - self.kind_bytes(device, ChargeKind.MARGIN)

    def kind_bytes(self, device: DeviceId, kind: ChargeKind) -> int:
        """Return what one kind takes on a device."""
        return sum(c.size_bytes for c in self.charges if c.device == device and c.kind is kind)

    def by_kind(self, device: DeviceId) -> tuple[tuple[ChargeKind, int], ...]:
        """Return the non-zero sums on a device in the order of the enumeration."""
        sums = ((kind, self.kind_bytes(device, kind)) for kind in ChargeKind)
        return tuple((kind, total) for kind, total in sums if total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a device may be charged: the smaller of its free memory and its limit."""

    device: DeviceId
    budget_bytes: int
    total_bytes: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One choice of the planner with its reason: a line of `--explain`."""

    step: str
    subject: str
    chosen: str
    because: str
    instead_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something the user should know before running the plan; `code` is stable for scripts."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredBuffer:
    """A buffer that the engine reported in a dry run."""

    device: DeviceId
    kind: ChargeKind
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the engine said of one model with one context, micro-batch and placement.

    They hold for plans with the same `context_tokens`, `ubatch_tokens` and `gpu_layers` (count of
    layers on each device); other plans use them as an estimate.
    """

    context_tokens: int
    ubatch_tokens: int
    buffers: tuple[MeasuredBuffer, ...]
    gpu_layers: tuple[tuple[DeviceId, int], ...] = ()
    engine_version: str = ""

    def size_bytes(self, device: DeviceId, kind: ChargeKind) -> int | None:
        """Return what was measured on a device for a kind, None when nothing was."""
        sizes = [b.size_bytes for b in self.buffers if b.device == device and b.kind is kind]
        return sum(sizes) if sizes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What the next larger context would cost: what is pushed to a slower tier."""

    context_tokens: int
    expert_bytes_moved: int
    fits: bool
    layers_moved: int = 0  # whole layers, KV cache included, from a GPU to the host
    ends_copy: bool = False  # host weights could no longer be copied to RAM, only mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingPlan:
    """How the experts on SSD stream through a cache in RAM, below slots in VRAM if there are any.

    `limit_bytes` bounds all host memory of the runner; of it `cache_bytes` hold experts, and
    `minimum_bytes` are the least that is worth holding. `cycle_bytes` are the experts that one
    token uses, `expert_bytes` all that stream.
    """

    mode: StreamingMode
    limit_bytes: int
    cache_bytes: int
    minimum_bytes: int
    cycle_bytes: int
    expert_bytes: int
    preload_experts: int | None
    is_adaptive: bool

    @property
    def held_fraction(self) -> float:
        """The share of the streamed experts that the cache holds."""
        return min(1.0, self.cache_bytes / self.expert_bytes) if self.expert_bytes else 0.0

    @property
    def held_cycles(self) -> float:
        """How many tokens' experts the cache holds."""
        return self.cache_bytes / self.cycle_bytes if self.cycle_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLayer:
    """The slots of one layer: `slots` experts of `slot_bytes` each, in the device that computes it.

    An expert is all its matrices, biases and scales. `size_bytes` is what all of them take there,
    their alignment included.
    """

    layer: int
    device: DeviceId
    slots: int
    slot_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """Slots for experts in VRAM; the experts of these layers are on the host, all of them.

    Layers of one device have the same number of slots, or all their experts where those are fewer.
    `is_trial` says that nobody asked for slots: they stay only where an A/B on this machine
    confirms them, by at least `least_gain_fraction` of the time of a token without slots, which is
    the most that whole layers of experts could save in the same memory. `expected_hit_fraction`
    is what recorded routing makes likely, `held_fraction` the share of the layers' experts.
    """

    layers: tuple[SlotLayer, ...]
    expected_hit_fraction: float
    held_fraction: float
    is_trial: bool = False
    least_gain_fraction: float = 0.0

    @property
    def least_slots(self) -> int:
        """Return how many slots the layer with the fewest has; 0 without layers."""
        return min((layer.slots for layer in self.layers), default=0)

    @property
    def slot_count(self) -> int:
        """Return how many slots there are in all layers."""
        return sum(layer.slots for layer in self.layers)

    @property
    def total_bytes(self) -> int:
        """Return what the slots take of all devices."""
        return sum(layer.size_bytes for layer in self.layers)

    def device_bytes(self, device: DeviceId) -> int:
        """Return what the slots take of one device."""
        return sum(layer.size_bytes for layer in self.layers if layer.device == device)

    def slot_bytes(self, device: DeviceId) -> int:
        """Return what one slot in each layer of one device takes."""
        return sum(layer.slot_bytes for layer in self.layers if layer.device == device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One placement of one model on one machine, with its reasons.

    `devices` are the GPUs used, in the order the engine is given them; layers on GPUs run in that
    order, after those on the host. `exceptions` hold pinned tensors.
    """

    model_name: str
    model_digest: str
    machine_fingerprint: str
    strategy: Strategy
    context_tokens: int
    batch_tokens: int
    ubatch_tokens: int
    kv_encoding_k: str
    kv_encoding_v: str
    flash_attention: Toggle
    extra_buffers: bool
    load_mode: LoadMode
    threads: int
    devices: tuple[DeviceId, ...]
    layers: tuple[LayerPlacement, ...]
    shared: tuple[tuple[TensorRole, DeviceId], ...]
    exceptions: tuple[TensorPlacement, ...]
    budgets: tuple[Budget, ...]
    ledger: Ledger
    decisions: tuple[Decision, ...]
    cautions: tuple[Caution, ...]
    next_rung: Rung | None = None
    streaming: StreamingPlan | None = None
    slots: SlotPlan | None = None

    def device_of(self, tensor: Tensor) -> DeviceId:
        """Return where a tensor lives. A duplicated one is answered for its input copy."""
        for exception in self.exceptions:
            if exception.tensor == tensor.name:
                return exception.device
        if tensor.layer is None:
            return dict(self.shared).get(tensor.role, HOST)
        placement = self.layers[tensor.layer]
        if tensor.role is TensorRole.EXPERT and tensor.part is not None:
            return placement.expert_device(tensor.part)
        return placement.dense

    def devices_by_tensor(self, model: Model) -> dict[str, DeviceId]:
        """Return where every loaded tensor lives, in one pass; input copies of duplicated ones."""
        exceptions = {exception.tensor: exception.device for exception in self.exceptions}
        shared = dict(self.shared)
        experts = [dict(placement.experts) for placement in self.layers]
        found: dict[str, DeviceId] = {}
        for tensor in model.loaded_tensors:
            if tensor.name in exceptions:
                found[tensor.name] = exceptions[tensor.name]
            elif tensor.layer is None:
                found[tensor.name] = shared.get(tensor.role, HOST)
            elif tensor.role is TensorRole.EXPERT and tensor.part is not None:
                found[tensor.name] = experts[tensor.layer][tensor.part]
            else:
                found[tensor.name] = self.layers[tensor.layer].dense
        return found

    @property
    def output_device(self) -> DeviceId:
        """Return where the output matrix and the final norms live."""
        return dict(self.shared).get(TensorRole.OUTPUT, HOST)

    def expert_bytes(self, model: Model, device: DeviceId) -> int:
        """Return the bytes of routed experts that live on a device."""
        return sum(
            tensor.size_bytes
            for layer in model.layers
            for tensor in layer.expert_tensors
            if self.device_of(tensor) == device
        )

    @property
    def gpu_layer_count(self) -> int:
        """Return how many layers have their dense part on a GPU."""
        return sum(is_gpu(placement.dense) for placement in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change of the strategy that was checked to fit, as the user would type it."""

    flag: str
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What is missing on a device, what takes the most there, and what would fit."""

    device: DeviceId
    needed_bytes: int
    available_bytes: int
    largest_charges: tuple[Charge, ...]
    would_fit: tuple[Remedy, ...] = ()


def device_memory_bytes(machine: Machine, device: DeviceId) -> int:
    """Return the total memory of a GPU or of the host; 0 for storage."""
    if is_gpu(device):
        return machine.gpu(device).total_bytes
    return machine.host.total_bytes if device == HOST else 0
