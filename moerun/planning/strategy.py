"""What the user wants of memory: the `memory_strategy` block as values, key for key.

Knows: the keys, their closed sets, and how limits and residencies are written.
Does not know: files, flags, origins of settings, or any machine.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from moerun.units import MIB, format_gib, parse_bytes, parse_fraction


class Tier(StrEnum):
    """A level of the hierarchy, fastest first."""

    VRAM = "vram"
    RAM = "ram"
    SSD = "ssd"


class AllocationPolicy(StrEnum):
    """`adaptive` follows memory pressure; `conservative` keeps larger margins and moves nothing."""

    ADAPTIVE = "adaptive"
    CONSERVATIVE = "conservative"


class StreamingMode(StrEnum):
    """How experts reach faster memory while the model runs.

    `slots` hold the likely ones of every layer in VRAM; below them, `paging` and `cache` bring
    those on SSD into RAM.
    """

    AUTO = "auto"
    OFF = "off"
    PAGING = "paging"
    CACHE = "cache"
    SLOTS = "slots"


class LoadMode(StrEnum):
    """How host weights get into memory."""

    MMAP = "mmap"
    COPY = "copy"
    LOCK = "lock"
    DIRECT = "direct"
    STREAM = "stream"


class Toggle(StrEnum):
    """On, off, or left to the engine."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on memory: bytes, or a fraction of the total; exactly one is set."""

    limit_bytes: int | None = None
    of_total_fraction: float | None = None

    def resolve(self, total_bytes: int) -> int:
        """Return the bound in bytes, never above the total."""
        if self.limit_bytes is not None:
            return min(self.limit_bytes, total_bytes)
        assert self.of_total_fraction is not None
        return int(total_bytes * self.of_total_fraction)

    def __str__(self) -> str:
        """Return it as it would be written."""
        if self.limit_bytes is not None:
            return format_gib(self.limit_bytes)
        return f"{(self.of_total_fraction or 0) * 100:g}%"


def parse_limit(text: str) -> Limit:
    """Read `8G`, `10GB` or `80%`; ValueError with a sentence otherwise."""
    if text.strip().endswith("%"):
        return Limit(of_total_fraction=parse_fraction(text))
    return Limit(limit_bytes=parse_bytes(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertResidency:
    """The share of all expert bytes wanted in VRAM and in RAM; None leaves a tier open."""

    vram_fraction: float | None = None
    ram_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Tensors whose name matches the glob go to the device, as the user wrote it.

    `device` is `gpu0`, `gpu1`, `cpu`, `ssd` or a device id; `origin` is the flag or the file and
    line that said so.
    """

    pattern: str
    device: str
    origin: str


DEFAULT_CONTEXT_TOKENS: Final = 8192
MINIMUM_CONTEXT_TOKENS: Final = 256
_SMALL_HOST_PARTS: Final = 8  # of a small host, one is the margin
CONTEXT_STEP_TOKENS: Final = 256  # llama.cpp pads the context to this


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Everything that a plan may be asked for.

    None means automatic throughout. `context_tokens` fixes the context; `context_is_largest` asks
    for the largest that fits. Margins are kept free on each device beyond what is charged.
    `cpu_expert_layers` is the count of layers, from the first, whose experts stay off the GPUs.
    `expert_slots` is how many experts of each layer have slots in VRAM; 0 says that none have.
    """

    hierarchy: tuple[Tier, ...] = (Tier.VRAM, Tier.RAM, Tier.SSD)
    allocation_policy: AllocationPolicy = AllocationPolicy.ADAPTIVE
    vram_limit: tuple[Limit, ...] | None = None
    ram_limit: Limit | None = None
    expert_residency: ExpertResidency | None = None
    ssd_cache_path: str | None = None
    max_swap_size: Limit | None = None
    preload_experts: int | None = None
    streaming: StreamingMode = StreamingMode.AUTO
    expert_slots: int | None = None
    pins: tuple[Pin, ...] = ()
    cpu_expert_layers: int | None = None
    context_tokens: int | None = None
    context_is_largest: bool = False
    kv_encoding_k: str = "F16"
    kv_encoding_v: str = "F16"
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    flash_attention: Toggle = Toggle.AUTO
    extra_buffers: Toggle = Toggle.AUTO
    load_mode: LoadMode | None = None
    split_layers: bool = True
    threads: int | None = None
    gpu_margin_bytes: int | None = None
    host_margin_bytes: int | None = None

    @property
    def default_gpu_margin_bytes(self) -> int:
        """What stays free on a GPU when the user sets no margin."""
        conservative = self.allocation_policy is AllocationPolicy.CONSERVATIVE
        return 1024 * MIB if conservative else 512 * MIB

    @property
    def default_host_margin_bytes(self) -> int:
        """What stays free of ample host memory when the user sets no margin."""
        conservative = self.allocation_policy is AllocationPolicy.CONSERVATIVE
        return 4096 * MIB if conservative else 2048 * MIB

    def host_margin_of(self, total_bytes: int) -> int:
        """Return what stays free of that much host memory: of little no more than an eighth.

        A container of 2 GiB would otherwise have no room for the smallest model.
        """
        if self.host_margin_bytes is not None:
            return self.host_margin_bytes
        return min(self.default_host_margin_bytes, total_bytes // _SMALL_HOST_PARTS)
