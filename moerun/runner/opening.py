"""What it takes to bring a model into memory, the same for a verb and for the server.

Knows: which functions decide on a load, and what a record says of it.
Does not know: where settings come from, what is printed, or who asks.
"""

import time
from dataclasses import replace
from pathlib import Path

from moerun import __version__
from moerun.engine.abi import installed_version
from moerun.engine.arguments import EngineArgs, engine_args
from moerun.engine.self_check import plain_arguments
from moerun.experts.order import StreamingOrder, streaming_order, without_slots
from moerun.experts.trace import traced_order
from moerun.experts.tuning import lost_slots
from moerun.machine.description import HOST, SSD, Machine
from moerun.machine.probe_processes import process_mark
from moerun.model.description import Model
from moerun.places import state_folder
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode
from moerun.runner.loading import Deciding, Loaded
from moerun.runner.records import RunnerRecord


def deciding_on(
    model: Model,
    machine: Machine,
    *,
    is_plain: bool,
    trace_path: str | None = None,
    sequences: int = 1,
) -> Deciding:
    """Return the functions by which a model is placed on a machine.

    `is_plain` loads without overrides, devices and repacking. Routing is added to the file
    `trace_path`. A model whose experts stream makes one answer at a time, whatever `sequences`
    says: answers side by side ask for more experts in each step than its cache was planned for.
    """

    def lost(plan: Plan) -> str | None:
        order = streaming_order(plan, model, machine, state_folder=str(state_folder()))
        if order is None or is_plain:
            return None
        return lost_slots(order, engine_version=installed_version() or "")

    def streaming(plan: Plan) -> StreamingOrder | None:
        order = streaming_order(plan, model, machine, state_folder=str(state_folder()))
        if is_plain and order is not None:
            order = without_slots(order)
        if trace_path is None:
            return order
        return traced_order(model, order, trace_path)

    def arguments(plan: Plan) -> EngineArgs:
        args = engine_args(plan, model, machine)
        if is_plain:
            return plain_arguments(args)
        streams = args.load_mode is LoadMode.STREAM
        return args if streams else replace(args, sequences=sequences)

    return Deciding(
        plan=lambda strategy, measured: plan_placement(model, machine, strategy, measured=measured),
        arguments=arguments,
        streaming=streaming,
        lost_slots=lost,
    )


def record_of(
    model: Model, machine: Machine, loaded: Loaded, *, pid: int, mode: str
) -> RunnerRecord:
    """Return what is written down of a loaded model for `moerun stat`."""
    devices = (*loaded.plan.devices, HOST, SSD)
    return RunnerRecord(
        pid=pid,
        process_mark=process_mark(pid) or "",
        started_at_s=time.time(),
        moerun_version=__version__,
        engine_version=loaded.report.engine_version,
        model_name=model.name,
        model_paths=tuple(str(Path(file.path).absolute()) for file in model.files),
        mode=mode,
        context_tokens=loaded.report.context_tokens,
        load_mode=loaded.args.load_mode.value,
        labels=tuple((device, machine.label(device)) for device in devices),
        ledger=loaded.plan.ledger,
        buffers=loaded.report.buffers,
    )
