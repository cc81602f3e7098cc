"""The procedure of loading: decide, measure, decide again, load, and once more when it is full.

Beliefs cost nothing to check here: the engine lays everything out in a dry run first, and the plan
is made again with what it said. A device that runs out of memory all the same, because something
else took it meanwhile, gets one more plan with a larger margin.

Knows: the order of the steps, and how margins grow.
Does not know: how a plan is found, what the arguments mean, or how anything is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import LoadReport
from moerun.errors import EngineOutOfMemory, PlanError, SlotsRefused
from moerun.experts.order import StreamingOrder
from moerun.machine.description import HOST, DeviceId
from moerun.planning.plan import Measurements, Plan
from moerun.planning.recharge import charged_as_measured
from moerun.planning.strategy import Strategy, StreamingMode
from moerun.units import format_gib

_MOST_DRY_RUNS: Final = 3
_MARGIN_STEP_PARTS: Final = 10  # of what the device may be charged


class Measuring(Protocol):
    """What can ask the engine."""

    def measure(self, args: EngineArgs) -> Measurements:
        """Ask the engine what the arguments would allocate."""
        ...


class LoadingRunner(Measuring, Protocol):
    """What is asked of a runner while loading."""

    def load(
        self,
        args: EngineArgs,
        *,
        streaming: StreamingOrder | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> LoadReport:
        """Load."""
        ...

    def restart(self) -> None:
        """Start again with a fresh process."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """The functions that decide: a plan for a strategy and what was measured, its arguments.

    `streaming` tells how the experts of a plan stream, None where none do, and `lost_slots` why
    slots that a plan would try were found to be no gain here, None where they were not.
    """

    plan: Callable[[Strategy, Measurements | None], Plan]
    arguments: Callable[[Plan], EngineArgs]
    streaming: Callable[[Plan], StreamingOrder | None] = lambda plan: None
    lost_slots: Callable[[Plan], str | None] = lambda plan: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the procedure speaks: a plan before it is loaded, a warning, the progress, a note.

    `label` is what people call a device.
    """

    announce: Callable[[Plan], None]
    warn: Callable[[str], None]
    progress: Callable[[float], None] | None = None
    label: Callable[[DeviceId], str] = str
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in memory: the plan that was carried out, its arguments, what loading gave."""

    plan: Plan
    args: EngineArgs
    report: LoadReport
    streaming: StreamingOrder | None = None


def load_as_planned(
    runner: LoadingRunner, strategy: Strategy, *, deciding: Deciding, voice: Voice
) -> Loaded:
    """Load by a measured plan; when a device is full, once more by one with a larger margin.

    Where the engine cannot give this model slots for its experts, they are placed without.
    Raises PlanError when nothing fits, EngineOutOfMemory when the second plan does not fit
    either, and whatever the engine refuses.
    """
    plan = measured_plan(runner, strategy, deciding=deciding)
    if (because := deciding.lost_slots(plan)) is not None:
        voice.note(f"slots for experts lost their trial here, so they are off: {because}")
        strategy = without_slots(strategy, plan)
        plan = measured_plan(runner, strategy, deciding=deciding)
    try:
        return _load_twice(runner, strategy, plan, deciding, voice)
    except SlotsRefused as refused:
        voice.warn(f"{refused.message.rstrip('.')}; they are placed without slots")
        runner.restart()
        strategy = without_slots(strategy, plan)
        plan = measured_plan(runner, strategy, deciding=deciding)
        return _load_twice(runner, strategy, plan, deciding, voice)


def _load_twice(
    runner: LoadingRunner, strategy: Strategy, plan: Plan, deciding: Deciding, voice: Voice
) -> Loaded:
    """Load by a plan, and when a device is full, once more by one with a larger margin."""
    try:
        return _load(runner, plan, deciding, voice)
    except EngineOutOfMemory as full:
        device = _full_device(full, plan)
        careful = with_larger_margin(strategy, plan, device)
        margins = tuple(_margin_bytes(each, plan, device) for each in (strategy, careful))
        voice.warn(_say_again(full, *margins, label=voice.label(device)))
        runner.restart()  # what the failed load left on the device goes with its process
        try:
            plan = measured_plan(runner, careful, deciding=deciding)
        except PlanError as error:
            raise _give_up(full, f"and no plan leaves more free: {error.message}") from full
    try:
        return _load(runner, plan, deciding, voice)
    except EngineOutOfMemory as full:
        raise _give_up(full, "also with a larger margin.") from full


def measured_plan(runner: Measuring, strategy: Strategy, *, deciding: Deciding) -> Plan:
    """Return a plan that was made with the engine's own figures for its own shape.

    Figures hold for one context, micro-batch and count of layers on each device, so a plan that
    they change in these is measured again. Two devices of one size may pass a layer to and fro for
    ever; then the last plan stands, charged with what was measured of it.
    """
    plan = deciding.plan(strategy, None)
    for _ in range(_MOST_DRY_RUNS):
        measured = runner.measure(deciding.arguments(plan))
        shape = _shape(plan)
        plan = deciding.plan(strategy, measured)
        if _shape(plan) == shape:
            return plan
    own = charged_as_measured(plan, runner.measure(deciding.arguments(plan)))
    return plan if own is None else own


def without_slots(strategy: Strategy, plan: Plan) -> Strategy:
    """Return the strategy of a plan that has slots, without: experts lie where they fit best."""
    if strategy.streaming is StreamingMode.SLOTS:
        below = StreamingMode.OFF if plan.streaming is None else plan.streaming.mode
        return replace(strategy, streaming=below, expert_slots=None)
    return replace(strategy, expert_slots=0)


def with_larger_margin(strategy: Strategy, plan: Plan, device: DeviceId) -> Strategy:
    """Return the strategy with twice the margin on the kind of device, and at least a tenth more.

    The tenth is of what the device may be charged.
    """
    budget = next((b.budget_bytes for b in plan.budgets if b.device == device), 0)
    step_bytes = budget // _MARGIN_STEP_PARTS
    now_bytes = _margin_bytes(strategy, plan, device)
    larger_bytes = max(2 * now_bytes, now_bytes + step_bytes)
    if device == HOST:
        return replace(strategy, host_margin_bytes=larger_bytes)
    return replace(strategy, gpu_margin_bytes=larger_bytes)


def _load(runner: LoadingRunner, plan: Plan, deciding: Deciding, voice: Voice) -> Loaded:
    args = deciding.arguments(plan)
    voice.announce(plan)
    streaming = deciding.streaming(plan)
    report = runner.load(args, streaming=streaming, on_progress=voice.progress)
    return Loaded(plan=plan, args=args, report=report, streaming=streaming)


def _shape(plan: Plan) -> object:
    counts = dict.fromkeys(plan.devices, 0)
    for layer in plan.layers:
        if layer.dense in counts:
            counts[layer.dense] += 1
    return plan.context_tokens, plan.ubatch_tokens, tuple(sorted(counts.items()))


def _full_device(full: EngineOutOfMemory, plan: Plan) -> DeviceId:
    """Return the device that the engine named, the likeliest one when it named none."""
    if full.device in (HOST, *plan.devices):
        return DeviceId(full.device or HOST)
    return plan.devices[0] if plan.devices else HOST


def _margin_bytes(strategy: Strategy, plan: Plan, device: DeviceId) -> int:
    if device == HOST:
        return strategy.host_margin_of(
            next((b.total_bytes for b in plan.budgets if b.device == HOST), 0)
        )
    own = strategy.gpu_margin_bytes
    return strategy.default_gpu_margin_bytes if own is None else own


def _say_again(full: EngineOutOfMemory, before_bytes: int, after_bytes: int, *, label: str) -> str:
    asked = ""
    if full.requested_bytes:
        asked = f" ({format_gib(full.requested_bytes)} more were asked for)"
    return (
        f"{label} ran out of memory while loading{asked}; planning once more with "
        f"{format_gib(after_bytes)} kept free on it instead of {format_gib(before_bytes)}"
    )


def _give_up(full: EngineOutOfMemory, why: str) -> EngineOutOfMemory:
    return EngineOutOfMemory(
        f"{full.message.rstrip('.')}, {why}",
        device=full.device,
        requested_bytes=full.requested_bytes,
        hint="pass a smaller --ctx, a lower --vram or --ram, or end other programs that use "
        "the memory",
    )
