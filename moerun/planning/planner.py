"""Decide where a model lives: the one entry, and the order of the steps.

Budgets, fixed charges, pins, dense weights and KV, experts or slots for them, host check - for
every set of GPUs - inside a ladder of contexts; whether slots are worth a trial; then the decisions
and cautions.

Knows: the order of the steps.
Does not know: I/O, clocks, the engine; same inputs give an equal plan.
"""

from dataclasses import replace

from moerun.machine.description import Machine
from moerun.model.description import Model
from moerun.planning.assembly import (
    exceptions,
    layer_placements,
    ledger,
    shared_placements,
    slot_plan,
    streaming_plan,
)
from moerun.planning.choices import extra_buffers, load_mode
from moerun.planning.contexts import Choice, choose_context, next_rung
from moerun.planning.explain import cautions, decisions
from moerun.planning.plan import Measurements, Plan
from moerun.planning.refusals import refuse
from moerun.planning.situation import Problem, pose
from moerun.planning.slot_trial import SlotTrial, weigh_slots
from moerun.planning.strategy import Strategy


def plan_placement(
    model: Model,
    machine: Machine,
    strategy: Strategy,
    *,
    measured: Measurements | None = None,
) -> Plan:
    """Return the plan; raises only DoesNotFit (with remedies that were tried) and PinConflict."""
    problem = pose(model, machine, strategy, measured)
    choice = choose_context(problem)
    if not choice.fits:
        refuse(problem, choice)
    trial = weigh_slots(problem, choice)
    if trial.problem is not None and trial.choice is not None:
        return _written_down(trial.problem, trial.choice, trial)
    return _written_down(problem, choice, trial)


def _written_down(problem: Problem, choice: Choice, trial: SlotTrial) -> Plan:
    at, candidate, strategy = choice.at, choice.candidate, problem.strategy
    assert candidate is not None
    layers = layer_placements(at, candidate)
    shared = shared_placements(at, candidate)
    rung = next_rung(problem, choice)
    draft = Plan(
        model_name=problem.model.name,
        model_digest=problem.model.digest,
        machine_fingerprint=problem.machine.fingerprint,
        strategy=strategy,
        context_tokens=at.context_tokens,
        batch_tokens=strategy.batch_tokens,
        ubatch_tokens=strategy.ubatch_tokens,
        kv_encoding_k=strategy.kv_encoding_k,
        kv_encoding_v=strategy.kv_encoding_v,
        flash_attention=strategy.flash_attention,
        extra_buffers=extra_buffers(problem, candidate),
        load_mode=load_mode(problem, candidate),
        threads=strategy.threads or problem.machine.host.physical_cores,
        devices=candidate.devices,
        layers=layers,
        shared=shared,
        exceptions=exceptions(at, layers, shared),
        budgets=(*(room.budget for room in problem.rooms.gpus), problem.rooms.host.budget),
        ledger=ledger(at, candidate, layers),
        decisions=(),
        cautions=(),
        next_rung=rung,
        streaming=streaming_plan(at, candidate),
        slots=slot_plan(at, candidate, is_trial=trial.problem is not None),
    )
    return replace(
        draft,
        decisions=decisions(problem, choice, draft, trial),
        cautions=cautions(problem, choice, draft),
    )
