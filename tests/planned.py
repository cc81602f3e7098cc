"""Plans for tests that add up by hand: no margins, a fixed context, audited at once.

Knows: the planner and its audit.
Does not know: which plan a test wants.
"""

from moerun.machine.description import Machine
from moerun.model.description import Model
from moerun.planning.audit import audit
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy

FIXED = Strategy(context_tokens=4096, gpu_margin_bytes=0, host_margin_bytes=0)


def planned(model: Model, machine: Machine, strategy: Strategy = FIXED) -> Plan:
    """Return a plan whose audit finds nothing."""
    plan = plan_placement(model, machine, strategy)
    assert audit(plan, model, machine) == ()
    return plan
