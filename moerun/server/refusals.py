"""What a client is told when a request cannot be served: a status, one sentence, nothing else.

Knows: which failure has which status, and that a fault of our own shows nothing of its inside.
Does not know: the shape that either API gives an error.
"""

from dataclasses import dataclass
from typing import Final

from moerun.errors import (
    AccessDenied,
    EngineError,
    ModelError,
    ModelNotFound,
    MoerunError,
    NoRoom,
    PlanError,
    Unreachable,
    UsageError,
)

BAD_REQUEST: Final = 400
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
METHOD_NOT_ALLOWED: Final = 405
TOO_SLOW: Final = 408
TOO_LARGE: Final = 413
HEADERS_TOO_LARGE: Final = 431
FAILURE: Final = 500
NOT_IMPLEMENTED: Final = 501
BAD_GATEWAY: Final = 502
BUSY: Final = 503
NO_ROOM: Final = 507


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The status and the sentence; `retry_after_s` when waiting may help."""

    status: int
    message: str
    retry_after_s: int | None = None


class Refused(Exception):
    """Raised wherever a request turns out to be one that is not served."""

    def __init__(self, message: str, *, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.refusal = Refusal(status=status, message=message)


class ServerBusy(Refused):
    """Too many requests wait already."""

    def __init__(self, *, waiting: int, retry_after_s: int) -> None:
        message = (
            "server busy, please try again.  maximum pending requests exceeded "
            f"({waiting} are waiting)"
        )
        super().__init__(message, status=BUSY)
        self.refusal = Refusal(status=BUSY, message=message, retry_after_s=retry_after_s)


def refusal_of(error: Exception) -> Refusal:
    """Return what a client is told of an error; a bug is one sentence without its details."""
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, MoerunError):
        said = error.message if error.hint is None else f"{error.message} ({error.hint})"
        return Refusal(status=_status_of(error), message=said)
    return Refusal(
        status=FAILURE,
        message="moerun met a fault of its own; the server's log has the details",
    )


def is_fault(error: Exception) -> bool:
    """Whether an error is a bug, whose traceback belongs into the log."""
    return not isinstance(error, Refused | MoerunError)


def _status_of(error: MoerunError) -> int:
    match error:
        case ModelNotFound():
            return NOT_FOUND
        case UsageError() | ModelError():
            return BAD_REQUEST
        case AccessDenied():
            return FORBIDDEN
        case NoRoom():
            return NO_ROOM
        case Unreachable():
            return BAD_GATEWAY
        case PlanError() | EngineError():
            return FAILURE
        case _:
            return FAILURE
