"""The loader of a real server: plans with what is free, loads in a runner process, keeps a record.

Knows: settings of the server, the engine's check at the first start, and how a wish of a request
becomes a strategy.
Does not know: whose turn it is, or HTTP.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moerun.engine.abi import require_version
from moerun.engine.check_record import check_engine_once
from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
)
from moerun.errors import EngineMismatch, MoerunError
from moerun.experts.counters import StreamingSample
from moerun.machine.description import HOST, DeviceId, Machine
from moerun.model.description import Model
from moerun.places import log_folder, models_folder, state_folder
from moerun.planning.plan import Plan
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy, Tier, Toggle
from moerun.runner.loading import Loaded, Voice, load_as_planned
from moerun.runner.mode import describe_mode
from moerun.runner.opening import deciding_on, record_of
from moerun.runner.parent import Runner
from moerun.runner.record_keeper import RecordKeeper
from moerun.runner.records import RunnerRecord
from moerun.server.runners import Holding, LoadWishes, ServedModel
from moerun.settings.description import LoadedSettings
from moerun.settings.load import with_model
from moerun.store.described import described_files
from moerun.store.locks import model_in_use
from moerun.worker.look import look_with_workers

_LOG: Final = logging.getLogger(__name__)
_DEFAULT_CONTEXT_TOKENS: Final = 8192
_NOTHING_LOADS_WITHOUT: Final = ("version", "library")  # steps of the engine's check


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """What every load shares. `engine` names another one than llama.cpp, for tests."""

    settings: LoadedSettings
    parallel: int
    engine: str | None = None


class LocalModel:
    """One model in a runner process of its own, and the record of it."""

    def __init__(
        self,
        runner: Runner,
        loaded: Loaded,
        *,
        mode: str,
        keeper: RecordKeeper,
        streams: bool,
        held: ExitStack,
    ) -> None:
        self._held = held  # the locks of its blobs
        self._runner = runner
        self._loaded = loaded
        self._keeper = keeper
        self._streams = streams
        self.mode = mode
        self.pid = runner.pid

    @property
    def context_tokens(self) -> int:
        """How many tokens it was loaded for."""
        return self._loaded.report.context_tokens

    @property
    def sequences(self) -> int:
        """How many answers it makes at once."""
        return self._loaded.report.sequences

    @property
    def load_s(self) -> float:
        """How long loading took."""
        return self._loaded.report.load_s

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do, by the engine's report."""
        return self._loaded.report.capabilities

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._runner.is_alive

    def holdings(self) -> tuple[Holding, ...]:
        """Look at the process; what the system does not tell is taken from the measured plan."""
        try:
            self._keeper.refresh()
        except MoerunError as error:
            _LOG.warning("%s", error.message)
        sample, ledger = self._keeper.record.last_sample, self._loaded.plan.ledger
        held = [self._on_gpu(device) for device in self._loaded.plan.devices]
        if sample is None:
            return (*held, Holding(device=HOST, size_bytes=ledger.used_bytes(HOST)))
        mapped_bytes = sample.model_resident_bytes or 0
        host = Holding(
            device=HOST, size_bytes=sample.resident_bytes, reclaimable_bytes=mapped_bytes
        )
        return (*held, host)

    def streaming(self) -> StreamingSample | None:
        """Ask what its experts did."""
        return self._runner.sample_streaming() if self._streams else None

    def reserve_number(self) -> int:
        """Return a number for one answer."""
        return self._runner.reserve_number()

    def generate(
        self, request: GenerationRequest, *, on_part: Callable[[AnswerPart], None], number: int
    ) -> GenerationResult:
        """Answer."""
        return self._runner.generate(request, on_part=on_part, number=number)

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return vectors."""
        return self._runner.embed(request)

    def cancel(self, number: int) -> None:
        """End one answer early."""
        self._runner.cancel(number)

    def close(self) -> None:
        """End the process; what it learned of its experts is saved first."""
        self._keeper.close()
        self._runner.close()
        self._held.close()

    def _on_gpu(self, device: DeviceId) -> Holding:
        sample = self._keeper.record.last_sample
        seen = sample.gpu(device) if sample is not None else None
        if seen is not None and seen.process_bytes is not None:
            return Holding(device=device, size_bytes=seen.process_bytes)
        return Holding(device=device, size_bytes=self._loaded.plan.ledger.used_bytes(device))


class LocalLoader:
    """Loads models on this machine, by the settings the server was started with."""

    def __init__(self, settings: LoaderSettings) -> None:
        self._settings = settings
        self._models: dict[str, tuple[float, Model]] = {}
        self._is_plain = False

    def prepare(self) -> None:
        """Check the engine as at its first start; EngineMismatch when nothing could load."""
        require_version()
        check = check_engine_once(state_folder())
        for finding in check.problems:
            if finding.name in _NOTHING_LOADS_WITHOUT:
                raise EngineMismatch(finding.detail)
            _LOG.warning("%s: %s; loading plainly, without GPUs", finding.name, finding.detail)
        self._is_plain = not check.is_sound

    def room(self) -> Mapping[DeviceId, int]:
        """Return what is free now."""
        machine = self._machine(None)
        free = {gpu.id: gpu.free_bytes for gpu in machine.gpus}
        return {**free, HOST: machine.host.available_bytes}

    def needs(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> Mapping[DeviceId, int]:
        """Plan from the header alone, and return what is charged to each device."""
        described = self._model(model)
        machine = _with_room(self._machine(Path(model.path)), room)
        plan = plan_placement(described, machine, self._strategy(model, described, wishes))
        return {device: plan.ledger.total_bytes(device) for device in (*plan.devices, HOST)}

    def load(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> LocalModel:
        """Load in a fresh process."""
        described = self._model(model)
        machine = _with_room(self._machine(Path(model.path)), room)
        held = ExitStack()
        held.enter_context(model_in_use(models_folder(), lambda: _file_of(model)))
        runner = Runner(log_folder=log_folder(), engine=self._settings.engine)
        runner.start()
        try:
            deciding = deciding_on(
                described, machine, is_plain=self._is_plain, sequences=self._settings.parallel
            )
            loaded = load_as_planned(
                runner,
                self._strategy(model, described, wishes),
                deciding=deciding,
                voice=_voice(machine),
            )
            mode = describe_mode(loaded.plan, described, machine)
            _LOG.info("%s is loaded: %s", model.name, mode)
            record = record_of(described, machine, loaded, pid=runner.pid, mode=mode)
            keeper = _keeper_of(record, runner, streams=loaded.streaming is not None)
            keeper.start()
        except BaseException:
            runner.close(at_once=True)
            held.close()
            raise
        return LocalModel(
            runner,
            loaded,
            mode=mode,
            keeper=keeper,
            streams=loaded.streaming is not None,
            held=held,
        )

    def _model(self, model: ServedModel) -> Model:
        """Return the description of a model, whose header is read again when the file changed."""
        weights = " + ".join((model.path, *model.adapters))
        known = self._models.get(weights)
        if known is None or known[0] != model.modified_at_s:
            known = (model.modified_at_s, described_files(model.path, model.adapters))
            self._models[weights] = known
        return known[1]

    def _machine(self, path: Path | None) -> Machine:
        workers = self._settings.settings.settings.workers
        machine = look_with_workers(workers, model_path=path)
        return replace(machine, gpus=()) if self._is_plain else machine

    def _strategy(self, served: ServedModel, model: Model, wishes: LoadWishes) -> Strategy:
        """Return the server's strategy with what the model asks for, and a request's wishes.

        Without a wish the context is that of `run`, but never grows into free memory, which the
        next model will need.
        """
        settings = self._settings.settings
        if served.settings is not None:
            settings = with_model(settings, served.settings)
        strategy = settings.settings.strategy
        context_tokens = wishes.context_tokens
        if context_tokens is not None:
            context_tokens = min(context_tokens, model.train_context_tokens)
        elif strategy.context_tokens is None and not strategy.context_is_largest:
            context_tokens = min(model.train_context_tokens, _DEFAULT_CONTEXT_TOKENS)
        if context_tokens is not None:
            strategy = replace(strategy, context_tokens=context_tokens, context_is_largest=False)
        if wishes.batch_tokens is not None:
            strategy = replace(strategy, batch_tokens=wishes.batch_tokens)
        if wishes.threads is not None:
            strategy = replace(strategy, threads=wishes.threads)
        if wishes.gpu_layers == 0:
            tiers = tuple(tier for tier in strategy.hierarchy if tier is not Tier.VRAM)
            strategy = replace(strategy, hierarchy=tiers)
        return replace(strategy, extra_buffers=Toggle.OFF) if self._is_plain else strategy


def _file_of(model: ServedModel) -> Path | None:
    """Return the file of a model while it is there."""
    path = Path(model.path)
    return path if path.is_file() else None


def _with_room(machine: Machine, room: Mapping[DeviceId, int]) -> Machine:
    """Return the machine with only so much free as a model may take."""
    gpus = tuple(
        replace(gpu, free_bytes=min(gpu.total_bytes, room.get(gpu.id, gpu.free_bytes)))
        for gpu in machine.gpus
    )
    available_bytes = min(machine.host.total_bytes, room.get(HOST, machine.host.available_bytes))
    return replace(machine, gpus=gpus, host=replace(machine.host, available_bytes=available_bytes))


def _voice(machine: Machine) -> Voice:
    def announce(plan: Plan) -> None:
        for caution in plan.cautions:
            _LOG.warning("%s", caution.message)

    def label(device: DeviceId) -> str:
        return "the host" if device == HOST else machine.label(device)

    return Voice(announce=announce, warn=lambda said: _LOG.warning("%s", said), label=label)


def _keeper_of(record: RunnerRecord, runner: Runner, *, streams: bool) -> RecordKeeper:
    return RecordKeeper(
        record,
        look=lambda: runner.sample_statistics(record.model_paths),
        look_at_experts=runner.sample_streaming if streams else None,
        state=state_folder,
        warn=lambda said: _LOG.warning("%s", said),
    )
