"""What a runner is told about streaming, as values.

Knows: the choices that a plan leaves to the run.
Does not know: how they are carried out.
"""

from dataclasses import dataclass
from enum import StrEnum

from moerun.experts.layout import ExpertLayout
from moerun.planning.strategy import StreamingMode


class PolicyName(StrEnum):
    """Which expert leaves when another needs its room."""

    LRU = "lru"
    FREQUENCY = "frequency"  # LRU with frequency weight


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingOrder:
    """How one model is to be streamed; None leaves a choice to the run.

    `limit_bytes` bounds all host memory of the runner; `cache_bytes` of it are planned for
    experts, at most, and `minimum_bytes` at least. `state_folder` is where what was learned of
    this model on this machine is kept. `is_adaptive` lets the cache follow memory pressure.
    `trace_path` is a file that was begun with its header, to which the routing of every token is
    added; `traced` are the matrices whose routing that is, with their layers. With the mode `off`
    nothing streams, and the order is for the trace alone.
    """

    layout: ExpertLayout
    mode: StreamingMode
    limit_bytes: int
    cache_bytes: int
    minimum_bytes: int
    policy: PolicyName | None = None
    preload_experts: int | None = None
    is_adaptive: bool = True
    reader_threads: int | None = None
    read_bytes: int | None = None
    state_folder: str | None = None
    model_digest: str = ""
    machine_fingerprint: str = ""
    trace_path: str | None = None
    traced: tuple[tuple[str, int], ...] = ()
