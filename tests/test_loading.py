from dataclasses import replace

import pytest

from moerun.engine.arguments import engine_args
from moerun.engine.interface import LoadReport
from moerun.errors import EngineOutOfMemory, EngineRefused, SlotsRefused
from moerun.machine.description import HOST
from moerun.planning.plan import ChargeKind, MeasuredBuffer, Measurements, Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy, StreamingMode
from moerun.runner.loading import Deciding, Voice, load_as_planned, measured_plan, without_slots
from tests.builders import GIB, MIB, a_machine, a_model


class FakeRunner:
    """Measures a fixed compute size and fails the first loads as told."""

    def __init__(self, *failures, compute_bytes=MIB):
        self.failures = list(failures)
        self.compute_bytes = compute_bytes
        self.calls = []

    def measure(self, args):
        self.calls.append("measure")
        devices = (HOST, *(reference.id for reference in args.devices))
        return Measurements(
            context_tokens=args.context_tokens,
            ubatch_tokens=args.ubatch_tokens,
            buffers=tuple(
                MeasuredBuffer(
                    device=device, kind=ChargeKind.COMPUTE, size_bytes=self.compute_bytes
                )
                for device in devices
            ),
        )

    def load(self, args, *, streaming=None, on_progress=None):
        self.calls.append("load")
        if self.failures:
            raise self.failures.pop(0)
        return LoadReport(
            buffers=(), context_tokens=args.context_tokens, load_s=0.1, engine_version="fake"
        )

    def restart(self):
        self.calls.append("restart")


class Rig:
    """A model of 1.3 GiB on a machine with one card of 2 GiB, and all that was said."""

    def __init__(self, *, gpus=(2 * GIB,), ram=64 * GIB, model=None):
        self.model = model or a_model()
        self.machine = a_machine(gpus=gpus, ram=ram)
        self.announced: list[Plan] = []
        self.warnings: list[str] = []
        self.deciding = Deciding(
            plan=lambda strategy, measured: plan_placement(
                self.model, self.machine, strategy, measured=measured
            ),
            arguments=lambda plan: engine_args(plan, self.model, self.machine),
        )
        self.voice = Voice(announce=self.announced.append, warn=self.warnings.append)

    def load(self, runner, strategy=None):
        return load_as_planned(
            runner, strategy or Strategy(), deciding=self.deciding, voice=self.voice
        )


def full(device, requested_bytes=100 * MIB):
    return EngineOutOfMemory("No room.", device=device, requested_bytes=requested_bytes)


def test_a_model_is_measured_before_it_is_loaded_by_the_measured_plan():
    rig, runner = Rig(), FakeRunner(compute_bytes=123 * MIB)
    loaded = rig.load(runner)
    assert runner.calls == ["measure", "load"]
    card = rig.machine.gpus[0].id
    assert loaded.plan.ledger.kind_bytes(card, ChargeKind.COMPUTE) == 123 * MIB
    assert rig.announced == [loaded.plan]
    assert rig.warnings == []


def test_figures_that_move_layers_are_measured_again():
    # With most of the card taken by compute buffers, fewer layers fit than were measured.
    rig = Rig(gpus=(1500 * MIB,), model=a_model(dense=200 * MIB, expert=0))
    runner = FakeRunner(compute_bytes=700 * MIB)
    measured_plan(runner, Strategy(gpu_margin_bytes=0), deciding=rig.deciding)
    assert runner.calls.count("measure") > 1
    assert runner.calls.count("measure") <= 4


def test_plans_that_call_for_each_other_end_with_figures_of_their_own():
    class Swinging(FakeRunner):
        """Measures much for many layers and little for few, so that no plan confirms itself."""

        def measure(self, args):
            self.compute_bytes = (700 if args.n_gpu_layers > 3 else 100) * MIB
            return super().measure(args)

    rig = Rig(gpus=(1500 * MIB,), model=a_model(dense=200 * MIB, expert=0))
    runner = Swinging()
    plan = measured_plan(runner, Strategy(gpu_margin_bytes=0), deciding=rig.deciding)

    assert runner.calls.count("measure") == 4
    (card,) = plan.devices
    assert plan.ledger.kind_bytes(card, ChargeKind.COMPUTE) == runner.compute_bytes


def test_a_full_device_gets_one_more_plan_with_a_larger_margin_and_a_fresh_process():
    rig = Rig()
    card = rig.machine.gpus[0].id
    runner = FakeRunner(full(card))
    loaded = rig.load(runner)
    assert runner.calls == ["measure", "load", "restart", "measure", "load"]
    assert loaded.plan.strategy.gpu_margin_bytes == 1024 * MIB
    assert len(rig.announced) == 2
    [warning] = rig.warnings
    assert card in warning
    assert "1.0 GiB kept free" in warning
    assert "instead of 0.5 GiB" in warning
    assert "100.0 MiB" in warning or "0.1 GiB" in warning


def test_a_model_that_cannot_have_slots_is_placed_without_and_named():
    rig = Rig()
    runner = FakeRunner(SlotsRefused("experts of odd-arch cannot be read from slots: so"))
    loaded = rig.load(runner, Strategy(streaming=StreamingMode.SLOTS))
    assert runner.calls == ["measure", "load", "restart", "measure", "load"]
    assert rig.announced[0].slots is not None
    assert loaded.plan.slots is None
    assert loaded.plan.strategy.streaming is StreamingMode.OFF
    assert rig.warnings == [
        "experts of odd-arch cannot be read from slots: so; they are placed without slots"
    ]


def test_slots_that_lost_their_trial_are_off_and_that_is_said():
    rig = Rig()
    notes: list[str] = []
    rig.voice = replace(rig.voice, note=notes.append)
    rig.deciding = replace(
        rig.deciding,
        lost_slots=lambda plan: "off 3.0 ms, slots 4.0 ms" if plan.slots is not None else None,
    )
    loaded = rig.load(FakeRunner(), Strategy(streaming=StreamingMode.SLOTS))
    assert loaded.plan.slots is None
    assert notes == [
        "slots for experts lost their trial here, so they are off: off 3.0 ms, slots 4.0 ms"
    ]
    assert [plan.slots for plan in rig.announced] == [None]


def test_a_plan_that_would_try_slots_again_is_told_not_to():
    plan = Rig().deciding.plan(Strategy(), None)
    assert without_slots(Strategy(), plan).expert_slots == 0
    assert without_slots(Strategy(), plan).streaming is StreamingMode.AUTO


def test_a_device_that_is_full_without_slots_gets_one_more_plan():
    rig = Rig()
    card = rig.machine.gpus[0].id
    runner = FakeRunner(SlotsRefused("odd"), full(card))
    rig.load(runner, Strategy(streaming=StreamingMode.SLOTS))
    assert runner.calls.count("load") == 3
    assert len(rig.warnings) == 2


def test_a_margin_of_nothing_grows_by_a_tenth_of_the_budget():
    rig = Rig()
    runner = FakeRunner(full(rig.machine.gpus[0].id))
    loaded = rig.load(runner, Strategy(gpu_margin_bytes=0))
    assert loaded.plan.strategy.gpu_margin_bytes == 2 * GIB // 10


def test_the_hosts_margin_grows_when_the_host_is_full():
    rig = Rig()
    loaded = rig.load(FakeRunner(full("host")))
    assert loaded.plan.strategy.host_margin_bytes == 2 * GIB + 64 * GIB // 10
    assert loaded.plan.strategy.gpu_margin_bytes is None


def test_a_second_failure_is_the_end_with_something_to_try():
    rig = Rig()
    card = rig.machine.gpus[0].id
    runner = FakeRunner(full(card), full(card))
    with pytest.raises(EngineOutOfMemory, match="also with a larger margin") as error:
        rig.load(runner)
    assert runner.calls.count("load") == 2
    assert "--ctx" in (error.value.hint or "")
    assert error.value.device == card


def test_when_no_plan_leaves_more_free_the_first_failure_is_told_with_that():
    rig = Rig(gpus=(), ram=4 * GIB)
    with pytest.raises(EngineOutOfMemory, match="no plan leaves more free"):
        rig.load(FakeRunner(full("host")), Strategy(host_margin_bytes=2000 * MIB, hierarchy=RAM))


def test_a_refusal_is_passed_on_at_once():
    rig, runner = Rig(), FakeRunner(EngineRefused("bad tensor"))
    with pytest.raises(EngineRefused, match="bad tensor"):
        rig.load(runner)
    assert runner.calls == ["measure", "load"]


def test_arguments_follow_the_second_plan():
    rig = Rig()
    loaded = rig.load(FakeRunner(full(rig.machine.gpus[0].id)))
    assert loaded.args == engine_args(loaded.plan, rig.model, rig.machine)
    assert replace(loaded.args) == loaded.args


RAM = Strategy().hierarchy[:2]
