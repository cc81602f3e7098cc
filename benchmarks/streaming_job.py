"""What one child is to do for `benchmarks.streaming`, and what it reports: values only.

Knows: jobs, outcomes, and the figures that follow from them.
Does not know: processes, engines, or how figures are shown.
"""

import statistics
from dataclasses import dataclass
from enum import StrEnum

from moerun.experts.counters import StreamingSample
from moerun.experts.order import PolicyName
from moerun.planning.strategy import StreamingMode

LEAST_BUSY_S = 0.05  # of less, the kernel's clock ticks make no rate


class Side(StrEnum):
    """Who decodes."""

    STOCK = "stock"  # llama-cpp-python through its low-level calls, mmap
    OURS = "moerun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """What is left open of a StreamingOrder; None leaves the choice to the run."""

    mode: StreamingMode = StreamingMode.AUTO
    policy: PolicyName | None = None
    preload_experts: int | None = None
    reader_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of one side. The arithmetic is the same on both: see `streaming_side`.

    `most_expert_bytes` bounds the experts by itself, where the limit has room for all of them.
    """

    side: Side
    model_path: str
    prompt: tuple[int, ...]
    decoded: tuple[int, ...]
    threads: int
    context_tokens: int
    ubatch_tokens: int
    limit_bytes: int
    streaming: Streaming
    state_folder: str
    trace_path: str | None = None
    most_expert_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Counters at one moment: bytes of this process, bytes and busy time of the whole disk."""

    at_s: float
    process_bytes: int
    disk_bytes: int
    disk_busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a child measured of itself. The first token counts from when loading began.

    `digest` is of the logits after the prompt and after every decoded token.
    """

    load_s: float
    before: Counted
    loaded: Counted
    first: Counted
    last: Counted
    token_s: tuple[float, ...]
    digest: str
    cache_bytes: int | None = None
    first_sample: StreamingSample | None = None
    sample: StreamingSample | None = None
    simulated_hit_fraction: float | None = None

    @property
    def first_token_s(self) -> float:
        """Seconds from the beginning of loading until the first token's logits."""
        return self.first.at_s - self.before.at_s

    @property
    def tokens_per_s(self) -> float:
        """Rate of all tokens after the first, with what was cold at first."""
        return len(self.token_s) / sum(self.token_s)

    @property
    def later_tokens_per_s(self) -> float:
        """Rate of the later half."""
        later = self.token_s[len(self.token_s) // 2 :]
        return len(later) / sum(later)

    @property
    def decoded_bytes(self) -> int:
        """What the process fetched from storage while it decoded."""
        return self.last.process_bytes - self.first.process_bytes

    @property
    def missed_bytes(self) -> int | None:
        """What the policy's misses and reads ahead come to while decoding; None without one."""
        if self.sample is None:
            return None
        return self.sample.decode.read_bytes

    @property
    def busy_bytes_per_s(self) -> float | None:
        """The rate while anything was being read, over the decoded tokens.

        By the counters of moerun's own readers, which no other program is in; else by the disk's.
        None where next to nothing was read.
        """
        first, last = self.first_sample, self.sample
        if first is not None and last is not None:
            busy_s = (last.storage_busy_s or 0.0) - (first.storage_busy_s or 0.0)
            read_bytes = (last.storage_read_bytes or 0) - (first.storage_read_bytes or 0)
            if busy_s > LEAST_BUSY_S:
                return read_bytes / busy_s
        busy_s = self.last.disk_busy_s - self.first.disk_busy_s
        read_bytes = self.last.disk_bytes - self.first.disk_bytes
        return read_bytes / busy_s if busy_s > LEAST_BUSY_S else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An outcome with what the parent saw of the child from outside, ten times a second.

    `group_peak_bytes` is all that its control group was ever charged, page cache included;
    `foreign_processors` how many processors others kept busy meanwhile, which ought to be none.
    """

    outcome: Outcome
    spawn_to_load_s: float
    peak_bytes: int
    peak_anonymous_bytes: int
    group_peak_bytes: int | None
    samples: int
    foreign_processors: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Several figures of one kind."""

    smallest: float
    median: float
    largest: float


def spread(values: list[float]) -> Spread:
    """Return the smallest, the middle and the largest."""
    return Spread(smallest=min(values), median=statistics.median(values), largest=max(values))


def possible_tokens_per_s(
    *, missed_bytes_per_token: float, disk_bytes_per_s: float, compute_s: float
) -> float:
    """Return what is physically possible: misses at the disk's rate, all computing hidden."""
    return 1 / max(missed_bytes_per_token / disk_bytes_per_s, compute_s)
