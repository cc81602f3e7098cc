"""What streaming has done so far, as values for whoever shows them.

Knows: the counters and the ratios between them.
Does not know: how they are gathered, or how they are shown.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was asked for and moved in a span of time. One request is one expert of one layer."""

    span_s: float
    tokens: int = 0
    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    experts_in: int = 0
    experts_out: int = 0
    stall_s: float = 0.0

    @property
    def hit_fraction(self) -> float | None:
        """The share of requests that were held; None before the first."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else None

    @property
    def read_bytes_per_token(self) -> float | None:
        """What one token reads from storage; None before the first."""
        return self.read_bytes / self.tokens if self.tokens else None

    @property
    def stall_s_per_token(self) -> float | None:
        """How long one token waits for experts; None before the first."""
        return self.stall_s / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long an expert that was missing took from the request until it could be used."""

    count: int
    p50_s: float
    p99_s: float
    largest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preloading:
    """Reads ahead of the router: what was foretold, and what became of it."""

    experts_per_layer: int
    predicted: int
    correct: int
    read_bytes: int
    useful_bytes: int

    @property
    def wasted_bytes(self) -> int:
        """Bytes that were read ahead and left without being used."""
        return self.read_bytes - self.useful_bytes

    @property
    def accuracy_fraction(self) -> float | None:
        """The share of foretold experts that the router chose; None before the first."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdCacheUse:
    """What the copies of one model on a faster disk hold, may hold, and gave and took in a run."""

    path: str
    held_bytes: int
    limit_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHeat:
    """One layer: how often each expert was used so far, and which are held."""

    layer: int
    uses: tuple[int, ...]
    is_held: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCounters:
    """Slots for experts in the memory of devices, and what was moved there so far.

    `tokens` counts those that read slots; `hits` and `uploads` are their requests for one expert of
    one layer. `upload_s` is the time in which they waited for uploads, without that of bringing
    the experts into memory before. `is_queued`
    tells whether the next expert is prepared while one is under way. All missing experts are
    uploaded: none is computed on the host.
    """

    layers: int
    slots: int
    held_experts: int
    device_bytes: tuple[tuple[str, int], ...]
    is_queued: bool
    tokens: int = 0
    hits: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    upload_s: float = 0.0
    evicted: int = 0

    @property
    def hit_fraction(self) -> float | None:
        """The share of requests that were in a slot; None before the first."""
        requests = self.hits + self.uploads
        return self.hits / requests if requests else None

    @property
    def uploads_per_token(self) -> float | None:
        """How many experts are uploaded for one token; None before the first."""
        return self.uploads / self.tokens if self.tokens else None

    @property
    def upload_s_per_token(self) -> float | None:
        """How long one token waits for uploads; None before the first."""
        return self.upload_s / self.tokens if self.tokens else None

    @property
    def upload_bytes_per_s(self) -> float | None:
        """The rate of uploads; None before the first."""
        return self.upload_bytes / self.upload_s if self.upload_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingSample:
    """One look at the experts of a runner. `at_s` is of the machine's monotonic clock.

    `held_bytes` is by the books, `resident_bytes` what the system says is in memory (None where
    it cannot be asked). `decode` and `prefill` count since the start, `recent` over the last
    minute. `because` says why this mechanism and policy run. `storage_read_bytes` were read past
    the page cache by reads of our own, dense weights included, in the `storage_busy_s` in which
    at least one was under way. `slots` is None where no device has any; with the mechanism `slots`
    a hit of `decode` is one in a slot.
    """

    at_s: float
    mechanism: str
    policy: str
    because: str
    limit_bytes: int
    cache_bytes: int
    minimum_bytes: int
    expert_bytes: int
    expert_count: int
    held_bytes: int
    held_experts: int
    resident_bytes: int | None
    decode: Traffic
    prefill: Traffic
    recent: Traffic
    latency: Latency | None
    preloading: Preloading | None
    major_faults: int | None
    full_loading_bytes: int
    heat: tuple[LayerHeat, ...] = ()
    notes: tuple[str, ...] = ()
    storage_read_bytes: int | None = None
    storage_busy_s: float | None = None
    ssd_cache: SsdCacheUse | None = None
    slots: SlotCounters | None = None

    @property
    def storage_bytes_per_s(self) -> float | None:
        """The rate of storage while it was read; None where nothing was."""
        if not self.storage_read_bytes or not self.storage_busy_s:
            return None
        return self.storage_read_bytes / self.storage_busy_s

    @property
    def unslotted_fraction(self) -> float | None:
        """The share of requests that went without slots, as those of prompts do.

        None where there are no slots, or nothing was asked for.
        """
        asked = (self.decode.hits + self.decode.misses) + (self.prefill.hits + self.prefill.misses)
        if self.slots is None or not asked:
            return None
        return max(0.0, 1 - (self.slots.hits + self.slots.uploads) / asked)

    @property
    def held_fraction(self) -> float:
        """The share of the experts' bytes that is held."""
        return self.held_bytes / self.expert_bytes if self.expert_bytes else 0.0
