"""`moerun plan --exact`: the plan by the engine's own dry run, and what formulas are off by.

Knows: when the engine can be asked, and what is said of devices where it cannot.
Does not know: how answers are remembered, or how a plan is shown.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from moerun.cli.options import PlacementFlags

if TYPE_CHECKING:
    from pathlib import Path

    from moerun.machine.description import Machine
    from moerun.model.description import Model
    from moerun.planning.plan import Plan
    from moerun.planning.strategy import Strategy
    from moerun.runner.exact import ExactPlan


def refuse_imagined(machine: "Machine", flags: PlacementFlags) -> None:
    """Refuse to ask this machine's engine about devices that are not here."""
    from moerun.errors import UsageError

    what = "--machine" if flags.machine_file is not None else None
    if what is None and not machine.gpus and flags.given("vram_limit") is not None:
        what = "--vram"
    if what is not None:
        raise UsageError(
            f"--exact: the engine can only be asked about devices that are here, and {what} "
            "names others",
            hint=f"leave out --exact; {formula_sentence()}",
        )


def plan_exactly(model: "Model", machine: "Machine", strategy: "Strategy") -> "ExactPlan":
    """Plan with dry runs of the engine in a process of its own; known answers start none."""
    from moerun.engine.abi import installed_version, require_version
    from moerun.engine.installation import installed_backends
    from moerun.places import log_folder, state_folder
    from moerun.runner.exact import Origin, RememberedRuns, exact_plan
    from moerun.runner.opening import deciding_on
    from moerun.runner.parent import Runner

    require_version()
    build = " ".join([installed_version() or "", *sorted(installed_backends())])
    with ExitStack() as stack:
        started: list[Runner] = []

        def ask() -> Runner:
            if not started:
                started.append(stack.enter_context(Runner(log_folder=log_folder())))
            return started[0]

        origin = Origin(model_digest=model.digest, engine_build=build)
        runs = RememberedRuns(ask, origin, folder=state_folder())
        return exact_plan(runs, strategy, deciding=deciding_on(model, machine, is_plain=False))


def formula_note(plan: "Plan", machine: "Machine", *, is_elsewhere: bool) -> str | None:
    """Return how far the charges of devices may be off that no engine can be asked for.

    They are imagined, or those of a machine that `is_elsewhere`; None where none is used.
    """
    if any(is_elsewhere or machine.gpu(device).is_hypothetical for device in plan.devices):
        return formula_sentence()
    return None


def formula_sentence() -> str:
    """Return what the formula for compute buffers is known to be off by."""
    from moerun.planning.fixed_charges import FORMULA_FRACTIONS

    least, most = FORMULA_FRACTIONS
    return (
        "compute buffers of devices that are not here are by formula, which came out "
        f"{(1 - least) * 100:.0f}% below to {(most - 1) * 100:.0f}% above dry runs of the engine; "
        "weights and KV cache are exact"
    )


def exact_lines(found: "ExactPlan", machine: "Machine", model_path: "Path") -> list[str]:
    """Return a line for each buffer that the engine named, beside the formula's answer."""
    from moerun.report.buffer_view import buffer_lines

    if not found.rows:
        return [f"The engine's figures for {model_path.name} changed the placement itself."]
    return ["", "Formula beside the engine's dry run:", *buffer_lines(found.rows, machine.label)]
