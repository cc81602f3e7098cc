"""A model from its name to the point where it answers, for every verb that runs one.

Ask settings, model and machine; decide with the engine's figures; load in a runner process; leave
a record while it lives.

Knows: the order, and what is said on standard error on the way.
Does not know: prompts or answers.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moerun.cli.options import PlacementFlags

if TYPE_CHECKING:
    from moerun.experts.counters import StreamingSample
    from moerun.machine.description import DeviceId, Machine
    from moerun.model.description import Model
    from moerun.planning.plan import Plan
    from moerun.planning.strategy import Strategy
    from moerun.report.progress_view import LoadingLine
    from moerun.runner.buffer_report import BufferRow
    from moerun.runner.loading import Deciding, Loaded, Voice
    from moerun.runner.parent import Runner
    from moerun.runner.record_keeper import RecordKeeper
    from moerun.runner.records import RunnerRecord
    from moerun.settings.description import LoadedSettings
    from moerun.store.profile import ModelProfile

# Notes that hold one of these are of devices that may make a run faster; `doctor` prints all.
_DEVICE_WORDS: Final = ("GPU", "card", "worker", "rebuild")
_WITHOUT_WHICH_NOTHING_LOADS: Final = ("version", "library")  # steps of the engine's check


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan is made of. `is_plain` loads without overrides, devices and repacking.

    `trace_path` is a file that was begun, to which routing is to be added. `profile` is what the
    model carries beside its weights, None where it carries nothing.
    """

    settings: "LoadedSettings"
    model: "Model"
    machine: "Machine"
    strategy: "Strategy"
    is_plain: bool
    trace_path: str | None = None
    profile: "ModelProfile | None" = None


class OpenedModel:
    """A model in memory, and the record of its runner."""

    def __init__(self, asked: Asked, runner: "Runner", loaded: "Loaded", mode: str) -> None:
        self.runner = runner
        self._hold(asked, loaded, mode)

    def _hold(self, asked: Asked, loaded: "Loaded", mode: str) -> None:
        from moerun.runner.opening import record_of

        self._asked = asked
        self.model = asked.model
        self.profile = asked.profile
        self.machine = asked.machine
        self.loaded = loaded
        self.mode = mode
        record = record_of(asked.model, asked.machine, loaded, pid=self.runner.pid, mode=mode)
        self._keeper = _keeper_of(record, self.runner, loaded)

    def load_again(self) -> None:
        """Load anew on the machine as it is now, as after a worker was lost."""
        from moerun.runner.mode import describe_mode

        asked = _looked_again(self._asked)
        self.remove_record()
        self.runner.restart()
        try:
            loaded = _load(asked, self.runner, is_quiet=False)
        except BaseException:
            self.runner.close(at_once=True)  # it is seen to hold nothing, and may be tried again
            raise
        self._hold(asked, loaded, describe_mode(loaded.plan, asked.model, asked.machine))
        self.open_record()

    def open_record(self) -> None:
        """Write the record for `moerun stat`, and keep it up to date."""
        self._keeper.start()

    def refresh_record(self) -> None:
        """Look at the runner and write it down, as after an answer."""
        self._keeper.refresh()

    def remove_record(self) -> None:
        """Take the record away."""
        self._keeper.close()

    def streaming(self) -> "StreamingSample | None":
        """Return what the experts did so far, None where none stream."""
        return self.runner.sample_streaming() if self.loaded.streaming is not None else None

    def buffers(self) -> "tuple[BufferRow, ...]":
        """Return each buffer as planned and as reported."""
        from moerun.engine.arguments import predicted_buffers
        from moerun.runner.buffer_report import compare_buffers

        predicted = predicted_buffers(self.loaded.args, self.model)
        return compare_buffers(self.loaded.plan.ledger, predicted, self.loaded.report.buffers)


def ask(name: str, flags: PlacementFlags) -> Asked:
    """Read settings and header, look at the machine, and check the engine at its first start."""
    from moerun.cli.planning_steps import (
        profile_of_name,
        read_named_model,
        read_settings,
        with_limits_checked,
    )
    from moerun.engine.abi import require_version
    from moerun.engine.check_record import check_engine_once
    from moerun.errors import EngineMismatch
    from moerun.places import state_folder
    from moerun.planning.strategy import Toggle
    from moerun.worker.look import look_with_workers

    profile = profile_of_name(name)
    settings = read_settings(flags, profile)
    model = read_named_model(name)
    require_version()
    check = check_engine_once(state_folder())
    machine = look_with_workers(settings.settings.workers, model_path=Path(model.files[0].path))
    machine = with_limits_checked(machine, settings)
    strategy = settings.settings.strategy
    if not check.is_sound:
        for finding in check.problems:
            if finding.name in _WITHOUT_WHICH_NOTHING_LOADS:
                raise EngineMismatch(finding.detail)
        what = "; ".join(f"{finding.name}: {finding.detail}" for finding in check.problems)
        warn(f"the engine is not as moerun expects it ({what}); loading plainly, without GPUs")
        machine = replace(machine, gpus=())
        strategy = replace(strategy, extra_buffers=Toggle.OFF)
    return Asked(
        settings=settings,
        model=model,
        machine=machine,
        strategy=strategy,
        is_plain=not check.is_sound,
        profile=profile,
    )


def _looked_again(asked: Asked) -> Asked:
    """Return what a plan is made of, with the devices and workers that are there now."""
    from moerun.cli.planning_steps import with_limits_checked
    from moerun.worker.look import look_with_workers

    path = Path(asked.model.files[0].path)
    machine = look_with_workers(asked.settings.settings.workers, model_path=path)
    machine = with_limits_checked(machine, asked.settings)
    if asked.is_plain:
        machine = replace(machine, gpus=())
    for note in machine.notes:
        if note not in asked.machine.notes:
            say(f"Note: {note}")
    return replace(asked, machine=machine)


@contextmanager
def opened_model(
    name: str,
    flags: PlacementFlags,
    *,
    is_quiet: bool = False,
    is_verbose: bool = False,
    trace_path: str | None = None,
    may_embed: bool = False,
) -> Iterator[OpenedModel]:
    """Load by a measured plan and keep a record; the runner ends with the context.

    The runner comes up while settings, model and machine are asked. Routing is added to the file
    `trace_path`, which holds a header already, and is whole when the context has ended. A model
    that makes vectors alone is refused unless it `may_embed`.
    """
    from moerun.cli.planning_steps import path_of_name
    from moerun.places import log_folder, models_folder
    from moerun.runner.interruption import terminations
    from moerun.runner.mode import describe_mode
    from moerun.runner.parent import Runner
    from moerun.store.locks import model_in_use

    with (
        terminations(),
        Runner(log_folder=log_folder()) as runner,
        model_in_use(models_folder(), lambda: path_of_name(name)),
    ):
        asked = replace(ask(name, flags), trace_path=trace_path)
        if not may_embed:
            require_text(asked.model)
        _tell_settings(asked, is_quiet=is_quiet, is_verbose=is_verbose)
        loaded = _load(asked, runner, is_quiet=is_quiet)
        for note in loaded.report.notes:
            warn(note)
        mode = describe_mode(loaded.plan, asked.model, asked.machine)
        opened = OpenedModel(asked, runner, loaded, mode)
        try:
            opened.open_record()
            yield opened
        finally:
            opened.remove_record()


def _load(asked: Asked, runner: "Runner", *, is_quiet: bool) -> "Loaded":
    from moerun.report.progress_view import LoadingLine
    from moerun.runner.loading import load_as_planned

    line = LoadingLine(sys.stderr, asked.model.name, is_shown=not is_quiet)
    try:
        return load_as_planned(
            runner,
            asked.strategy,
            deciding=_deciding(asked),
            voice=_voice(asked, line, is_quiet=is_quiet),
        )
    finally:
        line.finish()


def require_text(model: "Model") -> None:
    """Refuse a model that does not write one token after the other."""
    from moerun.errors import UnsupportedModel

    if not model.generates_text:
        raise UnsupportedModel(
            f"{model.name} ({model.architecture}) is sound but does not write text",
            hint="moerun answers with decoder models; `moerun plan` lists those at hand",
        )


def warn(message: str) -> None:
    """Print a warning, which nothing silences."""
    say(f"Warning: {message}")


def say(message: str) -> None:
    """Print one line to standard error."""
    from moerun.report.notices import tell
    from moerun.report.plain import printable

    tell(printable(message))


def _deciding(asked: Asked) -> "Deciding":
    from moerun.runner.opening import deciding_on

    return deciding_on(
        asked.model, asked.machine, is_plain=asked.is_plain, trace_path=asked.trace_path
    )


def _voice(asked: Asked, line: "LoadingLine", *, is_quiet: bool) -> "Voice":
    from moerun.machine.description import HOST
    from moerun.runner.loading import Voice
    from moerun.runner.mode import describe_faster, describe_mode

    told: set[str] = set()

    def announce(plan: "Plan") -> None:
        for caution in plan.cautions:
            if caution.message not in told:
                warn(caution.message)
                told.add(caution.message)
        if is_quiet:
            return
        say(describe_mode(plan, asked.model, asked.machine))
        faster = describe_faster(plan, asked.model, asked.machine)
        if faster is not None:
            say(f"Faster: {faster}")

    def label(device: "DeviceId") -> str:
        return "the host" if device == HOST else asked.machine.label(device)

    note = (lambda text: None) if is_quiet else lambda text: say(f"Note: {text}")
    return Voice(announce=announce, warn=warn, progress=line.update, label=label, note=note)


def _tell_settings(asked: Asked, *, is_quiet: bool, is_verbose: bool) -> None:
    """Say what settings have to say, and which notes of the machine bear on speed."""
    for note in asked.settings.notes:
        warn(note)
    for note in asked.profile.notes if asked.profile is not None else ():
        warn(note)
    for note in asked.machine.notes:
        bears_on_speed = any(word in note for word in _DEVICE_WORDS) and not is_quiet
        if is_verbose or bears_on_speed:
            say(f"Note: {note}")


def _keeper_of(record: "RunnerRecord", runner: "Runner", loaded: "Loaded") -> "RecordKeeper":
    from moerun.places import state_folder
    from moerun.runner.record_keeper import RecordKeeper

    return RecordKeeper(
        record,
        look=lambda: runner.sample_statistics(record.model_paths),
        look_at_experts=runner.sample_streaming if loaded.streaming is not None else None,
        state=state_folder,
        warn=warn,
    )
