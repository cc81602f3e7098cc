"""A plan in a few sums: what it takes of each tier, what a token reads, what is saved.

Knows: which sums people ask for.
Does not know: how the plan was made, or how the sums are shown.
"""

from dataclasses import dataclass
from enum import StrEnum

from moerun.machine.description import HOST, SSD, DeviceId, is_gpu
from moerun.model.description import Layer, Model
from moerun.planning.plan import ChargeKind, Plan
from moerun.planning.strategy import Tier


class Verdict(StrEnum):
    """In a word, where the weights of a model lie."""

    IN_VRAM = "in VRAM"
    IN_VRAM_AND_RAM = "VRAM+RAM"
    IN_RAM = "in RAM"
    NEEDS_SSD = "needs SSD"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShare:
    """The routed experts on one device, and how much of them one token reads on average.

    What streams is read from SSD in the share that a cache does not hold, as if all experts were
    chosen alike; real routing repeats itself, and reads less. Where slots in VRAM hold copies, all
    is read there, and what lies below in the share of requests that may miss.
    """

    device: DeviceId
    size_bytes: int
    per_token_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """The sums. Margins are not counted; `full_bytes` is what memory would hold without SSD.

    `cache_bytes` of the RAM hold experts that are on SSD as well.
    """

    vram_bytes: int
    ram_bytes: int
    ssd_bytes: int
    cache_bytes: int
    full_bytes: int
    experts: tuple[ExpertShare, ...]
    verdict: Verdict

    @property
    def memory_bytes(self) -> int:
        """Return what VRAM and RAM hold together."""
        return self.vram_bytes + self.ram_bytes

    @property
    def saved_bytes(self) -> int:
        """Return how much less that is than with everything in memory."""
        return self.full_bytes - self.memory_bytes


def summarize(model: Model, plan: Plan) -> PlanSummary:
    """Return the sums of a plan."""
    vram_bytes = sum(plan.ledger.used_bytes(device) for device in plan.devices)
    ram_bytes = plan.ledger.used_bytes(HOST)
    ssd_bytes = plan.ledger.total_bytes(SSD)
    cache_bytes = min(ssd_bytes, plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_CACHE))
    return PlanSummary(
        vram_bytes=vram_bytes,
        ram_bytes=ram_bytes,
        ssd_bytes=ssd_bytes,
        cache_bytes=cache_bytes,
        full_bytes=vram_bytes + ram_bytes - cache_bytes + ssd_bytes,
        experts=_shares(model, plan),
        verdict=_verdict(plan),
    )


def layer_tiers(model: Model, plan: Plan) -> tuple[tuple[Tier, ...], ...]:
    """Return for each layer the tiers of its experts, fastest first; a layer without has none.

    Of a model without experts they are the tiers of the dense weights.
    """
    pinned = {exception.tensor: exception.device for exception in plan.exceptions}
    if not model.is_sparse:
        return tuple(
            (tier_of(plan.layers[layer.index].dense),) if layer.dense_tensors else ()
            for layer in model.layers
        )
    return tuple(_tiers_of(layer, plan, pinned) for layer in model.layers)


def tier_of(device: DeviceId) -> Tier:
    """Return the tier that a device belongs to."""
    if is_gpu(device):
        return Tier.VRAM
    return Tier.SSD if device == SSD else Tier.RAM


def _tiers_of(layer: Layer, plan: Plan, pinned: dict[str, DeviceId]) -> tuple[Tier, ...]:
    placement = plan.layers[layer.index]
    parts = dict(placement.experts)
    tiers = {
        tier_of(pinned.get(tensor.name) or (parts[tensor.part] if tensor.part else placement.dense))
        for tensor in layer.expert_tensors
    }
    return tuple(tier for tier in Tier if tier in tiers)


def _shares(model: Model, plan: Plan) -> tuple[ExpertShare, ...]:
    shares = []
    missed_fraction = _missed_fraction(model, plan)
    for device in (*plan.devices, HOST, SSD):
        size_bytes = plan.ledger.kind_bytes(device, ChargeKind.EXPERT_WEIGHTS)
        per_token_bytes = size_bytes * model.experts_used // max(1, model.expert_count)
        if device == SSD and plan.streaming is not None:
            per_token_bytes = int(per_token_bytes * (1 - plan.streaming.held_fraction))
        if not is_gpu(device):
            per_token_bytes = int(per_token_bytes * missed_fraction)
        if plan.slots is not None:
            size_bytes += plan.ledger.kind_bytes(device, ChargeKind.EXPERT_SLOTS)
            per_token_bytes += plan.slots.slot_bytes(device) * model.experts_used
        if size_bytes:
            shares.append(
                ExpertShare(device=device, size_bytes=size_bytes, per_token_bytes=per_token_bytes)
            )
    return tuple(shares)


def _missed_fraction(model: Model, plan: Plan) -> float:
    """Return the share of requests for experts below VRAM that slots do not answer."""
    below_bytes = sum(plan.ledger.kind_bytes(d, ChargeKind.EXPERT_WEIGHTS) for d in (HOST, SSD))
    if plan.slots is None or not below_bytes:
        return 1.0
    slotted_bytes = sum(plan.slots.slot_bytes(device) for device in plan.devices)
    slotted_bytes *= model.expert_count
    return 1 - plan.slots.expected_hit_fraction * min(1.0, slotted_bytes / below_bytes)


def _verdict(plan: Plan) -> Verdict:
    if plan.ledger.total_bytes(SSD):
        return Verdict.NEEDS_SSD
    if not plan.devices:
        return Verdict.IN_RAM
    has_host_layers = plan.gpu_layer_count < len(plan.layers)
    if has_host_layers or plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_WEIGHTS):
        return Verdict.IN_VRAM_AND_RAM
    return Verdict.IN_VRAM
