"""What the server asks of a loaded model and of whoever loads one: the seam of this room.

Knows: the questions, as protocols; tests answer them without a process.
Does not know: processes, plans, files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moerun.engine.interface import (
    AnswerPart,
    Capability,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
)
from moerun.experts.counters import StreamingSample
from moerun.machine.description import DeviceId
from moerun.settings.description import ModelSettings
from moerun.store.profile import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWishes:
    """What of loading a request may choose; None leaves it to the settings.

    `gpu_layers` 0 keeps the model off the GPUs, as ollama's `num_gpu`.
    """

    context_tokens: int | None = None
    batch_tokens: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that can be asked for: its name with a tag, its file, when it was changed.

    `digest` is that of its manifest, `profile` what it carries, None for a file by itself.
    """

    name: str
    path: str
    modified_at_s: float
    digest: str | None = None
    profile: ModelProfile | None = None
    adapters: tuple[str, ...] = ()

    @property
    def settings(self) -> ModelSettings | None:
        """Return what it asks for of memory and placement, None when that is nothing."""
        if self.profile is None or not self.profile.settings:
            return None
        return ModelSettings(origin=f"model {self.profile.name}", values=self.profile.settings)

    @property
    def key(self) -> str:
        """Return what is loaded once: a file, placed as asked.

        Models of the same weights share them, whatever else each of them carries.
        """
        weights = " + ".join((self.path, *self.adapters))
        return weights if self.settings is None else f"{weights} {self.settings.values!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a loaded model holds of a device, as measured.

    `reclaimable_bytes` of it are pages of the model's file, which the system counts as available
    although the model is slow without them.
    """

    device: DeviceId
    size_bytes: int
    reclaimable_bytes: int = 0


class LoadedModel(Protocol):
    """One model in memory. All is called from threads, several at once."""

    @property
    def pid(self) -> int:
        """The process to observe."""
        ...

    @property
    def context_tokens(self) -> int:
        """How many tokens it was loaded for."""
        ...

    @property
    def sequences(self) -> int:
        """How many answers it makes at once."""
        ...

    @property
    def load_s(self) -> float:
        """How long loading took."""
        ...

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do."""
        ...

    @property
    def mode(self) -> str:
        """Where its parts lie, in a sentence."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        ...

    def holdings(self) -> tuple[Holding, ...]:
        """Look at what it holds now, by device."""
        ...

    def streaming(self) -> StreamingSample | None:
        """Look at what its experts did so far, None where none stream."""
        ...

    def reserve_number(self) -> int:
        """Return a number for one answer, by which it can be cancelled."""
        ...

    def generate(
        self, request: GenerationRequest, *, on_part: Callable[[AnswerPart], None], number: int
    ) -> GenerationResult:
        """Answer; raises EngineCrashed when the process dies, and what the engine refuses."""
        ...

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return vectors."""
        ...

    def cancel(self, number: int) -> None:
        """End one answer early; a number that is over is passed over."""
        ...

    def close(self) -> None:
        """End the process and free all it held."""
        ...


class ModelLoader(Protocol):
    """Whoever brings models into memory. Called from threads, one call at a time."""

    def room(self) -> Mapping[DeviceId, int]:
        """Return the free bytes of each device now, as the system tells them."""
        ...

    def needs(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> Mapping[DeviceId, int]:
        """Return the bytes of each device that the model would take of this room; PlanError."""
        ...

    def load(
        self, model: ServedModel, wishes: LoadWishes, room: Mapping[DeviceId, int]
    ) -> LoadedModel:
        """Load into this room; raises what planning and the engine refuse."""
        ...
