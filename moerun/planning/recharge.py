"""A plan charged anew with what the engine measured of that very plan, and of no other.

Knows: which charges a dry run replaces, and whether the sums still fit.
Does not know: how the plan was found; nothing moves.
"""

from dataclasses import replace

from moerun.machine.description import HOST, DeviceId
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger, Measurements, Plan


def charged_as_measured(plan: Plan, measured: Measurements) -> Plan | None:
    """Return the plan with the compute buffers of its own dry run; None where they do not fit."""
    devices = {buffer.device for buffer in measured.buffers if buffer.kind is ChargeKind.COMPUTE}
    kept = [charge for charge in plan.ledger.charges if not _is_replaced(charge, devices)]
    anew = [
        Charge(
            device=device,
            kind=ChargeKind.COMPUTE,
            size_bytes=measured.size_bytes(device, ChargeKind.COMPUTE) or 0,
            confidence=Confidence.MEASURED,
        )
        for device in sorted(devices)
    ]
    ledger = Ledger(charges=(*kept, *anew))
    fits = all(ledger.total_bytes(budget.device) <= budget.budget_bytes for budget in plan.budgets)
    return replace(plan, ledger=ledger) if fits else None


def _is_replaced(charge: Charge, devices: set[DeviceId]) -> bool:
    """Whether a measured buffer holds what is charged; staging of a GPU is part of its buffer."""
    if charge.device not in devices:
        return False
    is_staging = charge.kind is ChargeKind.STAGING and charge.device != HOST
    return is_staging or charge.kind is ChargeKind.COMPUTE
