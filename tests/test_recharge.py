"""A plan charged with its own dry run."""

from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind, MeasuredBuffer, Measurements
from moerun.planning.recharge import charged_as_measured
from tests.builders import GIB, MIB, a_machine, a_model
from tests.planned import planned

PLAN = planned(a_model(), a_machine(gpus=[4 * GIB]))
(CARD,) = PLAN.devices


def measured(**sizes_bytes: int) -> Measurements:
    return Measurements(
        context_tokens=PLAN.context_tokens,
        ubatch_tokens=PLAN.ubatch_tokens,
        buffers=tuple(
            MeasuredBuffer(
                device={"card": CARD, "host": HOST}[name],
                kind=ChargeKind.COMPUTE,
                size_bytes=size_bytes,
            )
            for name, size_bytes in sizes_bytes.items()
        ),
    )


def test_buffers_are_replaced_and_nothing_else_is():
    anew = charged_as_measured(PLAN, measured(card=7 * MIB, host=3 * MIB))

    assert anew is not None
    assert anew.ledger.kind_bytes(CARD, ChargeKind.COMPUTE) == 7 * MIB
    assert anew.ledger.kind_bytes(CARD, ChargeKind.STAGING) == 0
    assert anew.ledger.kind_bytes(HOST, ChargeKind.COMPUTE) == 3 * MIB
    for kind in (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS, ChargeKind.KV_CACHE):
        for device in (CARD, HOST):
            assert anew.ledger.kind_bytes(device, kind) == PLAN.ledger.kind_bytes(device, kind)


def test_what_was_not_measured_stays_as_it_was():
    anew = charged_as_measured(PLAN, measured(card=7 * MIB))
    assert anew is not None
    assert anew.ledger.by_kind(HOST) == PLAN.ledger.by_kind(HOST)


def test_what_does_not_fit_is_no_plan():
    assert charged_as_measured(PLAN, measured(card=5 * GIB)) is None
