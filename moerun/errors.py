"""What can go wrong, as a tree; each family has its exit code.

    MoerunError 1
      UsageError 2            ConfigError (names the key and where it was set)
      ModelError 3            ModelNotFound, NotGguf, MissingShard, UnsupportedModel, SlotsRefused
      PlanError 4             DoesNotFit, PinConflict
      MachineError 5          ProbeFailed
      EngineError 6           EngineMissing, EngineMismatch, EngineRefused, EngineCrashed,
                              WorkerLost, EngineOutOfMemory
      ServeError 7            AddressInUse
      PullError 8             Unreachable, AccessDenied, WrongContent, NoRoom

A message says what failed, the numbers, and what to do, in one sentence each. Anything that is
not a `MoerunError` is a bug: the command line prints one sentence, the path of a log, and exits
70. Ctrl-C of a one-shot prompt exits 130.

Knows: the families, their codes and their hints.
Does not know: how an error is shown, or the types of the values it speaks of.
"""

from typing import ClassVar

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class MoerunError(Exception):
    """An expected failure: one clear sentence, an optional hint, an exit code by family."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MoerunError):
    """The command line or a setting cannot be understood."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or has a bad value; `key` and `origin` (file and line) say which."""

    def __init__(self, message: str, *, key: str, origin: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key
        self.origin = origin


class ModelError(MoerunError):
    """The model cannot be read or is not one that can run."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No model by that name or path."""


class NotGguf(ModelError):
    """The file is not a sound GGUF."""


class MissingShard(ModelError):
    """A part of a split model is absent."""


class UnsupportedModel(ModelError):
    """A sound file that the engine cannot compute."""


class SlotsRefused(UnsupportedModel):
    """A model that runs, and whose experts cannot be read from slots of a device."""


class PlanError(MoerunError):
    """No placement satisfies the model, the machine and the settings together."""

    exit_code = 4


class DoesNotFit(PlanError):
    """The shortfalls (`planning.plan.Shortfall` values) say what is missing where."""

    def __init__(
        self, message: str, *, shortfalls: tuple[object, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.shortfalls = shortfalls


class PinConflict(PlanError):
    """Pins contradict one another, or a limit."""


class MachineError(MoerunError):
    """The machine could not be probed."""

    exit_code = 5


class ProbeFailed(MachineError):
    """One probe failed in a way that leaves nothing to plan with."""


class EngineError(MoerunError):
    """llama.cpp is absent, of another version, refused, or died."""

    exit_code = 6


class EngineMissing(EngineError):
    """llama-cpp-python is not installed, or its libraries cannot be opened."""


class EngineMismatch(EngineError):
    """The installed engine is not the version whose structs this program knows."""


class EngineRefused(EngineError):
    """The engine declined to load or decode; `log_tail` holds the end of its log."""

    def __init__(self, message: str, *, log_tail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.log_tail = log_tail


class EngineCrashed(EngineRefused):
    """The runner process died; `log_tail` holds the end of its log."""


class WorkerLost(EngineCrashed):
    """A worker died, froze or was cut off while the runner needed it; the runner was ended."""


class EngineOutOfMemory(EngineError):
    """A device had too little memory; `device` and `requested_bytes` where the log names them."""

    def __init__(
        self,
        message: str,
        *,
        device: str | None = None,
        requested_bytes: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.device = device
        self.requested_bytes = requested_bytes


class ServeError(MoerunError):
    """The server cannot start or be reached."""

    exit_code = 7


class AddressInUse(ServeError):
    """Something else listens there."""


class PullError(MoerunError):
    """A model could not be downloaded; what arrived is kept, and the next pull goes on."""

    exit_code = 8


class Unreachable(PullError):
    """A host cannot be reached, does not answer, or keeps failing."""


class AccessDenied(PullError):
    """The host wants a token, or another one."""


class WrongContent(PullError):
    """What arrived is not what was promised: another length, another digest, no such protocol."""


class NoRoom(PullError):
    """The files do not fit on the disk they should go to."""
