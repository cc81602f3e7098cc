"""What a plan costs and saves, in bytes: against full loading, and for each token.

Knows: sums over a plan and its model.
Does not know: speeds; rates belong to who measured them.
"""

from dataclasses import dataclass

from moerun.machine.description import HOST, SSD, DeviceId, is_gpu
from moerun.model.description import Model, TensorRole
from moerun.planning.plan import ChargeKind, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Memory that the plan takes, beside what loading everything into one place would take.

    `full_bytes` are all weights, KV cache, state and compute buffers in VRAM, as plain loading
    with all layers offloaded would do; `ram_bytes` do not count what lies on SSD.
    """

    full_bytes: int
    vram_bytes: int
    ram_bytes: int
    ssd_bytes: int

    @property
    def saved_vram_bytes(self) -> int:
        """Return the VRAM that full loading would take and the plan does not."""
        return self.full_bytes - self.vram_bytes

    @property
    def saved_bytes(self) -> int:
        """Return the memory of any kind that the plan does without."""
        return max(0, self.full_bytes - self.vram_bytes - self.ram_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTraffic:
    """Weights that one token reads from a device: all dense ones, and the used experts."""

    device: DeviceId
    dense_bytes: int
    expert_bytes: int


_KEPT = (
    ChargeKind.DENSE_WEIGHTS,
    ChargeKind.EXPERT_WEIGHTS,
    ChargeKind.KV_CACHE,
    ChargeKind.RECURRENT_STATE,
    ChargeKind.COMPUTE,
)


def memory_saved(plan: Plan, model: Model) -> Saving:
    """Return what the plan takes against loading all of the model into VRAM."""
    state = sum(
        charge.size_bytes
        for charge in plan.ledger.charges
        if charge.kind in (ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE, ChargeKind.COMPUTE)
    )
    return Saving(
        full_bytes=model.weight_bytes + state,
        vram_bytes=sum(_kept_bytes(plan, device) for device in plan.devices),
        ram_bytes=_kept_bytes(plan, HOST),
        ssd_bytes=plan.ledger.total_bytes(SSD),
    )


def token_traffic(plan: Plan, model: Model) -> tuple[TokenTraffic, ...]:
    """Return what one token reads from each device, on average over experts used evenly.

    Of an input embedding a token reads one row, which is not counted.
    """
    dense: dict[DeviceId, int] = {}
    experts: dict[DeviceId, int] = {}
    devices = plan.devices_by_tensor(model)
    for tensor in model.loaded_tensors:
        device = devices[tensor.name]
        if tensor.role is TensorRole.EXPERT:
            experts[device] = experts.get(device, 0) + tensor.size_bytes
        elif tensor.role is not TensorRole.INPUT:
            dense[device] = dense.get(device, 0) + tensor.size_bytes
        elif model.has_tied_output and tensor.name == "token_embd.weight":
            place = plan.output_device
            dense[place] = dense.get(place, 0) + tensor.size_bytes
    count = max(1, model.expert_count)
    return tuple(
        TokenTraffic(
            device=device,
            dense_bytes=dense.get(device, 0),
            expert_bytes=experts.get(device, 0) * model.experts_used // count,
        )
        for device in (*plan.devices, HOST, SSD)
        if device in dense or device in experts
    )


def expert_share(plan: Plan, model: Model) -> tuple[tuple[DeviceId, float], ...]:
    """Return the real share of all expert bytes on each device that has any."""
    total = model.expert_bytes
    return tuple(
        (device, plan.ledger.kind_bytes(device, ChargeKind.EXPERT_WEIGHTS) / total)
        for device in (*plan.devices, HOST, SSD)
        if total and plan.ledger.kind_bytes(device, ChargeKind.EXPERT_WEIGHTS)
    )


def vram_expert_bytes(plan: Plan) -> int:
    """Return the bytes of experts on GPUs."""
    return sum(
        charge.size_bytes
        for charge in plan.ledger.charges
        if charge.kind is ChargeKind.EXPERT_WEIGHTS and is_gpu(charge.device)
    )


def _kept_bytes(plan: Plan, device: DeviceId) -> int:
    return sum(plan.ledger.kind_bytes(device, kind) for kind in _KEPT)
