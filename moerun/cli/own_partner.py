"""A model in a runner of one's own, as a prompt or a conversation asks it.

Knows: when it has to be loaded again, what is told of it, and how it is kept under a new name.
Does not know: how lines are typed, or servers.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from moerun.cli.open_model import OpenedModel, opened_model
from moerun.cli.options import PlacementFlags
from moerun.cli.show import describe_installed
from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    Message,
)
from moerun.errors import ModelError, ModelNotFound, UsageError
from moerun.repl.partner import ModelCard, Spoken
from moerun.repl.settings import ChatSettings
from moerun.report.show_view import ShownModel, modelfile_text, parameter_lines, show_lines
from moerun.runner.carried import carried_by
from moerun.runner.interruption import interrupts
from moerun.store.creation import create_from
from moerun.store.installed import InstalledModel
from moerun.store.library import installed_models, require_model
from moerun.store.modelfile import Modelfile
from moerun.store.own_store import own_reference
from moerun.store.parameters import PARAMETERS, Target

if TYPE_CHECKING:
    from moerun.store.profile import ModelProfile


class OwnPartner:
    """A model, loaded when it is needed. A context manager; the exit ends its runner."""

    def __init__(
        self,
        name: str,
        flags: PlacementFlags,
        *,
        is_quiet: bool = False,
        is_verbose: bool = False,
        may_embed: bool = False,
    ) -> None:
        self.name = name
        self._flags = flags
        self._is_quiet = is_quiet
        self._is_verbose = is_verbose
        self._may_embed = may_embed
        self._held = ExitStack()
        self._opened: OpenedModel | None = None
        self._placed: dict[str, Any] = {}
        self._untold_load_s = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the runner: politely when all went well."""
        self._opened = None
        self._held.__exit__(kind, error, trace)

    def open(self, settings: ChatSettings) -> OpenedModel:
        """Return the loaded model; it is loaded anew when the settings ask for another placement,
        and when its runner ended with a worker that was lost.
        """
        placed = settings.of_target(Target.SETTING)
        if self._opened is not None and placed == self._placed:
            if not self._opened.runner.is_alive:
                self._opened.load_again()
            return self._opened
        self._close()
        typed = tuple((key, str(value)) for key, value in placed.items())
        self._opened = self._held.enter_context(
            opened_model(
                self.name,
                replace(self._flags, settings=(*self._flags.settings, *typed)),
                is_quiet=self._is_quiet,
                is_verbose=self._is_verbose,
                may_embed=self._may_embed,
            )
        )
        self._placed = placed
        self._untold_load_s = self._opened.loaded.report.load_s
        return self._opened

    def warm_up(self, settings: ChatSettings) -> None:
        """Load beforehand, so that no answer waits for it."""
        self.open(settings)
        self._untold_load_s = 0.0

    def makes_vectors(self) -> bool:
        """Whether the model writes no text."""
        from moerun.cli.planning_steps import read_named_model

        return not read_named_model(self.name).generates_text

    def can_think(self, settings: ChatSettings) -> bool:
        """Whether the loaded model can think first."""
        return Capability.THINKING in self.open(settings).loaded.report.capabilities

    def embed(
        self, text: str, settings: ChatSettings, *, truncates: bool, dimensions: int | None
    ) -> tuple[float, ...]:
        """Return the vector of a text."""
        request = EmbeddingRequest(texts=(text,), truncates=truncates, dimensions=dimensions)
        return self.open(settings).runner.embed(request).vectors[0]

    def document(self, answer: str, spoken: Spoken | None, *, total_s: float) -> dict[str, Any]:
        """Return what `--json` tells of an answer, and of how the model lies."""
        from moerun.report.run_document import run_document

        assert self._opened is not None, "nothing was loaded"
        return run_document(
            answer,
            spoken.result if spoken is not None else None,
            model=self._opened.model,
            loaded=self._opened.loaded,
            mode=self._opened.mode,
            buffers=self._opened.buffers(),
            streaming=self._opened.streaming(),
            total_s=total_s,
        )

    def answer(
        self,
        settings: ChatSettings,
        turns: Sequence[Message],
        on_part: Callable[[AnswerPart], None],
    ) -> Spoken:
        """Answer, and write down what memory it took."""
        started_s = time.monotonic()
        opened = self.open(settings)
        request = carried_by(opened.profile).applied_to(settings.request(turns))
        with interrupts(opened.runner.cancel):
            result = opened.runner.generate(request, on_part=on_part)
        total_s = time.monotonic() - started_s
        opened.refresh_record()
        load_s, self._untold_load_s = self._untold_load_s, 0.0
        return Spoken(result=result, load_s=load_s, total_s=total_s)

    def figures(self, spoken: Spoken) -> tuple[str, ...]:
        """Return the timing block, then the buffers and what streaming did."""
        from moerun.report.buffer_view import buffer_lines
        from moerun.report.streaming_view import verbose_lines
        from moerun.report.timing_view import label_line, timing_lines

        assert self._opened is not None, "nothing was answered"
        opened = self._opened
        lines = [*timing_lines(spoken.result, load_s=spoken.load_s, total_s=spoken.total_s)]
        lines += [label_line("mode", opened.mode)]
        lines += [label_line("seed", str(spoken.result.seed))]
        lines += buffer_lines(opened.buffers(), opened.machine.label)
        streaming = opened.streaming()
        if streaming is not None:
            lines += verbose_lines(streaming)
        return tuple(lines)

    def card(self) -> ModelCard:
        """Look up what the model is, and where it lies when it is loaded."""
        found = self._installed()
        shown, messages = describe_installed(found)
        info = [*show_lines(shown, is_verbose=False)]
        defaults: dict[str, float] = {}
        can_think = "thinking" in shown.capabilities
        if self._opened is not None:
            report = self._opened.loaded.report
            defaults = self._opened.runner.model_defaults
            can_think = Capability.THINKING in report.capabilities
            info += ["  Loaded", f"    context      {report.context_tokens:,} tokens"]
            info += [f"    placement    {self._opened.mode}"]
        return ModelCard(
            info=tuple(info),
            license="\n".join(shown.licenses),
            modelfile=modelfile_text(shown, messages=messages),
            parameters=_parameter_rows(shown, defaults),
            system=shown.system or "",
            template=shown.template or "",
            turns=messages,
            can_think=can_think,
        )

    def check_parameter(self, name: str, value: object) -> None:
        """Refuse a setting of memory that cannot be meant; other values were checked as read."""
        from moerun.cli.planning_steps import check_model_settings

        kept = list(value) if isinstance(value, tuple) else value
        if PARAMETERS[name].target is Target.SETTING:
            check_model_settings(((name, kept),), origin="/set parameter")

    def load(self, name: str, settings: ChatSettings) -> None:
        """Go on with another model; when it cannot be loaded, that of before is loaded anew."""
        try:
            require_model(name)
        except (ModelNotFound, UsageError) as error:
            raise ModelNotFound(f"Couldn't find model '{name[:80]}'", hint=error.hint) from error
        before, self.name = self.name, name
        self._close()
        try:
            self.warm_up(settings)
        except BaseException:
            self.name = before
            raise

    def save(self, name: str, settings: ChatSettings, turns: Sequence[Message]) -> None:
        """Make a model of one's own, as a Modelfile with all of it would."""
        profile = self._profile()
        said = tuple((turn.role, turn.content) for turn in turns)
        modelfile = Modelfile(
            source=self.name,
            parameters=settings.parameters,
            system=settings.system,
            messages=(*(profile.messages if profile is not None else ()), *said),
        )
        create_from(own_reference(name), modelfile, self._installed())

    def model_names(self) -> tuple[str, ...]:
        """Return the names of this machine."""
        return tuple(model.name for model in installed_models() if model.paths)

    def show_memory(self) -> None:
        """Print what `stat --memory` shows of this runner."""
        from moerun.cli.stat import print_memory

        if self._opened is None:
            raise ModelError(f"{self.name} is not in memory; the next message loads it.")
        self._opened.refresh_record()
        print_memory(frozenset({self._opened.runner.pid}))

    def _close(self) -> None:
        self._opened = None
        self._held.close()

    def _installed(self) -> InstalledModel:
        return require_model(self.name)

    def _profile(self) -> "ModelProfile | None":
        from moerun.cli.planning_steps import profile_of_name

        return profile_of_name(self.name)


def _parameter_rows(shown: ShownModel, defaults: dict[str, float]) -> tuple[str, ...]:
    """Return what the model carries, and what its GGUF recommends beside."""
    carried = {name for name, _ in shown.parameters}
    of_file = tuple((name, f"{value:g}") for name, value in defaults.items() if name not in carried)
    return parameter_lines((*shown.parameters, *of_file))
